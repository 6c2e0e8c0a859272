"""Fills segments of the shards, a few ahead of the one that is being written.

Memory is a constant: one buffer of ``SEGMENT_BYTES`` for each reader, and one more for the writer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penstock import _core
from penstock.errors import DeadlineExceeded
from penstock.packing.plan import FilePiece, Segment, WholeFiles
from penstock.packing.source import Source
from penstock.packing.tar import BLOCK_BYTES, extension_of, headers
from penstock.packing.threads import drain

__all__ = ["SEGMENT_BYTES", "Gathered", "gathered"]

SEGMENT_BYTES = 8 << 20
SEGMENT_DEADLINE_S = 900.0  # for 8 MiB: beyond any retry of an object store's client


@dataclass(frozen=True, slots=True)
class Gathered:
    """A filled segment.

    Attributes:
        segment: its plan.
        data: its bytes, valid until the next segment is asked for.
        crcs: crc32c of each of its samples; None for a ``FilePiece``, which is only a part of one.
    """

    segment: Segment
    data: memoryview
    crcs: npt.NDArray[np.int64] | None


def gathered(segments: Iterable[Segment], source: Source) -> Iterator[Gathered]:
    """Fill segments from a source, in order.

    Raises:
        DeadlineExceeded: a segment took longer than its deadline.
    """
    free = [memoryview(bytearray(SEGMENT_BYTES)) for _ in range(source.readers + 1)]
    filling: deque[tuple[Future[Gathered], memoryview]] = deque()
    pool = ThreadPoolExecutor(source.readers, "penstock-pack")
    try:
        for segment in segments:
            buffer = free.pop()
            filling.append((pool.submit(_fill, segment, source, buffer), buffer))
            if not free:
                yield _result(filling[0][0])
                free.append(filling.popleft()[1])
        while filling:
            yield _result(filling[0][0])
            filling.popleft()
    finally:
        pool.shutdown(wait=False)
        drain(future for future, _ in filling)


def _result(future: Future[Gathered]) -> Gathered:
    try:
        return future.result(SEGMENT_DEADLINE_S)
    except TimeoutError as error:
        if isinstance(error, DeadlineExceeded):
            raise
        raise DeadlineExceeded(f"no answer from the source within {SEGMENT_DEADLINE_S:.0f} s") from None


def _fill(segment: Segment, source: Source, buffer: memoryview) -> Gathered:
    data = buffer[: segment.stream_bytes]
    if isinstance(segment, WholeFiles):
        return Gathered(segment, data, _fill_files(segment, source, data))
    _fill_piece(segment, source, data)
    return Gathered(segment, data, None)


def _fill_files(files: WholeFiles, source: Source, data: memoryview) -> npt.NDArray[np.int64]:
    blocks = np.frombuffer(data, np.uint8).reshape(-1, BLOCK_BYTES)
    header_blocks = files.header_offsets // BLOCK_BYTES
    blocks[header_blocks[1:] - 1] = 0  # the last block of each member, for its padding
    blocks[-1] = 0
    blocks[header_blocks] = headers(files.first_id, [extension_of(path) for path in files.paths], files.sizes)
    source.read_files(files, data)
    return _core.crc32c_many(data, files.header_offsets + BLOCK_BYTES, files.sizes).astype(np.int64)


def _fill_piece(piece: FilePiece, source: Source, data: memoryview) -> None:
    if piece.is_first:
        size = np.array([piece.size], np.int64)
        data[:BLOCK_BYTES] = headers(piece.sample_id, [extension_of(piece.path)], size)[0].data
    data[piece.payload.stop :] = bytes(len(data) - piece.payload.stop)
    source.read_piece(piece, data[piece.payload])
