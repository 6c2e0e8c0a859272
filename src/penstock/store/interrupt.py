"""Ends the waits of store calls from another thread: what makes a ``close()`` quick while a store hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from penstock.errors import ClosedError

__all__ = ["Interrupt", "covered", "pause", "uncovered", "watched"]


class _Cancellable(Protocol):
    """What a future is here."""

    def cancel(self) -> bool: ...

    def cancelled(self) -> bool: ...


class Interrupt:
    """Covers the store calls of some threads, and ends their waits when it is set.

    ::

        interrupt = Interrupt()

        def work():                               # in each thread that reads
            with interrupt.cover():
                for piece in store.stream(...):   # raises ClosedError soon after set()
                    ...

        interrupt.set()                           # in the thread that closes

    Requests under way are cancelled, waits between tries and for the process's limit end within 0.1 s, and every
    later call under it fails at once. What a call had not done by then, it hasn't done.
    """

    def __init__(self) -> None:
        self._set = threading.Event()
        self._lock = threading.Lock()
        self._futures: set[_Cancellable] = set()

    def set(self) -> None:
        """End all waits under it, now and from now on. Safe twice and from any thread."""
        with self._lock:
            self._set.set()
            futures = list(self._futures)
        for future in futures:
            future.cancel()

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._set.is_set()

    @contextmanager
    def cover(self) -> Iterator[None]:
        """Put the store calls that this thread makes inside the block under this interrupt."""
        with _as_current(self):
            yield

    def _pause(self, seconds: float) -> None:
        if self._set.wait(seconds):
            raise _closed()

    @contextmanager
    def _watched(self, future: _Cancellable) -> Iterator[None]:
        with self._lock:
            self._futures.add(future)
        if self._set.is_set():
            future.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._futures.discard(future)


_thread = threading.local()


def covered() -> bool:
    """Whether this thread's calls are under an interrupt.

    Raises:
        ClosedError: they are, and it was set.
    """
    current = _current()
    if current is None:
        return False
    if current.is_set():
        raise _closed()
    return True


def pause(seconds: float) -> None:
    """Sleep, unless an interrupt over this thread is set.

    Raises:
        ClosedError: it was set.
    """
    current = _current()
    if current is None:
        time.sleep(seconds)
    else:
        current._pause(seconds)


@contextmanager
def watched(future: _Cancellable) -> Iterator[None]:
    """Cancel ``future`` when an interrupt over this thread is set during the block.

    Raises:
        ClosedError: it was set and the block saw its future cancelled.
    """
    current = _current()
    if current is None:
        yield
        return
    with current._watched(future):
        try:
            yield
        except BaseException:
            if current.is_set() and future.cancelled():
                raise _closed() from None
            raise


@contextmanager
def uncovered() -> Iterator[None]:
    """Take this thread's calls inside the block out from under any interrupt: for cleaning up."""
    with _as_current(None):
        yield


@contextmanager
def _as_current(interrupt: Interrupt | None) -> Iterator[None]:
    before = _current()
    _thread.interrupt = interrupt
    try:
        yield
    finally:
        _thread.interrupt = before


def _current() -> Interrupt | None:
    current: Interrupt | None = getattr(_thread, "interrupt", None)
    return current


def _closed() -> ClosedError:
    return ClosedError("the work that this store call belongs to was closed")
