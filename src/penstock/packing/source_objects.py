"""A prefix of an object store as the source of a pack."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from penstock.dataset.spool import Entry
from penstock.errors import DeadlineExceeded
from penstock.packing.plan import FilePiece, WholeFiles
from penstock.packing.sink import is_shard_key
from penstock.packing.tar import BLOCK_BYTES
from penstock.packing.threads import drain
from penstock.store.base import Store

__all__ = ["ObjectSource"]

_FETCHERS = 16  # the store's own limit on requests, which adapts, decides how many really run
_FILES_DEADLINE_S = 900.0  # for the files of one segment, some MiB: beyond the store's own retries


class ObjectSource:
    """Every object below a prefix but ``_mx8/...`` and ``shards/shard-NNNNN.tar``, which a pack writes there."""

    readers = 2  # one segment's last objects and the next one's first are fetched side by side

    def __init__(self, store: Store) -> None:
        self._store = store
        self.url = store.url
        self._fetchers = ThreadPoolExecutor(_FETCHERS, "penstock-fetch")

    def entries(self) -> Iterator[Entry]:
        """Key and size of every object, page by page."""
        for found in self._store.list():
            if not found.key.startswith("_mx8/") and not is_shard_key(found.key):
                yield found.key.encode(), found.size_bytes

    def read_files(self, files: WholeFiles, segment: memoryview) -> None:
        """Fetch each object to its place behind its header, several at once."""
        fetching = []
        for path, size, header in zip(files.paths, files.sizes.tolist(), files.header_offsets.tolist(), strict=True):
            data = segment[header + BLOCK_BYTES : header + BLOCK_BYTES + size]
            fetching.append(self._fetchers.submit(self._fetch, path, 0, size, data))
        try:
            self._wait(fetching)
        finally:
            drain(fetching)

    def read_piece(self, piece: FilePiece, data: memoryview) -> None:
        """Fill ``data`` with a range of one object."""
        self._fetch(piece.path, piece.begin, piece.size, data)

    def close(self) -> None:
        """Let go of the threads."""
        self._fetchers.shutdown(wait=False, cancel_futures=True)

    def _wait(self, fetching: list[Future[None]]) -> None:
        done, pending = wait(fetching, _FILES_DEADLINE_S, FIRST_EXCEPTION)
        for future in fetching:
            if future in done:
                future.result(0)
        if pending:
            raise DeadlineExceeded(f"{self.url}: {len(pending)} objects are missing after {_FILES_DEADLINE_S:.0f} s")

    def _fetch(self, path: bytes, begin: int, size: int, data: memoryview) -> None:
        """Copy ``len(data)`` bytes from ``begin`` on of an object that should have ``size`` bytes."""
        filled = 0
        for piece in self._store.stream(path.decode(), begin, begin + len(data), object_bytes=size):
            data[filled : filled + len(piece)] = piece
            filled += len(piece)
