"""Deadlines, what leases are counted by, connections within deadlines, and sockets that only those reach who may."""

from __future__ import annotations

import ipaddress
import math
import socket
import time
from typing import Final

from penstock.errors import ConfigError, DeadlineExceeded, PeerUnreachable

__all__ = ["LOOPBACK", "Deadline", "bind", "connect", "is_loopback", "join_address", "lease_clock", "split_address"]

LOOPBACK: Final = "127.0.0.1"

_WAKING: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

_CONNECT_TIMEOUT_S: Final = 1.0  # a host that is there answers in milliseconds
_CONNECT_TRIES: Final = 3
_LAST_TRY_S: Final = 0.01


def lease_clock() -> float:
    """Seconds, by a clock that never goes back and goes on while the machine sleeps, where the system has one.

    ``time.monotonic`` stands still then (clock_gettime(2)), so whoever counts by it what is theirs for a while would
    believe in it when others have it.
    """
    return time.clock_gettime(_WAKING)


class Deadline:
    """The moment after which a wait has failed.

    Args:
        timeout_s: seconds from now; at least 0.
        doing: what is waited for, as the error begins: "fetching the metadata of b".

    Raises:
        ConfigError: ``timeout_s`` isn't a number of seconds.
    """

    def __init__(self, timeout_s: float, doing: str) -> None:
        if not (isinstance(timeout_s, int | float) and math.isfinite(timeout_s) and timeout_s >= 0):
            raise ConfigError(f"timeout_s={timeout_s!r}; give a number of seconds, 0 or more")
        self.timeout_s = timeout_s
        self.doing = doing
        self._at = time.monotonic() + timeout_s

    def pause(self, pause_s: float) -> bool:
        """Sleep so long, or almost to the end; whether there is time for another try."""
        left_s = self._at - time.monotonic()
        if left_s <= 2 * _LAST_TRY_S:
            return False
        time.sleep(min(pause_s, left_s - _LAST_TRY_S))
        return True

    def left_s(self) -> float:
        """Seconds that are left, more than 0.

        Raises:
            DeadlineExceeded: none are.
        """
        left_s = self._at - time.monotonic()
        if left_s <= 0:
            raise self.exceeded()
        return left_s

    @property
    def is_over(self) -> bool:
        """Whether nothing is left."""
        return time.monotonic() >= self._at

    def sooner(self, timeout_s: float) -> Deadline:
        """One for a part of the work: so many seconds from now, or this one where it comes first.

        Raises:
            DeadlineExceeded: nothing is left.
        """
        return Deadline(min(timeout_s, self.left_s()), self.doing)

    def exceeded(self, why: str = "") -> DeadlineExceeded:
        """The error to raise once it has passed; ``why`` says what was seen last."""
        return DeadlineExceeded(f"{self.doing}: not done within {self.timeout_s:g} s{why and '; '}{why}")


def connect(host: str, port: int, deadline: Deadline) -> socket.socket:
    """A connection to a server, tried at each address that its name has.

    An address that is silent for a second is tried again, twice: a line that loses packets may have lost the first.

    Raises:
        PeerUnreachable: nothing took it; its ``__cause__`` is what the system said.
        DeadlineExceeded: the deadline passed first.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, OverflowError, UnicodeError) as error:
        raise PeerUnreachable(f"{host}:{port} isn't an address: {error}") from error
    failure: OSError | None = None
    for _ in range(_CONNECT_TRIES):
        for family, kind, protocol, _name, address in addresses:
            connection = socket.socket(family, kind, protocol)
            try:
                _join(connection, address, min(_CONNECT_TIMEOUT_S, deadline.left_s()))
            except OSError as error:  # DeadlineExceeded is one, too, and leaves through left_s below
                connection.close()
                failure = error
            else:
                return connection
        if not isinstance(failure, TimeoutError):
            break
    deadline.left_s()
    raise PeerUnreachable(f"nothing answers at {host}:{port}: {failure}; is it running there?") from failure


def _join(connection: socket.socket, address: tuple[object, ...], timeout_s: float) -> None:
    connection.settimeout(timeout_s)
    connection.connect(address)
    if connection.getsockname() == connection.getpeername():  # tcp(7): a port may be joined to itself
        raise ConnectionRefusedError("nothing listens there")
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def split_address(address: str, *, name: str = "addr") -> tuple[str, int]:
    """Host and port of ``host:port``; an IPv6 host stands in brackets.

    Raises:
        ConfigError: it isn't that.
    """
    host, colon, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not (colon and _is_host(bare) and port.isdecimal() and int(port) < 1 << 16) or (":" in bare and bare == host):
        raise ConfigError(f"{name} {address!r} isn't host:port; give e.g. 127.0.0.1:50051, or [::1]:50051")
    return bare, int(port)


def _is_host(name: str) -> bool:
    """Whether it may be looked up: what can't be makes ``socket`` raise UnicodeError, which isn't an OSError."""
    try:
        return bool(name.encode("idna"))
    except UnicodeError:
        return False


def join_address(host: str, port: int) -> str:
    """The same, back."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it: an address, or ``localhost``."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int, *, what: str, guarded: bool, remedy: str) -> socket.socket:
    """A TCP socket that has its address and doesn't listen yet; the caller owns it.

    Args:
        host: the address; empty = every one.
        port: 0 takes a free one.
        what: who will listen, as an error names it: "a page".
        guarded: whether those who reach it must show who they are. If not, it is on loopback only.
        remedy: what to do where that is refused.

    Raises:
        ConfigError: everybody could reach it.
        OSError, OverflowError, UnicodeError: the port is taken, or the address isn't ours.
    """
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    if not guarded and not all(is_loopback(str(address[0])) for *_, address in found):
        raise ConfigError(
            f"{what} on {host or 'every address'} could be reached from other machines by anybody; {remedy}"
        )
    family, kind, protocol, _name, address = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not kept off by connections that just ended
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound
