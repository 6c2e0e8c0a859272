"""A locked file that commits are appended to: the steps on disk, in the order that makes them safe."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path

from penstock.coordinator.journal.lines import Head, read_head, write_line
from penstock.store.files import flush_folder

__all__ = ["LogFile", "leader_in", "locked"]

_HEAD_BYTES = 4096


class LogFile:
    """The file that we lead by.

    Attributes:
        size_bytes: of all of it.
        whole_bytes: that it was begun with.
    """

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self._descriptor = descriptor
        self._identity = _identity(os.fstat(descriptor))
        self._lines = 2
        self.size_bytes = self.whole_bytes = size_bytes

    @classmethod
    def begun(cls, path: Path, head: Head, records: Mapping[str, str]) -> LogFile:
        """A new file in the place of what was there, with these records; locked. Only for who has that one locked."""
        data = write_line(0, head.as_json()) + write_line(1, records)
        new = path.with_name(f"{path.name}.new")
        descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # before anybody can find it in its place
            _write_all(descriptor, data)
            os.fsync(descriptor)
            new.rename(path)
            flush_folder(str(path.parent))
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor, len(data))

    def append(self, changes: Mapping[str, str | None]) -> None:
        """Add a commit; it is on the disk when this returns."""
        line = write_line(self._lines, changes)
        _write_all(self._descriptor, line)
        os.fdatasync(self._descriptor)
        self._lines += 1
        self.size_bytes += len(line)

    def is_at(self, path: Path) -> bool:
        """Whether this is the file that others find there."""
        try:
            return _identity(path.stat()) == self._identity
        except OSError:
            return False

    def close(self) -> None:
        """Let others have it."""
        os.close(self._descriptor)


def locked(path: Path) -> int | None:
    """A descriptor of the file, made if it isn't there, that holds its lock; None = somebody else does."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _identity(os.fstat(descriptor)) == _identity(path.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # another took its place before we had it


def leader_in(path: Path) -> str | None:
    """The address in a file that somebody has locked."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            head = read_head(file.read(_HEAD_BYTES))
            return head.leader if head else None
    return None


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
