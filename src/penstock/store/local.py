"""Objects as files below a folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from penstock.errors import ClosedError, ObjectNotFound, PreconditionFailed, SampleChanged, StoreError
from penstock.store.base import Buffer, ObjectInfo, Writer
from penstock.store.files import TEMPORARY_PREFIX, NewFile, flush_folder, folder_lock
from penstock.store.oserrors import os_errors
from penstock.store.passed_over import PassedOver
from penstock.store.urls import check_key, check_range

__all__ = ["PIECE_BYTES", "LocalStore"]

PIECE_BYTES = 1 << 20
"""Size of a streamed piece but the last."""


class LocalStore:
    """A folder. Satisfies ``Store``.

    A file is written under a temporary name beside its target, flushed to the disk and renamed; a crash leaves
    no more than a temporary file. Writers of one folder keep each other out while they rename.

    Args:
        root: the folder; it may not exist yet.
    """

    def __init__(self, root: str) -> None:
        self._root = os.path.abspath(root)  # noqa: PTH100 - keeps symlinks as they are written

    @property
    def url(self) -> str:
        """The folder."""
        return self._root

    def locate(self, key: str) -> str:
        """The path of a key."""
        return os.path.join(self._root, key)  # noqa: PTH118 - paths are text in this layer

    def size(self, key: str) -> int:
        """Size of a file in bytes."""
        path = self._path(key)
        with os_errors(path, "sizing"):
            return _regular(os.stat(path), path).st_size  # noqa: PTH116

    def read(self, key: str) -> bytes:
        """All of a small file."""
        path = self._path(key)
        with os_errors(path, "reading"), os.fdopen(_open_to_read(path), "rb") as file:
            return file.read()

    def stream(self, key: str, start: int, end: int, *, object_bytes: int | None = None) -> Iterator[Buffer]:
        """Bytes ``[start, end)`` of a file, in pieces of 1 MiB, each valid until the next one is asked for."""
        path = self._path(key)
        check_range(start, end, location=path)
        return _pieces(path, start, end, object_bytes)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every file below a prefix, in the file system's order; memory grows with the depth alone."""
        prefix = prefix.rstrip("/")
        return _walk(self._path(prefix), f"{prefix}/") if prefix else _walk(self._root, "")

    def put(self, key: str, data: Buffer) -> None:
        """Write a small file whole and durably."""
        with self._written(key, data) as new, folder_lock(new.folder):
            new.replace_target()

    def put_if_absent(self, key: str, data: Buffer) -> None:
        """Write a small file only if nothing has its name."""
        with self._written(key, data) as new:
            new.claim_target()

    def version(self, key: str) -> str | None:
        """Inode, time of writing to the nanosecond, and size."""
        path = self._path(key)
        try:
            with os_errors(path, "looking at"):
                found = os.stat(path)  # noqa: PTH116
        except ObjectNotFound:
            return None
        return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"

    def replace(self, key: str, data: Buffer, version: str) -> None:
        """Write a small file only if its version is still this one."""
        with self._written(key, data) as new, folder_lock(new.folder):
            if self.version(key) != version:
                raise PreconditionFailed(f"{self.locate(key)}: somebody else wrote since it was read; read it again")
            new.replace_target()

    def delete(self, key: str) -> None:
        """Remove a file; no error when it is absent."""
        path = self._path(key)
        folder = os.path.dirname(path)  # noqa: PTH120
        try:
            with os_errors(path, "deleting"), folder_lock(folder):
                os.unlink(path)  # noqa: PTH108
                flush_folder(folder)
        except ObjectNotFound:
            return

    def open_writer(self, key: str) -> Writer:
        """Start a new file of any size."""
        return LocalWriter(self._path(key))

    def _path(self, key: str) -> str:
        return self.locate(check_key(key, root=self._root))

    @contextmanager
    def _written(self, key: str, data: Buffer) -> Iterator[NewFile]:
        path = self._path(key)
        with os_errors(path, "writing"):
            new = NewFile(path)
            try:
                new.write(data)
                new.flush()
                yield new
            finally:
                new.discard()


class LocalWriter:
    """A new file being written as a stream. Satisfies ``Writer``; a failed call aborts it.

    Args:
        path: the target.

    Raises:
        StoreError: the file can't be made.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._state = "open"
        with os_errors(path, "writing"):
            self._new = NewFile(path)

    def write(self, data: Buffer) -> None:
        """Append ``data``."""
        with self._step():
            self._new.write(data)

    def commit(self) -> None:
        """Flush the file to the disk and give it its name."""
        with self._step():
            self._new.flush()
            with folder_lock(self._new.folder):
                self._new.replace_target()
        self._new.discard()
        self._state = "committed"

    def abort(self) -> None:
        """Drop what was written. After ``commit`` or a first ``abort`` it does nothing."""
        if self._state == "open":
            self._state = "aborted"
            self._new.discard()

    @contextmanager
    def _step(self) -> Iterator[None]:
        if self._state != "open":
            raise ClosedError(f"the writer of {self._path} was {self._state}; open another one")
        try:
            with os_errors(self._path, "writing"):
                yield
        except BaseException:
            self.abort()
            raise


def _open_to_read(path: str) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a named pipe must not block
    try:
        _regular(os.fstat(descriptor), path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _regular(found: os.stat_result, path: str) -> os.stat_result:
    if not stat.S_ISREG(found.st_mode):
        raise StoreError(f"{path} is a folder or a special file; give a regular file")
    return found


def _pieces(path: str, start: int, end: int, object_bytes: int | None) -> Iterator[Buffer]:
    with os_errors(path, "reading"):
        descriptor = _open_to_read(path)
    try:
        piece = memoryview(bytearray(min(PIECE_BYTES, end - start)))
        while start < end:
            with os_errors(path, "reading"):
                count = os.preadv(descriptor, [piece[: end - start]], start)
            if count == 0:
                raise SampleChanged(
                    f"{path} ends at byte {start}, and bytes up to {end} were asked for; it was changed or cut short "
                    "since its size was noted: pack or resolve it again"
                )
            start += count
            yield piece[:count]
        _check_size(path, descriptor, object_bytes)
    finally:
        os.close(descriptor)


def _check_size(path: str, descriptor: int, expected: int | None) -> None:
    with os_errors(path, "sizing"):
        found = os.fstat(descriptor).st_size if expected is not None else None
    if found != expected:
        raise SampleChanged(f"{path} has {found} bytes, not {expected}; it was changed since its size was noted")


def _walk(folder: str, key_prefix: str) -> Iterator[ObjectInfo]:
    """Depth first, with one open folder for each level."""
    levels, passed_over = [(key_prefix, _entries(folder))], PassedOver()
    try:
        while levels:
            prefix, entries = levels[-1]
            entry = next(entries, None)
            if entry is None:
                levels.pop()
                continue
            with os_errors(entry.path, "listing"):
                is_folder, is_file = entry.is_dir(follow_symlinks=False), entry.is_file(follow_symlinks=False)
            key = f"{prefix}{entry.name}"
            if is_folder:
                levels.append((f"{key}/", _entries(entry.path)))
            elif is_file and not entry.name.startswith(TEMPORARY_PREFIX):
                yield from _listed(entry, key)
            else:
                passed_over.note(entry)
        passed_over.tell(folder)
    finally:
        for _, entries in levels:
            entries.close()


def _entries(folder: str) -> Generator[os.DirEntry[str], None, None]:
    """What a folder holds; nothing when it isn't there, or is no folder."""
    try:
        with os_errors(folder, "listing"):
            found = os.scandir(folder)
    except ObjectNotFound:
        return
    with found:
        while True:
            with os_errors(folder, "listing"):
                entry = next(found, None)
            if entry is None:
                return
            yield entry


def _listed(entry: os.DirEntry[str], key: str) -> list[ObjectInfo]:
    try:
        with os_errors(entry.path, "listing"):
            return [ObjectInfo(key, entry.stat(follow_symlinks=False).st_size)]
    except ObjectNotFound:  # deleted since its folder was read
        return []
