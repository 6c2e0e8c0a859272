"""Files that appear whole and durably or not at all, and the lock that keeps two writers apart."""

from __future__ import annotations

import errno
import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from penstock.errors import PreconditionFailed, StoreError, StoreUnavailable
from penstock.store.base import Buffer
from penstock.store.interrupt import pause

__all__ = ["TEMPORARY_PREFIX", "NewFile", "flush_folder", "folder_lock"]

TEMPORARY_PREFIX = ".penstock-"
"""Names that begin so are ours: files being written, and locks where folders can't be locked."""

_BUFFER_BYTES = 1 << 20
_LOCK_DEADLINE_S = 30.0
_LOCK_POLL_S = 0.002
_NO_FOLDER_LOCKS = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP}


class NewFile:
    """A file being written under a temporary name beside its target; the target's folder is made if need be.

    Args:
        path: the target.

    Raises:
        OSError: the folder or the file can't be made. So do all the methods, and ``os_errors`` is around them.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.folder = os.path.dirname(path)  # noqa: PTH120 - paths are text in this layer
        _make_folder(self.folder)
        self._temporary = f"{self.folder}/{TEMPORARY_PREFIX}{uuid.uuid4().hex}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.fdopen(os.open(self._temporary, flags, 0o666), "wb", _BUFFER_BYTES)

    def write(self, data: Buffer) -> None:
        """Append ``data``."""
        self._file.write(data)

    def flush(self) -> None:
        """Bring what was written to the disk, with a time of writing that no other write has."""
        self._file.flush()
        now = time.time_ns()  # the kernel's own clock ticks too slowly to tell two quick writes apart
        os.utime(self._file.fileno(), ns=(now, now))
        os.fsync(self._file.fileno())

    def replace_target(self) -> None:
        """Give the file its name, in place of whatever had it."""
        os.rename(self._temporary, self._path)  # noqa: PTH104
        flush_folder(self.folder)

    def claim_target(self) -> None:
        """Give the file its name only if nothing has it.

        Raises:
            PreconditionFailed: something has.
        """
        try:
            os.link(self._temporary, self._path)  # unlike a rename, it never replaces
        except FileExistsError:
            raise PreconditionFailed(f"{self._path} exists already") from None
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}:
                raise
            raise StoreError(
                f"{self._path}: this file system has no hard links, which put-if-absent needs; use another one"
            ) from error
        flush_folder(self.folder)

    def discard(self) -> None:
        """Close the file and take its temporary name away. Safe after everything else, and twice."""
        with suppress(OSError):  # what can't be flushed now was either flushed before or isn't wanted
            self._file.close()
        with suppress(OSError):
            os.unlink(self._temporary)  # noqa: PTH108


@contextmanager
def folder_lock(folder: str) -> Iterator[None]:
    """Keep other writers out of a folder. The kernel drops the lock when its holder closes it or dies.

    Raises:
        StoreUnavailable: somebody held it for all of the deadline.
        OSError: the folder can't be opened.
    """
    descriptor = _open_lock(folder)
    try:
        deadline = time.monotonic() + _LOCK_DEADLINE_S
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise StoreUnavailable(f"{folder} was locked by another writer for {_LOCK_DEADLINE_S:.0f} s")
            pause(_LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)


def flush_folder(folder: str) -> None:
    """Bring a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: str) -> None:
    if os.path.isdir(folder):  # noqa: PTH112
        return
    parent = os.path.dirname(folder)  # noqa: PTH120
    _make_folder(parent)
    with suppress(FileExistsError):
        os.mkdir(folder)  # noqa: PTH102
    flush_folder(parent)


def _open_lock(folder: str) -> int:
    """A descriptor that can be locked: the folder's, or a file's in it where folders can't be (NFS)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except BlockingIOError:
        return descriptor
    except OSError as error:
        os.close(descriptor)
        if error.errno not in _NO_FOLDER_LOCKS:
            raise
        return os.open(f"{folder}/{TEMPORARY_PREFIX}lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    return descriptor


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
