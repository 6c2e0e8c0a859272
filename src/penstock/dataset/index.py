"""From a dataset's base to its canonical manifest: the one that was packed with it, or one of its files.

Everything streams: names are sorted on disk, rows are written in chunks, and a million files need no more
memory than a thousand.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from itertools import islice
from typing import IO, Final

from penstock import config
from penstock._core import ManifestParser
from penstock.dataset.labels import LabelMode, hint_for, label_of, labels_active, number_labels, parse_label_mode
from penstock.dataset.links import is_absolute_location, local_path
from penstock.dataset.manifest_store import staging_folder
from penstock.dataset.manifest_text import ManifestWriter, WrittenManifest
from penstock.dataset.spool import Entry, Spool
from penstock.errors import EmptyDataset, ManifestError, ObjectNotFound, PackError, ResolveError
from penstock.proof import prove
from penstock.store import open_store
from penstock.store.base import Store

__all__ = ["MANIFEST_KEY", "canonical_base", "copy_packed_manifest", "write_index"]

MANIFEST_KEY: Final = "_mx8/manifest.tsv"

_SKIPPED: Final = frozenset({b"_mx8", b"shards"})  # what a pack writes into a folder
_LISTED_SCHEMES: Final = ("s3://", "gs://", "az://")
_CHUNK_ROWS: Final = 8192
_PIECE_BYTES: Final = 1 << 20


def canonical_base(base: str) -> str:
    """The base that relative locations are joined to: a folder's real path, or a URL without last slashes."""
    path = local_path(base)
    return base.strip().rstrip("/") if path is None else os.path.realpath(path)


def write_index(base: str, out: IO[bytes], *, version: int) -> WrittenManifest:
    """Write the canonical manifest of what lies below a base.

    A base that was packed has its own manifest, whose version is kept. Else every file becomes a sample,
    without byte range: in a folder sorted by the parts of its path and without label, in an object store
    sorted by key and labelled as ``PENSTOCK_S3_LABEL_MODE`` says.

    Args:
        base: a folder, or a prefix in an object store.
        out: where the text goes; a file that can be read as well, at its beginning.
        version: the manifest version for a base that was not packed.

    Raises:
        ResolveError: nothing of this kind can be listed, or the label mode doesn't fit the files.
        EmptyDataset: there is nothing below the base.
        ManifestError: a name that a manifest can't write, or a packed manifest that doesn't parse.
        StoreError: the store failed.
    """
    store = _open_base(base)
    try:
        packed = _copy_packed(store, out)
    except ManifestError as error:
        raise ManifestError(f"{store.locate(MANIFEST_KEY)}: {error}") from None
    if packed is not None:
        prove("snapshot_index_precomputed_manifest", base=base, rows=packed.rows)
        return packed
    try:
        return _write_listing(store, out, version=version, is_folder=local_path(base) is not None)
    except ManifestError as error:
        raise ManifestError(f"can't index {store.url}: {error}") from None


def copy_packed_manifest(base: str, out: IO[bytes]) -> WrittenManifest | None:
    """Write the canonical form of the manifest that a base was packed with; None when it has none.

    Raises:
        ResolveError, ManifestError, StoreError: as ``write_index``.
    """
    return _copy_packed(_open_base(base), out)


def _open_base(base: str) -> Store:
    path = local_path(base)
    if path.is_dir() if path is not None else base.strip().lower().startswith(_LISTED_SCHEMES):
        return open_store(canonical_base(base))
    if path is not None and not path.exists():
        raise ResolveError(
            f"indexing is not supported for dataset link base: {base}; there is no such directory. Give one that "
            "exists, or a prefix under s3://, gs:// or az://; @refresh and @sha256:<hash> are the only suffixes"
        )
    raise ResolveError(
        f"indexing is not supported for dataset link base: {base}; give a directory that exists, or a prefix "
        "under s3://, gs:// or az://"
    )


def _copy_packed(store: Store, out: IO[bytes]) -> WrittenManifest | None:
    try:
        size = store.size(MANIFEST_KEY)
    except ObjectNotFound:
        return None
    parser, digest = ManifestParser(), hashlib.sha256()
    for piece in store.stream(MANIFEST_KEY, 0, size):
        parser.feed(piece)
        digest.update(piece)
        out.write(piece)
    parser.finish()
    if parser.row_count == 0:
        raise EmptyDataset(f"{store.locate(MANIFEST_KEY)} has no rows; pack the dataset again")
    if parser.canonical:
        return WrittenManifest(digest.hexdigest(), parser.row_count)
    return _canonicalise(out, parser.version)


def _canonicalise(text: IO[bytes], version: int) -> WrittenManifest:
    """Rewrite a text that parses but isn't canonical: written by hand, or with other line ends."""
    with tempfile.TemporaryFile(dir=staging_folder()) as rewritten:
        writer = ManifestWriter(rewritten, version=version)
        text.seek(0)
        rows = (fields for line in text if len(fields := _fields(line)) > 1)
        while chunk := list(islice(rows, _CHUNK_ROWS)):
            _, locations, offsets, lengths, hints, crcs = zip(*chunk, strict=True)
            writer.add(
                locations,
                [int(value) if value else -1 for value in offsets],
                [int(value) if value else -1 for value in lengths],
                hints,
                [int(value, 16) if value else -1 for value in crcs],
            )
        text.seek(0)
        text.truncate()
        rewritten.seek(0)
        shutil.copyfileobj(rewritten, text, _PIECE_BYTES)
        return WrittenManifest(writer.finish(), writer.rows)


def _fields(line: bytes) -> list[str]:
    """A row's six fields; a single one for what isn't a row: the header and blank lines."""
    if not line.strip():
        return [""]
    fields = line.removesuffix(b"\n").removesuffix(b"\r").decode().split("\t")
    return fields if len(fields) == 1 else fields + [""] * (6 - len(fields))


def _write_listing(store: Store, out: IO[bytes], *, version: int, is_folder: bool) -> WrittenManifest:
    mode = "none" if is_folder else parse_label_mode(config.lookup("S3_LABEL_MODE") or "auto")
    separator = b"\0" if is_folder else b"/"
    with Spool(staging_folder()) as spool:
        survey = _LabelSurvey(mode)
        spool.extend(_folder_entries(store) if is_folder else survey.watch(_prefix_entries(store)))
        hints = survey.hints()
        writer = ManifestWriter(out, version=version)
        keys = (path.replace(separator, b"/") for path, _ in spool)
        while chunk := list(islice(keys, _CHUNK_ROWS)):
            names = [key.decode("utf-8", "surrogateescape") for key in chunk]
            locations = [_location(store, name) for name in names] if version else map(store.locate, names)
            labels = [hints[label_of(key) or b""] for key in chunk] if hints else ""
            writer.add(list(locations), hints=labels)
    if writer.rows == 0:
        prove("snapshot_index_empty", base=store.url)
        what = "local index produced zero files" if is_folder else "index produced zero objects"
        raise EmptyDataset(f"{what}: nothing lies below {store.url}")
    return WrittenManifest(writer.finish(), writer.rows)


def _folder_entries(store: Store) -> Iterator[Entry]:
    """Files of a folder, under names that sort by the parts of their paths: no byte in them is below NUL."""
    for info in store.list():
        key = info.key.encode("utf-8", "surrogateescape")
        if _SKIPPED.isdisjoint(key.split(b"/")):
            yield key.replace(b"/", b"\0"), info.size_bytes


def _prefix_entries(store: Store) -> Iterator[Entry]:
    for info in store.list():
        if not info.key.startswith("_mx8/"):
            yield info.key.encode("utf-8", "surrogateescape"), info.size_bytes


def _location(store: Store, key: str) -> str:
    """The key itself, unless a reader would not take it for a relative location."""
    return store.locate(key) if is_absolute_location(key) or ".." in key.split("/") else key


class _LabelSurvey:
    """Which labels the keys have that pass by; memory grows with the number of labels."""

    def __init__(self, mode: LabelMode) -> None:
        self._mode = mode
        self._labels: set[bytes] = set()
        self._unlabelled: bytes | None = None

    def watch(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """Pass entries on, noting their labels."""
        for entry in entries:
            label = label_of(entry[0])
            if label is not None:
                self._labels.add(label)
            elif self._unlabelled is None or entry[0] < self._unlabelled:
                self._unlabelled = entry[0]
            yield entry

    def hints(self) -> dict[bytes, str]:
        """The decode hint of each label; empty when the samples carry none."""
        try:
            active = labels_active(self._mode, unlabelled=self._unlabelled, label_count=len(self._labels))
        except PackError as error:
            raise ResolveError(str(error)) from None
        if not active:
            return {}
        return {label: hint_for(number) for label, number in number_labels(self._labels).items()}
