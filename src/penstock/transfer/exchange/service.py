"""A thread that answers many connections inside stated limits.

What is said on a connection is a ``Conversation``: pure, bytes in and bytes out. Everything about sockets is here: how
many there may be, how much they may have in flight, how long they may take, and that ``close()`` ends it all.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import selectors
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, Self

__all__ = ["Answer", "Conversation", "Limits", "Server", "Service"]

_log = logging.getLogger("penstock")
_PIECE_BYTES: Final = 256 << 10
_ACCEPTED_AT_ONCE: Final = 64  # before those who are here are served again
_LINGER_S: Final = 2.0  # after a last answer: how long a client may go on sending before it is cut off


@dataclass(frozen=True, slots=True)
class Limits:
    """What all connections together, or one of them, may take.

    Attributes:
        connections: at once; others wait at the door.
        buffered_bytes: of requests that are coming in, over all connections.
        stall_timeout_s: a request, or the reading of an answer, may stand still for so long.
        request_timeout_s: one request and its answer may take so long in all.
        idle_timeout_s: between two requests.
        crowd_timeout_s: the same, and for one request, while others wait at the door.
    """

    connections: int = 256
    buffered_bytes: int = 64 << 20
    stall_timeout_s: float = 5.0
    request_timeout_s: float = 60.0
    idle_timeout_s: float = 30.0
    crowd_timeout_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What to send, piece by piece; ``last`` ends the connection after it."""

    pieces: Sequence[bytes]
    last: bool = False


class Conversation(Protocol):
    """One connection's side of a protocol. Called on the service's thread only; must not block."""

    def greeting(self) -> Sequence[bytes]:
        """What is said before anything was asked."""

    def answer(self, received: bytearray) -> Answer | None:
        """Take one whole request off the front of ``received`` and answer it; None when it isn't whole yet."""

    def overloaded(self) -> Answer:
        """What is said when there is no memory for a request."""


@dataclass(slots=True, eq=False)
class _Connection:
    socket: socket.socket
    conversation: Conversation
    began_at: float = 0.0  # the request, or the pause before it
    end_at: float = 0.0  # when that must be over
    moved_at: float = 0.0  # when a byte came or went
    received: bytearray = field(default_factory=bytearray)
    sending: deque[memoryview] = field(default_factory=deque)
    last: bool = False  # what is being sent is the last answer
    lingering: bool = False  # it was sent; what still comes in is thrown away

    def begin(self, timeout_s: float) -> None:
        self.began_at = self.moved_at = time.monotonic()
        self.end_at = self.began_at + timeout_s

    def due_at(self, stall_timeout_s: float) -> float:
        busy = self.received or self.sending
        return min(self.end_at, self.moved_at + stall_timeout_s) if busy else self.end_at


class Service:
    """Answers connections on a thread of its own until it is closed.

    Args:
        listener: a listening socket that doesn't block; the service owns it from here on.
        converse: makes the conversation of one connection.
        limits: see ``Limits``.
        name: of the thread.
    """

    def __init__(
        self, listener: socket.socket, converse: Callable[[], Conversation], limits: Limits, name: str
    ) -> None:
        self.host, self.port = listener.getsockname()[:2]
        self._listener = listener
        self._converse = converse
        self._limits = limits
        self._connections: dict[socket.socket, _Connection] = {}
        self._buffered_bytes = 0
        self._is_full = False  # then nobody is let in, and the listener isn't watched
        self._waker, self._woken = socket.socketpair()
        self._closing = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        _services.add(self)

    def close(self) -> None:
        """Stop listening, cut every connection, end the thread. Safe twice, and from any thread."""
        if not self._closing:
            self._closing = True
            with contextlib.suppress(OSError):  # it ended by itself meanwhile
                self._waker.send(b"x")
        if threading.current_thread() is not self._thread:
            self._thread.join()
            self._waker.close()

    def _run(self) -> None:
        try:
            while not self._closing:
                for key, events in self._selector.select(self._expire()):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif (connection := self._connections.get(key.fileobj)) is not None:  # type: ignore[call-overload]
                        self._serve(connection, events)
        finally:
            for connection in list(self._connections.values()):
                self._drop(connection)
            self._selector.close()
            self._listener.close()
            self._woken.close()

    def abandon(self) -> None:
        """Let go of everything, in a forked child: it has no such thread, and port and clients are the parent's."""
        self._closing = True
        for connection in self._connections:
            connection.close()
        self._selector.close()
        for each in (self._listener, self._waker, self._woken):
            each.close()

    def _expire(self) -> float | None:
        """End what took too long; seconds until that may be so for the next one."""
        now, next_at = time.monotonic(), math.inf
        for connection in list(self._connections.values()):
            due_at = connection.due_at(self._limits.stall_timeout_s)
            if self._is_full:
                due_at = min(due_at, connection.began_at + self._limits.crowd_timeout_s)
            if due_at <= now:
                self._drop(connection)
            else:
                next_at = min(next_at, due_at)
        return None if next_at == math.inf else next_at - now

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            if len(self._connections) >= self._limits.connections:
                self._is_full = True
                self._selector.unregister(self._listener)
                return
            try:
                client, _address = self._listener.accept()
            except ConnectionAbortedError:  # it gave up before we came
                continue
            except BlockingIOError:
                return
            except OSError as error:  # no descriptors left
                _log.warning("a connection couldn't be taken: %s", error)
                self._drop_oldest()
                return
            self._welcome(client)

    def _drop_oldest(self) -> None:
        if self._connections:
            self._drop(min(self._connections.values(), key=lambda connection: connection.began_at))
        else:
            time.sleep(0.05)  # the process has no descriptor left, and none of them is ours to give back

    def _welcome(self, client: socket.socket) -> None:
        client.setblocking(False)
        with contextlib.suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(client, self._converse())
        self._connections[client] = connection
        self._selector.register(client, selectors.EVENT_READ)
        self._rest(connection)
        connection.sending.extend(memoryview(piece) for piece in connection.conversation.greeting())
        self._serve(connection, selectors.EVENT_READ)  # what it asks may have come along

    def _serve(self, connection: _Connection, events: int) -> None:
        try:
            if events & selectors.EVENT_READ and not self._read(connection):
                return
            if not connection.lingering:
                self._converse_on(connection)
        except OSError:
            self._drop(connection)
        except Exception:
            _log.exception("a connection was dropped, because answering it failed")
            self._drop(connection)

    def _read(self, connection: _Connection) -> bool:
        """Take what came in; False when that was the end of the connection."""
        try:
            piece = connection.socket.recv(_PIECE_BYTES)
        except BlockingIOError:
            return True
        if not piece:
            self._drop(connection)
            return False
        if connection.lingering:
            return True
        if connection.received:
            connection.moved_at = time.monotonic()
        else:
            connection.begin(self._limits.request_timeout_s)
        connection.received += piece
        self._buffered_bytes += len(piece)
        return True

    def _converse_on(self, connection: _Connection) -> None:
        """Answer what is whole, one request after the other, as long as the client takes the answers."""
        while self._send(connection) and not connection.last:
            before = len(connection.received)
            if not before:
                return self._rest(connection)
            answer = connection.conversation.answer(connection.received)
            self._buffered_bytes += len(connection.received) - before
            if answer is None:
                if self._buffered_bytes <= self._limits.buffered_bytes:
                    return self._watch(connection, selectors.EVENT_READ)
                answer = connection.conversation.overloaded()
            connection.sending.extend(memoryview(piece) for piece in answer.pieces if piece)
            connection.last = answer.last
            connection.begin(self._limits.request_timeout_s)
        if connection.sending:
            return self._watch(connection, selectors.EVENT_WRITE)  # nothing more is read before it is taken
        return self._linger(connection)

    def _send(self, connection: _Connection) -> bool:
        """Send what waits; whether all of it went."""
        while connection.sending:
            piece = connection.sending[0]
            try:
                sent = connection.socket.send(piece)
            except BlockingIOError:
                return False
            connection.moved_at = time.monotonic()
            if sent == len(piece):
                connection.sending.popleft()
            else:
                connection.sending[0] = piece[sent:]
        return True

    def _rest(self, connection: _Connection) -> None:
        connection.begin(self._limits.idle_timeout_s)
        self._watch(connection, selectors.EVENT_READ)

    def _linger(self, connection: _Connection) -> None:
        """Let a client that is still sending read the last answer: closing at once would throw it away, tcp(7)."""
        connection.lingering = True
        self._buffered_bytes -= len(connection.received)
        connection.received = bytearray()
        connection.begin(_LINGER_S)
        connection.socket.shutdown(socket.SHUT_WR)
        self._watch(connection, selectors.EVENT_READ)

    def _watch(self, connection: _Connection, events: int) -> None:
        if self._selector.get_key(connection.socket).events != events:
            self._selector.modify(connection.socket, events)

    def _drop(self, connection: _Connection) -> None:
        if self._connections.pop(connection.socket, None) is not None:
            self._buffered_bytes -= len(connection.received)
            self._selector.unregister(connection.socket)
            connection.socket.close()
            if self._is_full:
                self._is_full = False
                self._selector.register(self._listener, selectors.EVENT_READ)


class Server:
    """What a service answers for, until ``close()`` or the end of a ``with``.

    Attributes:
        host: that it listens on.
        port: that it listens on.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self.host, self.port = service.host, service.port

    def close(self) -> None:
        """Stop listening, cut every connection, and forget everything. Safe twice, and from any thread."""
        self._service.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_services: weakref.WeakSet[Service] = weakref.WeakSet()


def _abandon_all() -> None:
    for service in list(_services):
        service.abandon()


os.register_at_fork(after_in_child=_abandon_all)
