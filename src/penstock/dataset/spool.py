"""A sorted list of any length in a fixed amount of memory.

Entries are collected in runs; a full run is sorted and written to an unnamed temporary file, and the runs are
merged when the list is read. The file is gone when the spool is closed, and when the process dies.
"""

from __future__ import annotations

import heapq
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

from penstock.store.oserrors import os_errors

__all__ = ["Entry", "Spool"]

Entry: TypeAlias = tuple[bytes, int]
"""A path relative to the source's root, and a size in bytes."""

RUN_ENTRIES = 1 << 16
RUN_BYTES = 8 << 20
MAX_MERGED_RUNS = 64
READ_BYTES = 128 << 10

_RECORD_HEAD = struct.Struct("<QI")  # size, length of the path


class Spool:
    """Entries on disk, in the byte order of their paths.

    Holds at most one run in memory while it is filled (64 Ki entries, 8 MiB of paths), and 64 pieces of 128
    KiB while it is read. Use as a context manager.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Start an empty spool.

        Args:
            folder: where its file is made; None for the system's folder of temporary files.

        Raises:
            StoreError: the file can't be made; later, ``StoreFull`` when the disk is full.
        """
        self._place = f"a temporary file in {folder or tempfile.gettempdir()}"
        with os_errors(self._place, "writing"):
            self._file = tempfile.TemporaryFile(dir=folder, prefix=".staging-spool-", buffering=1 << 20)  # noqa: SIM115
        self._runs: list[tuple[int, int]] = []

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what couldn't be flushed has been reported, and isn't wanted any more
            self._file.close()

    def extend(self, entries: Iterable[Entry]) -> None:
        """Take in entries, in any order."""
        run: list[Entry] = []
        path_bytes = 0
        for entry in entries:
            run.append(entry)
            path_bytes += len(entry[0])
            if len(run) >= RUN_ENTRIES or path_bytes >= RUN_BYTES:
                self._write_run(sorted(run))
                run.clear()
                path_bytes = 0
        self._write_run(sorted(run))

    def __iter__(self) -> Iterator[Entry]:
        """All entries in order. The spool must not be extended meanwhile."""
        while len(self._runs) > MAX_MERGED_RUNS:
            oldest, self._runs = self._runs[:MAX_MERGED_RUNS], self._runs[MAX_MERGED_RUNS:]
            self._write_run(self._merge(oldest))
        return self._merge(self._runs)

    def _write_run(self, run: Iterable[Entry]) -> None:
        start = self._file.seek(0, os.SEEK_END)
        pack, write = _RECORD_HEAD.pack, self._file.write
        with os_errors(self._place, "writing"):
            for path, size in run:
                write(pack(size, len(path)) + path)
            self._file.flush()
        end = self._file.tell()
        if end > start:
            self._runs.append((start, end))

    def _merge(self, runs: list[tuple[int, int]]) -> Iterator[Entry]:
        streams = [_read_run(self._file.fileno(), start, end) for start, end in runs]
        return streams[0] if len(streams) == 1 else heapq.merge(*streams)


def _read_run(fd: int, position: int, end: int) -> Iterator[Entry]:
    head_bytes, unpack = _RECORD_HEAD.size, _RECORD_HEAD.unpack_from
    rest = b""
    while position < end:
        block = rest + os.pread(fd, min(READ_BYTES, end - position), position)
        position += len(block) - len(rest)
        at = 0
        while at + head_bytes <= len(block):
            size, path_bytes = unpack(block, at)
            path_end = at + head_bytes + path_bytes
            if path_end > len(block):
                break
            yield block[at + head_bytes : path_end], size
            at = path_end
        rest = block[at:]
