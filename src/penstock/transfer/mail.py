"""Who gets which notification: an agent has one inbox, and several readers that each want only their own.

A notification that begins with a *topic* goes into the box of that topic, every other one into the general box.
Whoever looks takes all that arrived out of the core's inbox and puts it where it belongs; whoever sleeps is woken by
the eventfd of its own box, or by that of the inbox, and then does the same. So no thread is needed, and nobody polls.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import select
import threading
import time
from typing import Final

from penstock import _core
from penstock.errors import ClosedError

__all__ = ["TOPIC_BYTES", "Box", "Mail", "is_topic", "new_topic"]

_ITEM_BYTES: Final = 200  # of Python's objects around a message, about
_MARK: Final = b"\0PStopic"
_ALL: Final = 1 << 30
_DRAIN_AT_ONCE: Final = 1024

MOST_KEPT_BYTES: Final = 4 << 20
"""How much is kept for readers that don't take what is theirs, until nothing more is taken out of the inbox."""

TOPIC_BYTES: Final = len(_MARK) + 8


def new_topic() -> bytes:
    """The beginning of all notifications of a topic that nobody else has."""
    return _MARK + secrets.token_bytes(8)


def is_topic(topic: bytes) -> bool:
    """Whether notifications that begin with this are kept apart from others."""
    return len(topic) == TOPIC_BYTES and topic.startswith(_MARK)


class Box:
    """What one reader wants: (sender, message without the topic), in the order in which they arrived."""

    def __init__(self, topic: bytes) -> None:
        self.topic = topic
        self.items: list[tuple[str, bytes]] = []
        self.sleepers = 0
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self.fd)

    def wake(self) -> None:
        """Have those who sleep on it look again."""
        os.eventfd_write(self.fd, 1)

    def was_woken(self) -> bool:
        """Whether somebody did so since this was asked last."""
        try:
            return os.eventfd_read(self.fd) > 0
        except BlockingIOError:
            return False


class Mail:
    """Sorts what arrives in an inbox. Threads: any.

    Args:
        name: the agent's, for messages.
        inbox: the core's; from now on nobody else drains it.
    """

    def __init__(self, name: str, inbox: _core.Inbox) -> None:
        self._name = name
        self._inbox = inbox
        self._lock = threading.Lock()
        self._boxes: dict[bytes, Box] = {}
        self._kept_bytes = 0
        self._closed = False
        self.general = Box(b"")

    def open(self, topic: bytes) -> Box:
        """A box for this topic; what comes for a topic without one is dropped."""
        box = Box(topic)
        with self._lock:
            self._boxes[topic] = box
        return box

    def shut(self, box: Box) -> None:
        """Drop what still comes for it. Idempotent."""
        with self._lock:
            self._boxes.pop(box.topic, None)
            self._take(box)
            self._sort()
        box.wake()

    def close(self) -> None:
        """Wake everybody; from now on nobody sleeps."""
        self._closed = True
        self._inbox.close()

    def take(self, box: Box) -> list[tuple[str, bytes]]:
        """What has arrived for it since the last call."""
        if not box.items and self._inbox.empty():  # what who polls mostly finds
            return []
        with self._lock:
            if not self._boxes and not box.items:  # the usual case: nobody to sort for
                drained = self._inbox.drain(_ALL)
                return [each for each in drained if not each[1].startswith(_MARK)] if drained else drained
            self._sort()
            taken = self._take(box)
            self._sort()  # while there was no room others may have slept in vain
            return taken

    def wait(self, box: Box, timeout_s: float) -> bool:
        """Sleep until something is there for it, or somebody woke it. False = the time passed.

        Raises:
            ClosedError: the agent was closed.
        """
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._inbox.wake_fd, select.POLLIN)
        poll.register(box.fd, select.POLLIN)
        self._lie_down(box)
        try:
            woken = self._woken(box, signalled=False)  # what came before we said that we sleep wakes nobody
            while not woken and (left_s := deadline - time.monotonic()) > 0:
                ready = poll.poll(left_s * 1000)
                woken = self._woken(box, signalled=any(fd == box.fd for fd, _ in ready))
            return woken
        finally:
            self._get_up(box)

    async def arrived(self, box: Box, timeout_s: float) -> bool:
        """``wait()`` for a running event loop."""
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        fds = [os.dup(self._inbox.wake_fd), os.dup(box.fd)]  # others may watch them in the same loop
        self._lie_down(box)
        try:
            if self._woken(box, signalled=False):
                return True
            for fd in fds:
                loop.add_reader(fd, woken.set)
            async with asyncio.timeout(timeout_s):
                while True:
                    await woken.wait()
                    if self._woken(box, signalled=True):
                        return True
                    woken.clear()
        except TimeoutError:
            return False
        finally:
            self._get_up(box)
            for fd in fds:
                loop.remove_reader(fd)
                os.close(fd)

    def _lie_down(self, box: Box) -> None:
        with self._lock:
            box.sleepers += 1
        self._inbox.arm()

    def _get_up(self, box: Box) -> None:
        self._inbox.disarm()
        with self._lock:
            box.sleepers -= 1

    def _woken(self, box: Box, *, signalled: bool) -> bool:
        """Whether there is something to get up for. ``signalled``: the box's eventfd may be readable."""
        if self._closed:
            raise ClosedError(f"the agent {self._name} was closed")
        with self._lock:
            self._inbox.clear()
            self._sort()
            woken = signalled and box.was_woken()
            if (woken or box.items) and box.sleepers > 1:
                box.wake()  # the others that sleep on it find out, too
            return woken or bool(box.items)

    def _sort(self) -> None:
        """Everything out of the inbox, into the boxes; with the lock held.

        A reader that lets its box fill up holds everybody up in the end, and the senders with them; the alternative
        would be memory without a bound.
        """
        while self._kept_bytes < MOST_KEPT_BYTES and (drained := self._inbox.drain(_DRAIN_AT_ONCE)):
            for sender, message in drained:
                if not message.startswith(_MARK):
                    self._put(self.general, sender, message)
                elif (box := self._boxes.get(message[:TOPIC_BYTES])) is not None:
                    self._put(box, sender, message[TOPIC_BYTES:])

    def _take(self, box: Box) -> list[tuple[str, bytes]]:
        taken, box.items = box.items, []
        self._kept_bytes -= sum(len(message) + _ITEM_BYTES for _, message in taken)
        return taken

    def _put(self, box: Box, sender: str, message: bytes) -> None:
        self._kept_bytes += len(message) + _ITEM_BYTES
        box.items.append((sender, message))
        if box.sleepers and len(box.items) == 1:
            box.wake()
