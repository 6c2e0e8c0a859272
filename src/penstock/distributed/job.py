"""Work on all samples of a shared job, with output that is there once: ``run_job``.

What comes of a batch is written as a part, named by its samples and the fence of its lease, before the batch counts as
done. Whoever dies in between leaves a part that somebody else's, of a larger fence, replaces; ``parts`` decides which
ones count. At the end ``_SUCCESS.json`` lists them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar

from penstock.distributed.parts import Part, gaps, part_key, read_part, standing
from penstock.errors import ConfigError, DataError
from penstock.proof import prove
from penstock.store import Buffer, Store, open_store

if TYPE_CHECKING:
    import pyarrow

__all__ = ["SUCCESS", "JobOutput", "Result", "SharedLoader", "finish_job", "run_job"]

SUCCESS: Final = "_SUCCESS.json"
"""Written last: which parts count. Who reads the output reads these, and nothing else that lies there."""

FORMAT: Final = 1

Batch_co = TypeVar("Batch_co", covariant=True)
Batch = TypeVar("Batch")

Result: TypeAlias = "Buffer | str | Sequence[Any] | pyarrow.Table"
"""What may come of a batch: bytes as they are, text, one value a sample (lines of JSON), or a table (Parquet)."""


class _Portion(Protocol):
    """The samples of a batch, and whose they are."""

    @property
    def epoch(self) -> int:
        """Of the job."""

    @property
    def start(self) -> int:
        """First sample id."""

    @property
    def end(self) -> int:
        """Behind the last."""

    @property
    def fence(self) -> int:
        """Of the lease."""


class SharedLoader(Protocol[Batch_co]):
    """What is needed of a loader of a shared job, such as ``DistributedDataLoader``."""

    def __iter__(self) -> Iterator[Batch_co]:
        """Batches, until all samples of the job are done, on all nodes."""

    @property
    def in_hand(self) -> _Portion | None:
        """Which samples this thread was given last."""

    @property
    def samples_in_hand(self) -> int:
        """How many of them that batch has; faulty ones that were left out don't count."""

    @property
    def sample_count(self) -> int:
        """How many samples the job has, on all nodes together."""

    @property
    def manifest_hash(self) -> str:
        """Of those samples."""

    def stats(self) -> dict[str, Any]:
        """Also ``leases_lost_total``."""

    def count_by_hand(self) -> None:
        """From now on a batch counts as done only when ``done`` says so."""

    def done(self) -> None:
        """The batch that this thread was given last is done."""


@dataclass(frozen=True, slots=True)
class JobOutput:
    """Where a job's output is.

    Attributes:
        url: of the folder, or the prefix of the object store.
        parts: names of those that count, in the order of their samples.
        written: parts that this node wrote.
        written_bytes: in them.
    """

    url: str
    parts: tuple[str, ...]
    written: int
    written_bytes: int


def run_job(loader: SharedLoader[Batch], fn: Callable[[Batch], Result], *, out: str | os.PathLike[str]) -> JobOutput:
    """Call ``fn`` with each batch of a shared job, and keep what it returns, so that each sample's is there once.

    Run it on every node, with the same ``out``. A node that dies, is cut off, or is run again loses or repeats nothing:
    a batch counts as done only after its part is written, and what was written but never counted doesn't stand. ``fn``
    itself may see a sample again, so it does nothing but return. It returns when the samples of all nodes are done and
    ``_SUCCESS.json`` says which parts hold them.

    Args:
        loader: ``DistributedDataLoader``, ``DistributedLoader``, or alike. It isn't closed.
        fn: gives what becomes of a batch: ``bytes`` (a part ``.bin``), ``str`` (``.txt``), a list or tuple with one
            value for each sample (``.jsonl``, one line of JSON each), or a ``pyarrow.Table`` (``.parquet``). Each part
            is one batch, so the loader's batch size is theirs.
        out: a folder, or the URL of a folder in an object store. What an earlier job of these samples left there is
            replaced when this one is done.

    Returns:
        Where the output is.

    Raises:
        ConfigError: ``fn`` returned what can't be written, or not one value for each sample; or batches were taken of
            the loader before, or a batch of it wasn't done, as ``fn`` raised: give it another loader.
        DataError: parts are missing, or those of another job are in the way.
        StoreError: a part can't be written.
        PenstockError: what the loader raises. And whatever ``fn`` does; the batch isn't done then, and goes to others.
    """
    store = open_store(os.fspath(out))
    loader.count_by_hand()
    written = written_bytes = 0
    last: Part | None = None
    for batch in loader:
        portion = _in_hand(loader)
        data, suffix = _encoded(fn(batch), loader.samples_in_hand)
        del batch  # its memory is free for the next one
        digest = hashlib.sha256(data).hexdigest()[:16]
        last = Part(portion.epoch, portion.start, portion.end, portion.fence, digest, suffix)
        _write(store, part_key(last), data)
        loader.done()
        written, written_bytes = written + 1, written_bytes + len(data)
    parts = finish_job(store, sample_count=loader.sample_count, manifest_hash=loader.manifest_hash)
    if last is not None and not loader.stats()["leases_lost_total"] and part_key(last) not in set(parts):
        raise DataError(
            f"{store.url} has parts of another job whose fences are larger, as the clock of that job's coordinator was "
            "ahead; give this job a folder of its own, or remove what lies there, and run it again"
        )
    return JobOutput(store.url, parts, written, written_bytes)


def finish_job(store: Store, *, sample_count: int, manifest_hash: str) -> tuple[str, ...]:
    """Say which parts count, and remove the others. For when all samples are done; every node may do it, at any time.

    Args:
        store: where the parts are.
        sample_count: samples of the job.
        manifest_hash: of them.

    Returns:
        The names of the parts that count.

    Raises:
        DataError: together they don't hold every sample once; nothing was removed.
        StoreError: the store fails.
    """
    sizes = {part: info.size_bytes for info in store.list() if (part := read_part(info.key)) is not None}
    stand = standing(sizes)
    _check_whole(stand, sample_count, store.url)
    text = {
        "format": FORMAT,
        "manifest_hash": manifest_hash,
        "samples": sample_count,
        "epochs": sorted({part.epoch for part in stand}),
        "parts": [_line(part, sizes[part]) for part in stand],
    }
    store.put(SUCCESS, json.dumps(text, indent=1).encode())
    orphans = sorted(set(sizes) - set(stand))
    for part in orphans:
        store.delete(part_key(part))
    prove("output_complete", out=store.url, parts=len(stand), orphans=len(orphans), samples=sample_count)
    return tuple(part_key(part) for part in stand)


def _line(part: Part, size_bytes: int) -> dict[str, Any]:
    return {
        "name": part_key(part),
        "epoch": part.epoch,
        "start": part.start,
        "end": part.end,
        "bytes": size_bytes,
        "sha256_begins": part.digest,
    }


def _check_whole(stand: list[Part], sample_count: int, url: str) -> None:
    for epoch in sorted({part.epoch for part in stand} or {0}):
        own = [part for part in stand if part.epoch == epoch]
        missing = [f"[{start}, {end})" for start, end in gaps(own, sample_count)]
        foreign = [part_key(part) for part in own if part.end > sample_count]
        twice = [part_key(part) for part, other in pairwise(own) if part.end > other.start]
        for what, found in (("missing", missing), ("of other samples", foreign), ("there twice", twice)):
            if found:
                told = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
                raise DataError(
                    f"{url} doesn't hold samples 0 to {sample_count - 1} of epoch {epoch} once: {told}: {what}. "
                    "Another job's output lies there, or parts were removed; give each job a folder of its own"
                )


def _in_hand(loader: SharedLoader[Any]) -> _Portion:
    portion = loader.in_hand
    if portion is None:
        raise ConfigError("run_job has its loader to itself: another loop took batches of it in this thread")
    if not portion.fence:
        raise ConfigError(
            "this coordinator's leases have no fences, so nobody could tell which output counts; use ours"
        )
    return portion


def _encoded(result: Result, samples: int) -> tuple[bytes, str]:
    """What is written of a result, and the end of its part's name."""
    if isinstance(result, bytes | bytearray | memoryview):
        return bytes(result), ".bin"
    if isinstance(result, str):
        return _utf8(result), ".txt"
    if isinstance(result, list | tuple):
        return _lines(result, samples), ".jsonl"
    if type(result).__module__.partition(".")[0] == "pyarrow" and type(result).__name__ == "Table":
        return _parquet(result), ".parquet"
    raise ConfigError(
        f"run_job: fn returned {type(result).__name__}; it returns bytes, str, a list with one value for each sample, "
        "or a pyarrow.Table (b'' where there is nothing to keep)"
    )


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"run_job: fn returned a str that UTF-8 can't hold ({error.reason}, at {error.start}); give bytes, or "
            "leave lone surrogates out"
        ) from error


def _lines(values: Sequence[Any], samples: int) -> bytes:
    if len(values) != samples:
        raise ConfigError(
            f"run_job: fn returned {len(values)} values for {samples} samples; give one for each, or bytes"
        )
    try:
        return "".join(f"{json.dumps(value, allow_nan=False)}\n" for value in values).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"run_job: fn returned a value that JSON can't hold: {error}; give plain Python values (of NumPy's and "
            "torch's, .tolist()), bytes or a table"
        ) from error


def _parquet(table: Any) -> bytes:
    from pyarrow import parquet

    written = io.BytesIO()
    parquet.write_table(table, written)
    return written.getvalue()


def _write(store: Store, key: str, data: bytes) -> None:
    writer = store.open_writer(key)
    try:
        writer.write(data)
        writer.commit()
    except BaseException:
        writer.abort()
        raise
