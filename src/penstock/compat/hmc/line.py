"""A line to a peer: frames over a TCP or Unix socket, in order, each way.

A frame is HMC's: ``{u16 type, u16 flags, u32 length}`` in the host's byte order, then ``length`` bytes. What is longer
than the receiver expects ends the line before a byte of it is read.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from typing import NamedTuple

from penstock.errors import DeadlineExceeded, MetadataError, PeerLost

__all__ = ["INT", "STRUCT", "Frame", "Line", "deadline_after", "remaining"]

INT = 1
STRUCT = 2

_HEADER = struct.Struct("=HHI")
_CHUNK_BYTES = 1 << 16
_LOOK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)


class Frame(NamedTuple):
    """What one side said: ``kind`` is INT or STRUCT, ``flags`` say more about a STRUCT."""

    kind: int
    flags: int
    payload: bytes


def deadline_after(timeout_s: float) -> float:
    """The moment in ``timeout_s`` seconds, as ``time.monotonic`` counts."""
    return time.monotonic() + timeout_s


def remaining(deadline: float) -> float:
    """Seconds until then, at least 0."""
    return max(0.0, deadline - time.monotonic())


class Line:
    """One connected socket. Two threads may use it at once, one for each direction.

    Args:
        connection: connected; belongs to the line from now on.
        name: who is at the other end, for messages.
    """

    def __init__(self, connection: socket.socket, name: str) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._pid = os.getpid()
        self._sending = threading.Lock()
        self._receiving = threading.Lock()
        self._arrived = bytearray()
        self.name = name
        self.closed = False

    def fileno(self) -> int:
        """The socket's descriptor; -1 once closed."""
        return self._socket.fileno()

    @property
    def local_ip(self) -> str:
        """The address of our own end."""
        return str(self._socket.getsockname()[0])

    @property
    def peer_ip(self) -> str:
        """The address of the other end."""
        return str(self._socket.getpeername()[0])

    @property
    def ended(self) -> bool:
        """Whether the other end is gone, or this one closed, with nothing left to receive."""
        if self.closed or self._arrived:
            return self.closed
        try:
            return self._socket.recv(1, _LOOK) == b""
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True

    def send(self, frame: Frame, deadline: float) -> None:
        """Sends a frame whole.

        Raises:
            DeadlineExceeded: the peer didn't take it in time. Where it took a part, the line is closed.
            PeerLost: the line has ended.
        """
        data = memoryview(_HEADER.pack(frame.kind, frame.flags, len(frame.payload)) + frame.payload)
        total = len(data)
        with _held(self._sending, deadline, f"sending to {self.name}"):
            while data:
                try:
                    data = data[self._socket.send(data, socket.MSG_NOSIGNAL) :]
                except (BlockingIOError, InterruptedError):
                    if not self._wait(select.POLLOUT, deadline):
                        if len(data) < total:
                            self.close()
                        raise DeadlineExceeded(f"{self.name} took no more frames until the deadline") from None
                except OSError as error:
                    raise self._lost() from error

    def receive(self, deadline: float, *, limit: int) -> Frame:
        """The next frame; what came of one before a deadline is kept for the next call.

        Args:
            deadline: when to give up.
            limit: the longest payload that is expected, in bytes.

        Raises:
            DeadlineExceeded: none came in time.
            PeerLost: the line has ended, and everything that was sent before is received.
            MetadataError: a longer payload; the line is closed.
        """
        with _held(self._receiving, deadline, f"receiving from {self.name}"):
            self._fill(_HEADER.size, deadline)
            kind, flags, length = _HEADER.unpack_from(self._arrived)
            if length > limit:
                self.close()
                raise MetadataError(f"{self.name} sent a frame of {length} bytes, where at most {limit} are expected")
            end = _HEADER.size + length
            self._fill(end, deadline)
            payload = bytes(self._arrived[_HEADER.size : end])
            del self._arrived[:end]
            return Frame(kind, flags, payload)

    def close(self) -> None:
        """Ends the line and wakes whoever waits on it; again is a no-op. A forked child only lets go of its copy."""
        self.closed = True
        if os.getpid() == self._pid:
            with contextlib.suppress(OSError):  # it has ended already
                self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _fill(self, nbytes: int, deadline: float) -> None:
        while len(self._arrived) < nbytes:
            try:
                some = self._socket.recv(min(nbytes - len(self._arrived), _CHUNK_BYTES))
            except (BlockingIOError, InterruptedError):
                if not self._wait(select.POLLIN, deadline):
                    raise DeadlineExceeded(f"nothing came from {self.name} until the deadline") from None
                continue
            except OSError as error:
                raise self._lost() from error
            if not some:
                raise self._lost()
            self._arrived += some

    def _wait(self, events: int, deadline: float) -> bool:
        descriptor = self._socket.fileno()
        if descriptor < 0:
            raise self._lost()
        poll = select.poll()
        poll.register(descriptor, events)
        return bool(poll.poll(remaining(deadline) * 1000)) or remaining(deadline) > 0

    def _lost(self) -> PeerLost:
        return PeerLost(
            f"the line to {self.name} was closed" if self.closed else f"{self.name} closed the line, or ended"
        )


class _held:  # noqa: N801 - a function in all but form
    """Holds a lock, or raises at the deadline."""

    def __init__(self, lock: threading.Lock, deadline: float, doing: str) -> None:
        self._lock = lock
        self._deadline = deadline
        self._doing = doing

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=remaining(self._deadline)):
            raise DeadlineExceeded(f"another thread was {self._doing} until the deadline")

    def __exit__(self, *error: object) -> None:
        self._lock.release()
