"""Where every byte of the shards comes from: pure arithmetic over paths and sizes.

The archives are cut into segments of bounded size. A segment is either a row of whole samples or a piece of
one sample that is larger than a segment. Segments come in the order of their bytes; a shard ends where the
next segment's shard begins, and at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penstock.packing.tar import BLOCK_BYTES, member_bytes, padding_bytes

__all__ = ["FilePiece", "Segment", "WholeFiles", "segments"]


@dataclass(frozen=True, slots=True)
class WholeFiles:
    """Consecutive samples that lie side by side in one shard.

    Attributes:
        shard: number of the shard.
        start: position of the first header in the shard.
        first_id: sample id of the first.
        paths: their paths relative to the source's root.
        sizes: their sizes in bytes, int64.
        header_offsets: position of each header, counted from ``start``, int64.
        stream_bytes: what the segment takes in the shard.
    """

    shard: int
    start: int
    first_id: int
    paths: list[bytes]
    sizes: npt.NDArray[np.int64]
    header_offsets: npt.NDArray[np.int64]
    stream_bytes: int


@dataclass(frozen=True, slots=True)
class FilePiece:
    """Bytes ``[begin, end)`` of one large sample; the first piece has its header, the last its padding.

    Attributes:
        shard: number of the shard.
        start: position of the sample's header in the shard, the same for all its pieces.
        sample_id: the sample.
        path: its path relative to the source's root.
        size: its size in bytes.
    """

    shard: int
    start: int
    sample_id: int
    path: bytes
    size: int
    begin: int
    end: int

    @property
    def is_first(self) -> bool:
        """Whether the sample's header belongs before this piece."""
        return self.begin == 0

    @property
    def is_last(self) -> bool:
        """Whether the sample's padding belongs after this piece."""
        return self.end == self.size

    @property
    def payload(self) -> slice:
        """Where the sample's bytes lie in the segment."""
        head = BLOCK_BYTES if self.is_first else 0
        return slice(head, head + self.end - self.begin)

    @property
    def stream_bytes(self) -> int:
        """What the piece takes in the shard, header and padding included."""
        head = BLOCK_BYTES if self.is_first else 0
        return head + self.end - self.begin + (padding_bytes(self.size) if self.is_last else 0)


Segment = WholeFiles | FilePiece


def segments(entries: Iterable[tuple[bytes, int]], *, shard_bytes: int, segment_bytes: int) -> Iterator[Segment]:
    """Lay samples out in shards and cut the shards into segments.

    A shard is closed when it isn't empty and the next sample's header, data and padding would take it beyond
    ``shard_bytes``; the archive's end marker doesn't count. So a sample larger than that has a shard to
    itself.

    Args:
        entries: path and size of each sample, in the order of their ids.
        shard_bytes: where shards are split.
        segment_bytes: the most that a segment takes, more than 1024.

    Yields:
        Segments in the order of ids, hence of shards and positions.
    """
    row = _Row(0, 0, 0)
    for path, size in entries:
        needed = member_bytes(size)
        if row.end and row.end + needed > shard_bytes:
            yield from row.cut()
            row = _Row(row.shard + 1, 0, row.next_id)
        if needed > segment_bytes:
            yield from row.cut()
            yield from _pieces(row, path, size, segment_bytes)
            row = _Row(row.shard, row.end + needed, row.next_id + 1)
            continue
        if row.end - row.start + needed > segment_bytes:
            yield from row.cut()
            row = _Row(row.shard, row.end, row.next_id)
        row.add(path, size, needed)
    yield from row.cut()


class _Row:
    """Whole samples collected for the segment that starts at ``start``."""

    __slots__ = ("end", "first_id", "paths", "shard", "sizes", "start")

    def __init__(self, shard: int, start: int, first_id: int) -> None:
        self.shard, self.start, self.end, self.first_id = shard, start, start, first_id
        self.paths: list[bytes] = []
        self.sizes: list[int] = []

    @property
    def next_id(self) -> int:
        return self.first_id + len(self.paths)

    def add(self, path: bytes, size: int, needed: int) -> None:
        self.paths.append(path)
        self.sizes.append(size)
        self.end += needed

    def cut(self) -> Iterator[WholeFiles]:
        if self.paths:
            sizes = np.array(self.sizes, np.int64)
            taken = BLOCK_BYTES + sizes + -sizes % BLOCK_BYTES
            offsets = np.cumsum(taken) - taken
            stream_bytes = self.end - self.start
            yield WholeFiles(self.shard, self.start, self.first_id, self.paths, sizes, offsets, stream_bytes)


def _pieces(row: _Row, path: bytes, size: int, segment_bytes: int) -> Iterator[FilePiece]:
    piece_bytes = segment_bytes - 2 * BLOCK_BYTES  # leaves room for a header and padding in any piece
    for begin in range(0, size, piece_bytes):
        yield FilePiece(row.shard, row.end, row.next_id, path, size, begin, min(begin + piece_bytes, size))
