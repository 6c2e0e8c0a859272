"""The lock that lets one process at a time index a dataset.

The lock itself is an object of three lines, which the seed system's programs understand as well: they wait for
it, and take it over when its time is too long ago. The holder renews that time while it works, so that a long
indexing doesn't look dead, and leaves a mark beside the lock that tells when it did die: see ``lock_owner``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from types import TracebackType

from penstock.dataset.lock_owner import RENEWAL_S, Owner, claim_owner
from penstock.errors import ConfigError, ObjectNotFound, PreconditionFailed, StoreError
from penstock.store.base import Store

__all__ = ["IntentLock", "LockWatch", "is_stale", "lock_text", "lock_time_ms"]

_TIME = re.compile(rb"^unix_time_ms=(\d{1,18})\r?$", re.MULTILINE)

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


class LockWatch:
    """How long a lock has stood unchanged before our own eyes, by our own clock."""

    def __init__(self) -> None:
        self._text: bytes | None = None
        self._since_s = 0.0

    def unchanged_s(self, text: bytes) -> float:
        """Seconds since this text was first seen, without another one since."""
        now_s = time.monotonic()
        if text != self._text:
            self._text, self._since_s = text, now_s
        return now_s - self._since_s


class IntentLock:
    """A held lock. Use it as a context manager: leaving it releases the lock.

    Attributes:
        lost: whether somebody else has taken the lock over; whoever holds it then must publish nothing.
    """

    def __init__(
        self, store: Store, key: str, owner: Owner, text: bytes, *, node_id: str, renewal_s: float = RENEWAL_S
    ) -> None:
        self.lost = False
        self._store = store
        self._key = key
        self._owner = owner
        self._texts = [text]
        self._node_id = node_id
        self._renewal_s = renewal_s
        self._released = threading.Event()
        self._renewer = threading.Thread(target=self._keep_fresh, name="penstock-lock", daemon=True)

    @classmethod
    def try_take(
        cls, store: Store, intent_key: str, *, node_id: str, stale_ms: int, watch: LockWatch | None = None
    ) -> IntentLock | None:
        """Take the lock if it is free, stale, or left behind by a process that died; None if it is held.

        Args:
            store: the manifest store's place.
            intent_key: what is to be locked.
            node_id: who we are, one line; may be empty.
            stale_ms: age in milliseconds at which a lock is taken over; 0 means never.
            watch: what earlier tries of the same wait saw.

        Raises:
            ConfigError: the node id has more than one line.
            StoreError: the store failed.
        """
        if len(node_id.splitlines()) > 1:
            raise ConfigError(f"node_id is {node_id!r}; give one line")
        owner = claim_owner(store, intent_key)
        if owner is None:
            return None
        key, text = f"locks/{intent_key}.lock", lock_text(_now_ms(), os.getpid(), node_id)
        taken = False
        try:
            taken = _take(store, key, owner, text, stale_ms=stale_ms, watch=watch or LockWatch())
            if taken:
                owner.record(text)
        finally:
            if not taken:
                owner.close()
        renewal_s = min(RENEWAL_S, stale_ms / 4000) if stale_ms else RENEWAL_S
        return cls(store, key, owner, text, node_id=node_id, renewal_s=renewal_s) if taken else None

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
                self._owner.clear()
        except StoreError as failure:
            _logger.warning("lock %s stays until it is stale: %s", self._store.locate(self._key), failure)
        finally:
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
            self._owner.record(*self._texts)
            # Somebody else writing just now is noticed the next time; so is our own write that seemed to fail.
            with contextlib.suppress(PreconditionFailed):
                self._store.replace(self._key, text, version)
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


def _take(store: Store, key: str, owner: Owner, text: bytes, *, stale_ms: int, watch: LockWatch) -> bool:
    """Write the lock, over nothing or over one that may be taken over; False if somebody else has it."""
    version = store.version(key)
    if version is not None:
        try:
            found = store.read(key)
        except ObjectNotFound:
            return False  # released a moment ago; the next try will find it free
        if not is_stale(found, now_ms=_now_ms(), stale_ms=stale_ms) and not owner.left_behind(
            found, watch.unchanged_s(found)
        ):
            return False
    owner.announce(text)
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


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
