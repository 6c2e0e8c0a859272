"""The initiator's half of the host plane: the way to an agent on this host, from the first attempt to the end."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from penstock import _core
from penstock.errors import DeadlineExceeded, PeerLost, PeerRefused, PeerUnreachable
from penstock.transfer.host_messages import Gone, Hello, Map, Refused, SegmentAt, Welcome, encode
from penstock.transfer.host_socket import close_all, credentials, pidfd_of, receive, seconds_left
from penstock.transfer.metadata import AgentMetadata
from penstock.transfer.watcher import Watcher

__all__ = ["Attempt", "HostConnection", "shake_hands"]

_AGAIN_S: Final = 0.01


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
                self.sock.settimeout(seconds_left(deadline))
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
                self._socket.settimeout(seconds_left(deadline))
                self._socket.send(encode(Map(segment_id)))
                message, fds = receive(self._socket)
            except TimeoutError:
                self.close("it didn't answer in time")
                raise DeadlineExceeded(f"the peer didn't hand over segment {segment_id} in time") from None
            except OSError as error:
                raise PeerLost(f"the peer's connection ended: {error}") from error
        if isinstance(message, SegmentAt) and message.segment_id == segment_id and len(fds) == 1:
            return fds[0], message.size_bytes
        close_all(fds)
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


def shake_hands(
    attempt: Attempt, peer: AgentMetadata, *, name: str, registry: _core.Registry, watcher: Watcher, deadline: float
) -> HostConnection:
    """Connect to an agent on this host.

    Args:
        attempt: that nobody has used yet. The caller closes its socket if this fails.
        peer: the agent's metadata.
        name: our agent's.
        registry: our agent's registered memory.
        watcher: what notices when the peer is gone.
        deadline: on the monotonic clock.

    Raises:
        PeerUnreachable: nobody listens there (any more), or doesn't answer in time.
        PeerRefused: it doesn't want us; the message says why.
        ClosedError: our agent was closed meanwhile.
    """
    sock = attempt.sock
    try:
        attempt.connect("\0" + peer.socket_name, deadline)
        pid, uid = credentials(sock)
        if uid not in (os.getuid(), 0):
            raise PeerRefused(f"user {uid} answers where {peer.name} should; it must be user {os.getuid()} or root")
        sock.send(encode(Hello(name, peer.instance, peer.secret)))
        sock.settimeout(seconds_left(deadline))
        message, fds = receive(sock)
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
        reaches = pid > 0 and _core.can_reach_process(pid, message.probe_address)
        link = _core.HostLink(
            registry, fds[0], message.table_bytes, fds[1], message.link_bytes, fds[2], pid if reaches else 0, peer.name
        )
        return _watched(link, sock, pid, reaches, watcher)
    close_all(fds)
    if isinstance(message, Refused):
        raise PeerRefused(f"{peer.name} refuses the connection: {message.reason}")
    raise PeerUnreachable(f"{peer.name} closed the connection during the handshake")


def _watched(link: _core.HostLink, sock: socket.socket, pid: int, reaches: bool, watcher: Watcher) -> HostConnection:
    """The connection, lost as soon as the peer's socket or its process ends."""
    # Which of the two ends comes first doesn't tell which it was: a process that ends closes its socket before.
    why = "its process ended, or its agent was closed"
    watched = [(sock.fileno(), select.EPOLLRDHUP)]
    pidfd = pidfd_of(pid)
    if pidfd >= 0:
        watched.append((pidfd, select.EPOLLIN))

    def forget() -> None:
        for fd, _ in watched:
            watcher.unwatch(fd)
        if pidfd >= 0:
            with contextlib.suppress(OSError):
                os.close(pidfd)
        watched.clear()

    def lost() -> None:
        link.lose(why)
        for fd, _ in watched:
            watcher.unwatch(fd)

    connection = HostConnection(link, sock, reaches, forget)
    try:
        for fd, events in watched:
            watcher.watch(fd, lost, events)
    except BaseException:
        connection.close("our agent was closed")
        raise
    return connection
