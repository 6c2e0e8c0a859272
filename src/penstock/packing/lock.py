"""One pack at a time into one folder, by a lock that dies with its process."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from pathlib import Path

from penstock.errors import PackError
from penstock.packing.source import shown

__all__ = ["FolderLock"]

_NO_LOCKS_HERE = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK})
_log = logging.getLogger(__name__)


class FolderLock:
    """An exclusive lock, held through a file that exists only meanwhile.

    The kernel lets go of it when the process ends in whatever way, so a lock file that is left behind locks
    nothing. Where the file system knows no locks a warning is logged and packing goes on without.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            PackError: another process, or another pack of this one, holds it.
            OSError: the file can't be made.
        """
        while self._fd < 0:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                self._lock(fd)
                if self._is_ours(fd):
                    self._fd, fd = fd, -1
            finally:
                if fd >= 0:
                    os.close(fd)

    def release(self) -> None:
        """Remove the file and let go of the lock."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1

    def _lock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            out = shown(os.fsencode(self._path.parent.parent))
            raise PackError(f"another pack is writing to {out}; wait for it, or choose another out") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                raise
            _log.warning("%s: no file locks here; make sure that only one pack writes at a time", self._path)

    def _is_ours(self, fd: int) -> bool:
        """Whether the locked file is still the one at the path: its last holder may just have removed it."""
        try:
            return os.path.samestat(os.fstat(fd), self._path.stat())
        except FileNotFoundError:
            return False
