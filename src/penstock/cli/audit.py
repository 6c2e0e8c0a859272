"""What ``penstock verify`` does: read every byte again and compare checksums, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from penstock._core import crc32c
from penstock.cli.summary import location_of
from penstock.dataset.manifest import Manifest
from penstock.dataset.resolve import Resolved
from penstock.errors import DataError, PenstockError, SampleChanged, ShardCorrupt, StoreError
from penstock.loader.fetch import Fetcher
from penstock.loader.plan import Unit
from penstock.order.order import Int64Array
from penstock.store import open_store, split_location

__all__ = ["MOST_BAD_SAMPLES", "Audit", "BadSample", "audit"]

MOST_BAD_SAMPLES: Final = 1000
"""After this many an audit ends: a missing shard must not be asked for once for each of a million samples."""

_BUFFER_BYTES: Final = 32 << 20
_ROWS: Final = 8192


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample whose bytes are not what the manifest says, and why."""

    sample_id: int
    location: str
    offset: int
    reason: str


@dataclass(slots=True)
class Audit:
    """How far an audit has come; at its end, its result.

    Attributes:
        read_samples: samples that were read whole.
        read_bytes: their bytes, and those of the bad ones as far as the manifest knows them.
        unchecked_samples: those that were read but have no checksum: only their length could be compared.
        bad: samples that failed, at most ``MOST_BAD_SAMPLES``.
    """

    total_samples: int
    total_bytes: int
    read_samples: int = 0
    read_bytes: int = 0
    unchecked_samples: int = 0
    bad: list[BadSample] = field(default_factory=list)

    @property
    def gave_up(self) -> bool:
        """Whether the audit ended early because too much is bad."""
        return len(self.bad) >= MOST_BAD_SAMPLES


def audit(resolved: Resolved, progress: Callable[[Audit], None]) -> Audit:
    """Read every sample of a dataset and compare it with its checksum.

    At most 32 MiB of payload are held at a time, however large the samples are.

    Args:
        resolved: the dataset.
        progress: called after every few MiB.
    """
    manifest = resolved.manifest
    state = Audit(manifest.row_count, _total_bytes(manifest))
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    with closing(Fetcher(resolved)) as fetcher:
        for ids in _portions(manifest):
            if not _fetch(fetcher, manifest, ids, buffer):
                _check_one_by_one(resolved, ids, state, progress)
            else:
                _count_good(state, manifest, ids)
            progress(state)
            if state.gave_up:
                break
    return state


def _total_bytes(manifest: Manifest) -> int:
    return sum(
        int(np.maximum(manifest.length[start : start + _ROWS], 0).sum()) for start in range(0, len(manifest), _ROWS)
    )


def _portions(manifest: Manifest) -> Iterator[Int64Array]:
    """Rows that fit into the buffer together; a row that doesn't, or whose size isn't known, comes alone."""
    for start in range(0, manifest.row_count, _ROWS):
        lengths = np.asarray(manifest.length[start : start + _ROWS])
        weights = np.where((lengths < 0) | (lengths > _BUFFER_BYTES), _BUFFER_BYTES + 1, lengths)
        ends = np.cumsum(weights)
        begin = 0
        while begin < len(weights):
            taken = ends[begin] - weights[begin]
            end = max(begin + 1, int(np.searchsorted(ends, taken + _BUFFER_BYTES, side="right")))
            yield np.arange(start + begin, start + end, dtype=np.int64)
            begin = end


def _fetch(fetcher: Fetcher, manifest: Manifest, ids: Int64Array, buffer: memoryview) -> bool:
    """Read and check many samples at once; False when one of them needs a closer look."""
    unit = Unit(
        index=0,
        sample_ids=ids,
        locations=manifest.location_index[ids].astype(np.int64),
        offsets=manifest.offset[ids],
        lengths=manifest.length[ids],
        crcs=manifest.crc32c[ids],
        labels=None,
    )
    if (unit.lengths < 0).any() or unit.payload_bytes > len(buffer):
        return False
    try:
        fetcher.fetch(unit, buffer[: unit.payload_bytes])
    except (DataError, StoreError):
        return False
    return True


def _count_good(state: Audit, manifest: Manifest, ids: Int64Array) -> None:
    state.read_samples += len(ids)
    state.read_bytes += int(manifest.length[ids].sum())
    state.unchecked_samples += int((manifest.crc32c[ids] < 0).sum())


def _check_one_by_one(resolved: Resolved, ids: Int64Array, state: Audit, progress: Callable[[Audit], None]) -> None:
    for sample_id in ids.tolist():
        before = state.read_bytes
        try:
            _check_streaming(resolved, sample_id, state, progress)
        except (DataError, StoreError) as error:
            state.read_bytes = before + max(int(resolved.manifest.length[sample_id]), 0)
            offset = int(resolved.manifest.offset[sample_id])
            state.bad.append(BadSample(sample_id, location_of(resolved, sample_id), offset, _reason(error)))
            if state.gave_up:
                return


def _check_streaming(resolved: Resolved, sample_id: int, state: Audit, progress: Callable[[Audit], None]) -> None:
    """Read one sample of any size, a piece at a time."""
    manifest = resolved.manifest
    root, key = split_location(location_of(resolved, sample_id))
    store = open_store(root)
    offset, length, expected = (
        int(column[sample_id]) for column in (manifest.offset, manifest.length, manifest.crc32c)
    )
    start = max(offset, 0)
    size = store.size(key) - start if length < 0 or offset < 0 else length
    if 0 <= length != size:
        raise SampleChanged(f"the object has {size} bytes, its manifest says {length}")
    found = 0
    for piece in store.stream(key, start, start + size):
        found = crc32c(piece, found)
        state.read_bytes += len(piece)
        progress(state)
    if expected >= 0 and found != expected:
        raise ShardCorrupt(f"its bytes have crc32c {found:08x}, its manifest says {expected:08x}")
    state.read_samples += 1
    state.unchecked_samples += expected < 0


def _reason(error: PenstockError) -> str:
    return f"{type(error).__name__}: {error}"
