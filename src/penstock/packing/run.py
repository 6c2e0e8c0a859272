"""One pack from beginning to end: list, copy, publish."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from penstock import _core
from penstock.dataset.labels import LabelMode, hint_for, label_of, write_labels
from penstock.dataset.manifest_text import ManifestWriter
from penstock.dataset.spool import Spool
from penstock.packing.gather import SEGMENT_BYTES, Gathered, gathered
from penstock.packing.plan import FilePiece, segments
from penstock.packing.progress import Progress, ProgressCallback, Stage
from penstock.packing.sink import LABELS_KEY, MANIFEST_KEY, Sink, shard_key
from penstock.packing.source import Source
from penstock.packing.survey import Survey
from penstock.packing.tar import BLOCK_BYTES
from penstock.proof import prove
from penstock.store.oserrors import os_errors

__all__ = ["Options", "Packed", "run"]


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller chose, checked.

    Attributes:
        shard_bytes: where shards are split.
        label_mode: see ``penstock.dataset.labels``.
        manifest_version: 0 or 1.
    """

    shard_bytes: int
    label_mode: LabelMode
    manifest_version: int


@dataclass(frozen=True, slots=True)
class Packed:
    """What a pack made; keys as the sink names them, hashes in hex."""

    samples: int
    shards: int
    manifest_key: str
    manifest_hash: str
    labels_key: str | None
    labels_hash: str | None


def run(source: Source, sink: Sink, options: Options, progress: ProgressCallback | None) -> Packed:
    """Pack a source into a sink. On any failure, Ctrl-C among them, what was written is removed again."""
    try:
        sink.open()
        packed = _pack(source, sink, options, _Reporter(progress))
    finally:
        sink.abort()
        source.close()
    return packed


def _pack(source: Source, sink: Sink, options: Options, reporter: _Reporter) -> Packed:
    with Spool(sink.scratch) as spool:
        survey = Survey(source.url)
        reporter.listing(survey)
        spool.extend(survey.watch(source.entries(), lambda: reporter.listing(survey)))
        labels = survey.labels(options.label_mode)
        reporter.start_copying(survey)
        prove("pack_start", source=source.url, samples=survey.samples, bytes=survey.bytes)
        plan = segments(spool, shard_bytes=options.shard_bytes, segment_bytes=SEGMENT_BYTES)
        rows = _Rows(sink, sink.open_manifest(), options.manifest_version, labels)
        shards = _copy(gathered(plan, source), sink, rows, reporter)
    reporter.report("publish")
    labels_text = None if labels is None else write_labels([_text(label) for label in labels])
    manifest_hash = rows.finish()
    sink.publish(labels_text)
    prove("pack_complete", samples=survey.samples, shards=shards, manifest_hash=manifest_hash)
    return Packed(
        samples=survey.samples,
        shards=shards,
        manifest_key=sink.result_key(MANIFEST_KEY),
        manifest_hash=manifest_hash,
        labels_key=None if labels_text is None else sink.result_key(LABELS_KEY),
        labels_hash=None if labels_text is None else hashlib.sha256(labels_text).hexdigest(),
    )


def _copy(filled: Iterable[Gathered], sink: Sink, rows: _Rows, reporter: _Reporter) -> int:
    """Write every segment; returns the number of shards."""
    shard = 0
    for part in filled:
        if part.segment.shard != shard:
            _end_shard(sink, shard)
            shard = part.segment.shard
        sink.write(shard, part.data)
        samples, sample_bytes = rows.add(part)
        reporter.copied(samples, sample_bytes)
    _end_shard(sink, shard)
    return shard + 1


def _end_shard(sink: Sink, shard: int) -> None:
    sink.end_shard()
    prove("pack_upload_shard", shard=shard, location=sink.locate(shard_key(shard)))


def _text(label: bytes) -> str:
    return label.decode("utf-8", "surrogateescape")


class _Rows:
    """Turns segments into rows of the manifest."""

    def __init__(self, sink: Sink, file: BinaryIO, version: int, labels: dict[bytes, int] | None) -> None:
        self._file_name = sink.locate(MANIFEST_KEY)
        self._writer = ManifestWriter(file, version=version)
        self._locate = shard_key if version == 1 else lambda shard: sink.locate(shard_key(shard))
        self._hints = None if labels is None else {label: hint_for(number) for label, number in labels.items()}
        self._piece_crc = 0

    def add(self, part: Gathered) -> tuple[int, int]:
        """Write the rows of the samples that this segment completes; returns samples and payload bytes."""
        segment = part.segment
        if isinstance(segment, FilePiece):
            return self._add_piece(segment, part.data[segment.payload])
        offsets = segment.start + segment.header_offsets + BLOCK_BYTES
        self._write(segment.shard, segment.paths, offsets, segment.sizes, part.crcs)
        return len(segment.paths), int(segment.sizes.sum())

    def finish(self) -> str:
        """The manifest's hash."""
        return self._writer.finish()

    def _add_piece(self, piece: FilePiece, payload: memoryview) -> tuple[int, int]:
        self._piece_crc = _core.crc32c(payload, 0 if piece.is_first else self._piece_crc)
        if piece.is_last:
            columns = np.array([[piece.start + BLOCK_BYTES], [piece.size], [self._piece_crc]])
            self._write(piece.shard, [piece.path], *columns)
        return int(piece.is_last), piece.end - piece.begin

    def _write(
        self,
        shard: int,
        paths: list[bytes],
        offsets: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        crcs: npt.NDArray[np.int64] | None,
    ) -> None:
        hints = "" if self._hints is None else [self._hints[label_of(path) or b""] for path in paths]
        with os_errors(self._file_name, "writing"):
            self._writer.add(self._locate(shard), offsets, sizes, hints, crcs)


class _Reporter:
    """Keeps count for the progress callback."""

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback
        self._done_samples = self._done_bytes = 0
        self._total_samples = self._total_bytes = 0

    def listing(self, survey: Survey) -> None:
        self._done_samples, self._done_bytes = survey.samples, survey.bytes
        self.report("list")

    def start_copying(self, survey: Survey) -> None:
        self._total_samples, self._total_bytes = survey.samples, survey.bytes
        self._done_samples = self._done_bytes = 0
        self.report("copy")

    def copied(self, samples: int, sample_bytes: int) -> None:
        self._done_samples += samples
        self._done_bytes += sample_bytes
        self.report("copy")

    def report(self, stage: Stage) -> None:
        if self._callback is not None:
            counts = (self._done_samples, self._total_samples, self._done_bytes, self._total_bytes)
            self._callback(Progress(*counts, stage))
