"""The target's half of the host plane: agents on this host that connect to ours."""

from __future__ import annotations

import errno
import hmac
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from penstock import _core
from penstock.errors import PenstockError
from penstock.transfer.host_messages import Gone, Hello, Map, Refused, SegmentAt, Welcome, encode
from penstock.transfer.host_socket import close_all, credentials, pidfd_of, receive
from penstock.transfer.watcher import Watcher

__all__ = ["HostVisitors"]

_MOST_PEERS: Final = 1024
_HELLO_TIMEOUT_S: Final = 5.0
_AGAIN_S: Final = 0.01
_OUT_OF_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass
class _Visitor:
    """The target's end of one connection."""

    sock: socket.socket
    since: float
    link: _core.IncomingLink | None = None
    pidfd: int = -1


class HostVisitors:
    """Listens, lets in who may come, hands over segments to them, and notices when one is gone.

    Args:
        watcher: on whose thread all of this happens.
        instance: 16 bytes; who connects must mean this one.
        secret: 16 bytes that who connects has to show.
        registry: the agent's registered memory.
        inbox: where notifications arrive.
        exposes: whether a segment holds registered memory, so that peers may map it.

    Attributes:
        socket_name: of the abstract Unix socket that it listens on, without the leading NUL.
    """

    def __init__(
        self,
        watcher: Watcher,
        *,
        instance: bytes,
        secret: bytes,
        registry: _core.Registry,
        inbox: _core.Inbox,
        exposes: Callable[[int], bool],
    ) -> None:
        self._watcher = watcher
        self._instance = instance
        self._secret = secret
        self._registry = registry
        self._inbox = inbox
        self._exposes = exposes
        self._visitors: dict[int, _Visitor] = {}
        self.socket_name = f"penstock/{secrets.token_hex(16)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listener.bind("\0" + self.socket_name)
        self._listener.listen(_MOST_PEERS)
        watcher.watch(self._listener.fileno(), self._accept)

    def __len__(self) -> int:
        """How many there are, with those who haven't said who they are yet."""
        return len(self._visitors)

    def due(self) -> float | None:
        """Dismiss who was silent for too long; seconds until somebody else will have been."""
        silent = [visitor for visitor in self._visitors.values() if visitor.link is None]
        now = time.monotonic()
        for visitor in silent:
            if visitor.since + _HELLO_TIMEOUT_S <= now:
                self._dismiss(visitor)
        return min((left for each in silent if (left := each.since + _HELLO_TIMEOUT_S - now) > 0), default=None)

    def close(self) -> None:
        """Take no more, and let go of those there are; after the watcher was closed."""
        for visitor in list(self._visitors.values()):
            self._dismiss(visitor)
        self._listener.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            # Whoever it was went again; or we are out of descriptors, and it waits.
            if error.errno in _OUT_OF_ROOM:
                time.sleep(_AGAIN_S)
            return
        sock.setblocking(False)
        self._visitors[sock.fileno()] = _Visitor(sock, time.monotonic())
        visitor = self._visitors[sock.fileno()]
        self._watcher.watch(sock.fileno(), lambda: self._hear(visitor))

    def _hear(self, visitor: _Visitor) -> None:
        try:
            message, fds = receive(visitor.sock)
            close_all(fds)  # nobody sends us any
            if isinstance(message, Hello) and visitor.link is None:
                self._greet(visitor, message)
            elif isinstance(message, Map) and visitor.link is not None:
                self._hand_over(visitor, message.segment_id)
            else:
                self._dismiss(visitor)
        except BlockingIOError:
            return
        except (OSError, PenstockError):
            self._dismiss(visitor)

    def _greet(self, visitor: _Visitor, hello: Hello) -> None:
        pid, uid = credentials(visitor.sock)
        refusal = self._refusal(hello, uid)
        if refusal:
            visitor.sock.send(encode(Refused(refusal)))
            self._dismiss(visitor)
            return
        try:
            visitor.link = _core.IncomingLink(hello.name)
        except PenstockError as error:
            visitor.sock.send(encode(Refused(f"it has no room for another peer: {error}")))
            raise
        self._inbox.attach(self._registry, visitor.link)
        visitor.pidfd = pidfd_of(pid)
        if visitor.pidfd >= 0:
            self._watcher.watch(visitor.pidfd, lambda: self._dismiss(visitor))
        welcome = Welcome(self._registry.table_bytes, visitor.link.size_bytes, self._registry.table_address)
        fds = [self._registry.table_fd, visitor.link.fd, self._inbox.wake_fd]
        socket.send_fds(visitor.sock, [encode(welcome)], fds)

    def _refusal(self, hello: Hello, uid: int) -> str:
        if uid not in (os.getuid(), 0):
            return f"it runs as user {os.getuid()}, and you as {uid}"
        if not hmac.compare_digest(hello.instance, self._instance) or not hmac.compare_digest(
            hello.secret, self._secret
        ):
            return "the metadata that you loaded isn't this agent's; load its newest"
        if len(self._visitors) > _MOST_PEERS:
            return f"it has {_MOST_PEERS} peers, and takes no more"
        return ""

    def _hand_over(self, visitor: _Visitor, segment_id: int) -> None:
        shared = _core.shared_segment(segment_id) if self._exposes(segment_id) else None
        if shared is None:
            visitor.sock.send(encode(Gone(segment_id)))
            return
        fd, size_bytes = shared
        try:
            socket.send_fds(visitor.sock, [encode(SegmentAt(segment_id, size_bytes))], [fd])
        finally:
            os.close(fd)

    def _dismiss(self, visitor: _Visitor) -> None:
        if self._visitors.pop(visitor.sock.fileno(), None) is None:
            return
        self._watcher.unwatch(visitor.sock.fileno())
        if visitor.pidfd >= 0:
            self._watcher.unwatch(visitor.pidfd)
            os.close(visitor.pidfd)
        if visitor.link is not None:
            self._inbox.detach(self._registry, visitor.link)
            visitor.link = None  # our loop may hold the visitor until something else happens
        visitor.sock.close()
