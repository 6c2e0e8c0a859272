"""The lock that lets one process at a time index a dataset.

The lock itself is an object of three lines, which the seed system's programs understand as well: they wait
for it, and take it over when its time is too long ago. Penstock adds two things. The holder renews the time
while it works, so that a long indexing doesn't look dead. And on a folder it holds an ``flock`` on a file
beside the lock: the kernel drops that when the holder dies, however it dies, so the next process knows at
once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import threading
import time
from pathlib import Path
from types import TracebackType

from penstock.errors import ConfigError, ObjectNotFound, PreconditionFailed, StoreError
from penstock.links import local_path
from penstock.store.base import Store
from penstock.store.oserrors import os_errors

__all__ = ["IntentLock", "is_stale", "lock_text", "lock_time_ms"]

_MOST_RENEWAL_S = 10.0  # well below the age at which anyone by default takes a lock over
_TIME = re.compile(rb"^unix_time_ms=(\d{1,18})\r?$", re.MULTILINE)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NO_FLOCK = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}

_logger = logging.getLogger(__name__)


def lock_text(unix_time_ms: int, pid: int, node_id: str) -> bytes:
    """The three lines of a lock."""
    return f"unix_time_ms={unix_time_ms}\npid={pid}\nnode_id={node_id}\n".encode()


def lock_time_ms(text: bytes) -> int | None:
    """When a lock was last renewed, or None when it doesn't say."""
    found = _TIME.search(text)
    return int(found[1]) if found else None


def is_stale(text: bytes, *, now_ms: int, stale_ms: int) -> bool:
    """Whether a lock is old enough to be taken over; never when it has no time, or ``stale_ms`` is 0."""
    held_since = lock_time_ms(text)
    return held_since is not None and stale_ms > 0 and now_ms - held_since >= stale_ms


class IntentLock:
    """A held lock. Use it as a context manager: leaving it releases the lock.

    Attributes:
        lost: whether somebody else has taken the lock over; whoever holds it then must publish nothing.
    """

    def __init__(
        self, store: Store, key: str, owner: _OwnerFile | None, text: bytes, *, node_id: str, renewal_s: float
    ) -> None:
        self.lost = False
        self._renewal_s = renewal_s
        self._store = store
        self._key = key
        self._owner = owner
        self._texts = [text]
        self._node_id = node_id
        self._released = threading.Event()
        self._renewer = threading.Thread(target=self._keep_fresh, name="penstock-lock", daemon=True)

    @classmethod
    def try_take(cls, store: Store, intent_key: str, *, node_id: str, stale_ms: int) -> IntentLock | None:
        """Take the lock if it is free, stale, or left behind by a process that died; None if it is held.

        Args:
            store: the manifest store's place.
            intent_key: what is to be locked.
            node_id: who we are, one line; may be empty.
            stale_ms: age in milliseconds at which a lock is taken over; 0 means never.

        Raises:
            ConfigError: the node id has more than one line.
            StoreError: the store failed.
        """
        if len(node_id.splitlines()) > 1:
            raise ConfigError(f"node_id is {node_id!r}; give one line")
        key = f"locks/{intent_key}.lock"
        owner_path = local_path(store.locate(f"locks/{intent_key}.owner"))
        owner = None
        if owner_path is not None:
            owner = _OwnerFile(owner_path)
            if not owner.take():
                return None
        text = lock_text(_now_ms(), os.getpid(), node_id)
        taken = False
        try:
            taken = _take(store, key, owner, text, stale_ms)
        finally:
            if not taken and owner is not None:
                owner.close()
        if not taken:
            return None
        renewal_s = min(_MOST_RENEWAL_S, stale_ms / 4000) if stale_ms else _MOST_RENEWAL_S
        return cls(store, key, owner, text, node_id=node_id, renewal_s=renewal_s)

    def __enter__(self) -> IntentLock:
        self._renewer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._renewer.join()
        try:
            if self._is_ours():
                self._store.delete(self._key)
        except StoreError as failure:
            _logger.warning("lock %s stays until it is stale: %s", self._store.locate(self._key), failure)
        finally:
            if self._owner is not None:
                self._owner.clear()
                self._owner.close()

    def renew(self) -> None:
        """Write the present time into the lock; notices when the lock was lost."""
        try:
            version = self._store.version(self._key)
            if version is None or not self._is_ours():
                self.lost = True
                return
            text = lock_text(_now_ms(), os.getpid(), self._node_id)
            self._texts = [self._texts[-1], text]
            if self._owner is not None:
                self._owner.record(*self._texts)
            self._store.replace(self._key, text, version)
        except PreconditionFailed:
            self.lost = not self._is_ours()
        except StoreError as failure:
            _logger.warning("can't renew lock %s: %s", self._store.locate(self._key), failure)

    def _is_ours(self) -> bool:
        try:
            return self._store.read(self._key) in self._texts
        except ObjectNotFound:
            return False

    def _keep_fresh(self) -> None:
        while not self._released.wait(self._renewal_s) and not self.lost:
            self.renew()


def _take(store: Store, key: str, owner: _OwnerFile | None, text: bytes, stale_ms: int) -> bool:
    """Write the lock, over nothing or over one that may be taken over; False if somebody else has it."""
    version = store.version(key)
    if version is not None:
        try:
            found = store.read(key)
        except ObjectNotFound:
            return False  # released a moment ago; the next try will find it free
        left_behind = owner is not None and owner.wrote(found)
        if not left_behind and not is_stale(found, now_ms=_now_ms(), stale_ms=stale_ms):
            return False
    if owner is not None:
        owner.record(text)
    try:
        if version is None:
            store.put_if_absent(key, text)
        else:
            store.replace(key, text, version)
    except PreconditionFailed:
        # A repeated request may meet its own first try.
        with contextlib.suppress(ObjectNotFound):
            return store.read(key) == text
        return False
    return True


class _OwnerFile:
    """The file beside a lock in a folder: an ``flock`` while its holder lives, and the lock that it wrote.

    It stays when the lock goes: removing a file that others may be locking would let two of them in.
    """

    def __init__(self, path: Path) -> None:
        with os_errors(str(path), "locking"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def take(self) -> bool:
        """Whether no living process holds it; closes the file otherwise."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Where a file system has no flock, the lock's own time decides alone, as it does for strangers.
            if error.errno not in _NO_FLOCK:
                self.close()
                return False
            self._forget_boot()
        return True

    def record(self, *texts: bytes) -> None:
        """Say which lock is ours, before it is written; one write, so that a kill can't tear it."""
        content = _boot_id() + b"\n" + b"".join(texts)
        os.pwrite(self._fd, content + b"\n" * max(0, os.fstat(self._fd).st_size - len(content)), 0)

    def wrote(self, text: bytes) -> bool:
        """Whether a holder of this file wrote the lock ``text``, on this machine, since it booted."""
        content = os.pread(self._fd, 1 << 16, 0)
        boot_id, _, locks = content.partition(b"\n")
        return bool(text) and bool(boot_id) and boot_id == _boot_id() and text in locks

    def clear(self) -> None:
        """Forget the lock: it was released."""
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Let go of the file, and so of the ``flock``."""
        os.close(self._fd)

    def _forget_boot(self) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)


def _boot_id() -> bytes:
    # An flock says something only about processes under the same kernel.
    try:
        return _BOOT_ID.read_bytes().strip()
    except OSError:
        return b""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
