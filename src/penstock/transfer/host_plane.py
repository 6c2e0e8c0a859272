"""The host plane: how agents on one host find each other, hand over descriptors, and notice when one is gone.

An abstract Unix socket (SEQPACKET) carries the handshake; it is bound to no file, so nothing stays behind, and doesn't
cross network namespaces. After it, memory moves by the core alone; the connection stays open as a sign of life. Its
end, and that of the peer's process (pidfd), which a forked child that inherited the socket would hide, are noticed by
one thread that sleeps otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import os
import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from penstock import _core
from penstock.errors import (
    ClosedError,
    DeadlineExceeded,
    MetadataError,
    PeerLost,
    PeerRefused,
    PeerUnreachable,
    PenstockError,
)
from penstock.transfer.host_messages import (
    MOST_MESSAGE_BYTES,
    Gone,
    Hello,
    Map,
    Message,
    Refused,
    SegmentAt,
    Welcome,
    decode,
    encode,
)
from penstock.transfer.metadata import AgentMetadata

__all__ = ["Attempt", "HostConnection", "HostPlane"]

_MOST_PEERS: Final = 1024
_HELLO_TIMEOUT_S: Final = 5.0
_AGAIN_S: Final = 0.01
_OUT_OF_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Attempt:
    """A connection that is being made, which another thread may give up."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.given_up = False

    def give_up(self) -> None:
        """Wakes whoever waits for the peer's answer; it then fails."""
        self.given_up = True
        with contextlib.suppress(OSError):  # it isn't connected yet, or was closed
            self.sock.shutdown(socket.SHUT_RDWR)

    def connect(self, address: str, deadline: float) -> None:
        """Waits also while the peer's queue is full, which the kernel doesn't do for sockets with a timeout."""
        while True:
            try:
                self.sock.settimeout(_left(deadline))
                self.sock.connect(address)
            except BlockingIOError:
                if time.monotonic() >= deadline or self.given_up:
                    raise TimeoutError from None
                time.sleep(_AGAIN_S)
            else:
                break
        if self.given_up:
            raise TimeoutError


class HostConnection:
    """The initiator's end of a connection to one target: its link, and segments on request."""

    def __init__(
        self, link: _core.HostLink, sock: socket.socket, reaches_process: bool, forget: Callable[[], None]
    ) -> None:
        self.link = link
        self.reaches_process = reaches_process
        self._socket = sock
        self._forget = forget
        self._lock = threading.RLock()  # map() closes what doesn't answer

    def map(self, segment_id: int, deadline: float) -> tuple[int, int]:
        """A descriptor of the peer's segment (the caller's from now on; -1 = it is gone) and the segment's bytes.

        Raises:
            PeerLost, DeadlineExceeded, PeerRefused
        """
        with self._lock:
            try:
                self._socket.settimeout(_left(deadline))
                self._socket.send(encode(Map(segment_id)))
                message, fds = _receive(self._socket)
            except TimeoutError:
                self.close("it didn't answer in time")
                raise DeadlineExceeded(f"the peer didn't hand over segment {segment_id} in time") from None
            except OSError as error:
                raise PeerLost(f"the peer's connection ended: {error}") from error
        if isinstance(message, SegmentAt) and message.segment_id == segment_id and len(fds) == 1:
            return fds[0], message.size_bytes
        _close_all(fds)
        if isinstance(message, Gone):
            return -1, 0
        if message is None:
            raise PeerLost("the peer closed the connection")
        raise PeerRefused(f"the peer answered with {type(message).__name__} when asked for segment {segment_id}")

    def close(self, reason: str = "we closed the connection", timeout_s: float = 5.0) -> None:
        """End it; transfers of other threads that are under way are waited for.

        To the peer the end of the connection says that nobody touches its memory any more. So a transfer that takes
        longer than the timeout keeps the connection until it has ended.
        """
        self.link.lose(reason)
        self._forget()
        if self.link.wait_idle(timeout_s):
            self._hang_up()
        else:
            threading.Thread(target=self._hang_up_when_idle, name="penstock last copy", daemon=True).start()

    def _hang_up_when_idle(self) -> None:
        while not self.link.wait_idle(0.0):
            time.sleep(0.05)
        self._hang_up()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits in map()
        with self._lock:
            self._socket.close()


@dataclass
class _Watched:
    """A file descriptor that the thread watches, and what to do when it becomes ready."""

    ready: Callable[[], None]
    events: int = select.EPOLLIN


@dataclass
class _Visitor:
    """The target's end of one connection."""

    sock: socket.socket
    since: float
    link: _core.IncomingLink | None = None
    pidfd: int = -1


class HostPlane:
    """One agent's side of all connections with agents on this host.

    Args:
        name: the agent's.
        instance: 16 bytes; who connects must mean this one.
        secret: 16 bytes that who connects has to show.
        registry: the agent's registered memory.
        inbox: where notifications arrive.
        exposes: whether a segment holds registered memory, so that peers may map it.

    Threads: any.
    """

    def __init__(
        self,
        name: str,
        *,
        instance: bytes,
        secret: bytes,
        registry: _core.Registry,
        inbox: _core.Inbox,
        exposes: Callable[[int], bool],
    ) -> None:
        self._name = name
        self._instance = instance
        self._secret = secret
        self._registry = registry
        self._inbox = inbox
        self._exposes = exposes
        self._lock = threading.Lock()
        self._watched: dict[int, _Watched] = {}
        self._visitors: dict[int, _Visitor] = {}
        self._closed = False
        self.socket_name = f"penstock/{secrets.token_hex(16)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listener.bind("\0" + self.socket_name)
        self._listener.listen(_MOST_PEERS)
        self._poll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._watch(self._listener.fileno(), _Watched(self._accept))
        self._watch(self._wake, _Watched(lambda: None))
        self._thread = threading.Thread(target=self._run, name=f"penstock {name}", daemon=True)
        self._thread.start()

    # The initiator's side.

    def connect(self, peer: AgentMetadata, timeout_s: float, attempt: Attempt | None = None) -> HostConnection:
        """A connection to an agent on this host; ``attempt`` lets another thread give it up.

        Raises:
            PeerUnreachable: nobody listens there (any more), or doesn't answer in time.
            PeerRefused: it doesn't want us; the message says why.
        """
        deadline = time.monotonic() + timeout_s
        attempt = attempt or Attempt()
        try:
            return self._shake_hands(attempt, peer, deadline)
        except BaseException:
            attempt.sock.close()
            raise

    def _shake_hands(self, attempt: Attempt, peer: AgentMetadata, deadline: float) -> HostConnection:
        sock = attempt.sock
        try:
            attempt.connect("\0" + peer.socket_name, deadline)
            pid, uid = _credentials(sock)
            if uid not in (os.getuid(), 0):
                raise PeerRefused(f"user {uid} answers where {peer.name} should; it must be user {os.getuid()} or root")
            sock.send(encode(Hello(self._name, peer.instance, peer.secret)))
            sock.settimeout(_left(deadline))
            message, fds = _receive(sock)
        except TimeoutError:
            raise PeerUnreachable(
                f"{peer.name} didn't answer in time; its process is stopped, or so busy that its thread can't run"
            ) from None
        except OSError as error:
            raise PeerUnreachable(
                f"{peer.name} can't be reached on this host ({error.strerror or error}); "
                "its process ended, or its agent was closed: load the metadata of the new one"
            ) from error
        if isinstance(message, Welcome) and len(fds) == 3:
            return self._welcomed(sock, peer, message, fds, pid)
        _close_all(fds)
        if isinstance(message, Refused):
            raise PeerRefused(f"{peer.name} refuses the connection: {message.reason}")
        raise PeerUnreachable(f"{peer.name} closed the connection during the handshake")

    def _welcomed(
        self, sock: socket.socket, peer: AgentMetadata, welcome: Welcome, fds: list[int], pid: int
    ) -> HostConnection:
        reaches = pid > 0 and _core.can_reach_process(pid, welcome.probe_address)
        link = _core.HostLink(
            self._registry, fds[0], welcome.table_bytes, fds[1], welcome.link_bytes, fds[2], pid if reaches else 0,
            peer.name,
        )  # fmt: skip
        # Which of the two ends comes first doesn't tell which it was: a process that ends closes its socket before.
        why = "its process ended, or its agent was closed"
        watched = [(sock.fileno(), _Watched(lambda: lost(why), select.EPOLLRDHUP))]
        pidfd = _pidfd(pid)
        if pidfd >= 0:
            watched.append((pidfd, _Watched(lambda: lost(why))))

        def forget() -> None:
            for fd, _ in watched:
                self._unwatch(fd)
            if pidfd >= 0:
                with contextlib.suppress(OSError):
                    os.close(pidfd)
            watched.clear()

        def lost(reason: str) -> None:
            link.lose(reason)
            for fd, _ in watched:
                self._unwatch(fd)

        connection = HostConnection(link, sock, reaches, forget)
        try:
            for fd, what in watched:
                self._watch(fd, what)
        except BaseException:
            connection.close("our agent was closed")
            raise
        return connection

    # The target's side: everything below runs on the plane's thread.

    def _run(self) -> None:
        while not self._closed:
            with contextlib.suppress(InterruptedError):
                for fd, _ in self._poll.poll(self._until_next_expiry()):
                    with self._lock:
                        watched = self._watched.get(fd)
                    # Meanwhile another thread may have closed this descriptor and got its number for another use.
                    if watched is not None and _is_ready(fd, watched.events):
                        watched.ready()
            self._expire()

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
        self._watch(sock.fileno(), _Watched(lambda: self._hear(visitor)))

    def _hear(self, visitor: _Visitor) -> None:
        try:
            message, fds = _receive(visitor.sock)
            _close_all(fds)  # nobody sends us any
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
        pid, uid = _credentials(visitor.sock)
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
        visitor.pidfd = _pidfd(pid)
        if visitor.pidfd >= 0:
            self._watch(visitor.pidfd, _Watched(lambda: self._dismiss(visitor)))
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
        self._unwatch(visitor.sock.fileno())
        if visitor.pidfd >= 0:
            self._unwatch(visitor.pidfd)
            os.close(visitor.pidfd)
        if visitor.link is not None:
            self._inbox.detach(self._registry, visitor.link)
            visitor.link = None  # our loop may hold the visitor until something else happens
        visitor.sock.close()

    def _until_next_expiry(self) -> float | None:
        silent = [visitor.since for visitor in self._visitors.values() if visitor.link is None]
        return max(0.0, min(silent) + _HELLO_TIMEOUT_S - time.monotonic()) if silent else None

    def _expire(self) -> None:
        latest = time.monotonic() - _HELLO_TIMEOUT_S
        for visitor in [each for each in self._visitors.values() if each.link is None and each.since <= latest]:
            self._dismiss(visitor)

    # Both.

    def _watch(self, fd: int, watched: _Watched) -> None:
        with self._lock:
            if self._closed:
                raise ClosedError(f"the agent {self._name} is closed")
            self._watched[fd] = watched
            self._poll.register(fd, watched.events)

    def _unwatch(self, fd: int) -> None:
        with self._lock:
            if self._watched.pop(fd, None) is not None and not self._closed:
                with contextlib.suppress(OSError):
                    self._poll.unregister(fd)

    def close(self) -> None:
        """Take no more visitors, and let go of those there are. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        os.eventfd_write(self._wake, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        for visitor in list(self._visitors.values()):
            self._dismiss(visitor)
        self._listener.close()
        self._poll.close()
        os.close(self._wake)


def _left(deadline: float) -> float:
    # A timeout of 0 would mean "don't block", and fail in another way.
    return max(0.001, deadline - time.monotonic())


def _is_ready(fd: int, events: int) -> bool:
    poll = select.poll()
    poll.register(fd, events)
    return any(found & (events | select.POLLHUP | select.POLLERR) for _, found in poll.poll(0))


def _receive(sock: socket.socket) -> tuple[Message | None, list[int]]:
    """One message and the descriptors that came with it; None = the other side closed."""
    data, fds, flags, _ = socket.recv_fds(sock, MOST_MESSAGE_BYTES, 8, socket.MSG_CMSG_CLOEXEC)
    if not data:
        _close_all(fds)
        return None, []
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise MetadataError(
                f"a peer on this host sent more than {MOST_MESSAGE_BYTES} bytes or 8 descriptors at once"
            )
        return decode(data), fds
    except MetadataError:
        _close_all(fds)
        raise


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _credentials(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end, as the kernel knows it; pid 0 = not to be seen from here."""
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid) if pid > 0 else -1
    except OSError:
        return -1  # it has ended already, which its socket tells as well; or a kernel without pidfd
