"""A thread that sleeps until one of the descriptors that it watches becomes ready."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass

from penstock.errors import ClosedError

__all__ = ["Watcher"]


@dataclass
class _Watched:
    """What to do when a descriptor becomes ready, and when it is."""

    ready: Callable[[], None]
    events: int


class Watcher:
    """Watches descriptors for an agent's host plane, on a thread of its own, from ``start()`` to ``close()``.

    Args:
        name: the agent's.

    Threads: any; what is to be done is done on the watcher's own.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._watched: dict[int, _Watched] = {}
        self._closed = False
        self._poll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.watch(self._wake, lambda: None)

    def start(self, due: Callable[[], float | None]) -> None:
        """Begin. ``due`` is called before each sleep; it says after how many seconds it wants to be; None = never."""
        self._thread = threading.Thread(target=self._run, args=(due,), name=f"penstock {self._name}", daemon=True)
        self._thread.start()

    def watch(self, fd: int, ready: Callable[[], None], events: int = select.EPOLLIN) -> None:
        """Call ``ready`` whenever this descriptor is, until ``unwatch``; the descriptor stays the caller's.

        Raises:
            ClosedError: the agent is closed.
        """
        with self._lock:
            if self._closed:
                raise ClosedError(f"the agent {self._name} is closed")
            self._watched[fd] = _Watched(ready, events)
            self._poll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """Watch it no more; to be called before it is closed. Nothing happens to what isn't watched."""
        with self._lock:
            if self._watched.pop(fd, None) is not None and not self._closed:
                with contextlib.suppress(OSError):
                    self._poll.unregister(fd)

    def close(self) -> bool:
        """End the thread; nothing is called any more. False = somebody has closed it before."""
        with self._lock:
            if self._closed:
                return False
            self._closed = True
        os.eventfd_write(self._wake, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._poll.close()
        os.close(self._wake)
        return True

    def _run(self, due: Callable[[], float | None]) -> None:
        while not self._closed:
            with contextlib.suppress(InterruptedError):
                for fd, _ in self._poll.poll(due()):
                    with self._lock:
                        watched = self._watched.get(fd)
                    # Meanwhile another thread may have closed this descriptor and got its number for another use.
                    if watched is not None and _is_ready(fd, watched.events):
                        watched.ready()


def _is_ready(fd: int, events: int) -> bool:
    poll = select.poll()
    poll.register(fd, events)
    return any(found & (events | select.POLLHUP | select.POLLERR) for _, found in poll.poll(0))
