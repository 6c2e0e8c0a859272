"""From the operating system's error numbers to our errors: one table."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from penstock.errors import (
    AccessDenied,
    ObjectNotFound,
    PenstockError,
    PreconditionFailed,
    StoreError,
    StoreFull,
    StoreUnavailable,
)

__all__ = ["ERRNO_ERRORS", "error_from_errno", "os_errors"]

ERRNO_ERRORS: dict[int, tuple[type[StoreError], str]] = {
    errno.ENOENT: (ObjectNotFound, "check the path"),
    errno.ENOTDIR: (ObjectNotFound, "a part of its path is a file, not a folder"),
    errno.EACCES: (AccessDenied, "ask for the right to it, or run as its owner"),
    errno.EPERM: (AccessDenied, "ask for the right to it, or run as its owner"),
    errno.EROFS: (AccessDenied, "the file system is mounted read-only; write somewhere else"),
    errno.EEXIST: (PreconditionFailed, "something has this name already"),
    errno.ENOSPC: (StoreFull, "free some space, or write somewhere else"),
    errno.EDQUOT: (StoreFull, "your disk quota is used up; free some space, or write somewhere else"),
    errno.EFBIG: (StoreFull, "the file system or your limits (ulimit -f) allow no file of this size"),
    errno.EIO: (StoreUnavailable, "the device or the network file system failed; see the system's log"),
    errno.ESTALE: (StoreUnavailable, "the network file system lost the file; try again"),
    errno.ETIMEDOUT: (StoreUnavailable, "the network file system didn't answer; try again"),
    errno.EMFILE: (StoreError, "this process has too many open files; raise ulimit -n"),
    errno.ENFILE: (StoreError, "this machine has too many open files; raise fs.file-max"),
    errno.ELOOP: (StoreError, "its symbolic links lead in a circle"),
    errno.ENAMETOOLONG: (StoreError, "shorten the name"),
    errno.EISDIR: (StoreError, "it is a folder; give a file"),
}
"""Every error number that has a class and a cure of its own; any other one is a plain StoreError."""


def error_from_errno(number: int | None, location: str, doing: str) -> StoreError:
    """The error for an error number.

    Args:
        number: ``errno``, or None when unknown.
        location: what it happened to.
        doing: what was being done, as a participle: ``"reading"``.
    """
    kind, cure = ERRNO_ERRORS.get(number or 0, (StoreError, "see the reason before this"))
    reason = os.strerror(number) if number else "unknown error"
    return kind(f"{doing} {location}: {reason}; {cure}")


@contextmanager
def os_errors(location: str, doing: str) -> Iterator[None]:
    """Turn the operating system's errors of a block into ours.

    Raises:
        StoreError: the class that ``ERRNO_ERRORS`` gives.
    """
    try:
        yield
    except PenstockError:  # ours may be OSErrors as well
        raise
    except OSError as error:
        raise error_from_errno(error.errno, location, doing) from error
