"""What tells a lock whose holder died from one whose holder is at work.

The lock's own three lines say only when it was last renewed, and a stranger's program may not renew it at all. So
a Penstock holder leaves a mark beside it: a file that the kernel unlocks when the holder dies, or, where there are
no such files, an object that says "this lock is renewed every few seconds".
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import Final, Protocol

from penstock.dataset.links import local_path
from penstock.errors import ObjectNotFound
from penstock.store.base import Store
from penstock.store.oserrors import os_errors

__all__ = ["RENEWAL_S", "SILENCE_S", "Owner", "OwnerFile", "OwnerObject", "claim_owner"]

RENEWAL_S: Final = 5.0
"""A living holder renews its lock at least this often."""

SILENCE_S = 15.0
"""A Penstock lock that stood unchanged for so long before our own eyes has no living holder."""

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_NO_FLOCK: Final = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


class Owner(Protocol):
    """The mark beside a lock."""

    def announce(self, text: bytes) -> None:
        """Called before the lock is taken with this text."""

    def record(self, *texts: bytes) -> None:
        """Say which texts of the lock are ours: after it was taken, and before it is renewed."""

    def left_behind(self, text: bytes, unchanged_s: float) -> bool:
        """Whether the lock ``text``, which we saw unchanged for so long, is a Penstock holder's that died."""

    def clear(self) -> None:
        """Forget the lock: it was released."""

    def close(self) -> None:
        """Let go of the mark."""


def claim_owner(store: Store, intent_key: str) -> Owner | None:
    """The mark that is ours to write if we get the lock; None while a living process of this machine has it.

    Raises:
        StoreError: the mark can't be opened.
    """
    key = f"locks/{intent_key}.owner"
    path = local_path(store.locate(key))
    if path is None:
        return OwnerObject(store, key)
    owner = OwnerFile(path)
    try:
        fcntl.flock(owner.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner.close()
        return OwnerObject(store, key) if error.errno in _NO_FLOCK else None
    return owner


class OwnerFile:
    """A file with an ``flock`` while the lock's holder lives, and with the lock that it wrote.

    It stays when the lock goes: removing a file that others may be locking would let two of them in.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        with os_errors(self._path, "locking"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def fileno(self) -> int:
        """The descriptor to lock."""
        return self._fd

    def announce(self, text: bytes) -> None:
        """Record the text at once: nobody else can, and we may die right after we wrote the lock."""
        self.record(text)

    def record(self, *texts: bytes) -> None:
        """Say which texts are ours, in one write, so that a kill can't tear it."""
        content = _boot_id() + b"\n" + b"".join(texts)
        with os_errors(self._path, "writing"):
            padding = max(0, os.fstat(self._fd).st_size - len(content))
            os.pwrite(self._fd, content + b"\n" * padding, 0)

    def left_behind(self, text: bytes, unchanged_s: float) -> bool:  # noqa: ARG002 - the kernel knows at once
        """Whether it was written through this file, under this kernel: then our ``flock`` says that it is dead."""
        with os_errors(self._path, "reading"):
            boot_id, _, texts = os.pread(self._fd, 1 << 16, 0).partition(b"\n")
        return bool(text) and bool(boot_id) and boot_id == _boot_id() and text in texts

    def clear(self) -> None:
        """Forget the lock."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Let go of the file, and so of the ``flock``."""
        os.close(self._fd)


class OwnerObject:
    """An object with the lock that its holder wrote, for stores where nobody can see who lives.

    It is written once the lock is ours, so that those who lose a race don't write over the winner's.
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key

    def announce(self, text: bytes) -> None:
        """Nothing yet."""

    def record(self, *texts: bytes) -> None:
        """Say which texts are ours."""
        self._store.put(self._key, b"".join(texts))

    def left_behind(self, text: bytes, unchanged_s: float) -> bool:
        """Whether a holder that renews its locks has missed three renewals."""
        if unchanged_s < SILENCE_S or not text:
            return False
        try:
            return text in self._store.read(self._key)
        except ObjectNotFound:
            return False

    def clear(self) -> None:
        """Forget the lock."""
        self._store.delete(self._key)

    def close(self) -> None:
        """Nothing to let go of."""


def _boot_id() -> bytes:
    # An flock says something only about processes under the same kernel.
    try:
        return _BOOT_ID.read_bytes().strip()
    except OSError:
        return b""
