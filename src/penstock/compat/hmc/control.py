"""The control plane: numbers ("tags") between peers that know each other by id, in order, over TCP or Unix sockets.

What arrived lies in the socket until somebody receives it, so a peer that sends faster than we receive is slowed down
by the system, and what it sent before it ended is still received.
"""

from __future__ import annotations

import secrets
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

from penstock.compat.hmc import greeting
from penstock.compat.hmc.doorway import Doorway, same_user
from penstock.compat.hmc.enums import CtrlTransport
from penstock.compat.hmc.line import INT, Frame, Line, deadline_after, remaining
from penstock.compat.hmc.whole import whole
from penstock.config import choice
from penstock.errors import (
    ClosedError,
    ConfigError,
    MetadataError,
    PeerLost,
    PeerRefused,
    PeerUnreachable,
    UnknownPeer,
)

__all__ = ["Control", "CtrlLink", "choose_transport", "peer_number", "uds_path"]

_ID = struct.Struct("=I")
_TAG = struct.Struct("=Q")
_TAG_LIMIT = 1 << 64
_INSTANCE_BYTES = 8
_RETRY_S = 0.01


@dataclass
class CtrlLink:
    """How a peer's control plane is reached: by address and port, or by path."""

    transport: CtrlTransport = CtrlTransport.TCP
    ip: str = ""
    port: int = 0
    uds_path: str = ""


def uds_path(folder: str, peer_id: int) -> Path:
    """The Unix socket of a peer in this folder."""
    return Path(folder) / f"hmc_ctrl_rank_{peer_number(peer_id)}.sock"


def peer_number(value: object) -> int:
    """A peer's id, which is a number of 32 bits.

    Raises:
        TypeError: no whole number.
        ConfigError: outside of 32 bits.
    """
    number = whole(value, "a peer's id")
    if not 0 <= number < 1 << 32:
        raise ConfigError(f"a peer's id is {number}; give 0 to {(1 << 32) - 1}")
    return number


def choose_transport(local_ip: str, peer_ip: str) -> CtrlTransport:
    """A Unix socket to a peer at our own address, else TCP; the variable ``CTRL_TRANSPORT`` says otherwise."""
    same = local_ip == peer_ip and peer_ip not in ("", "0.0.0.0")
    chosen = choice("CTRL_TRANSPORT", "uds" if same else "tcp", {"tcp": "tcp", "uds": "uds"})
    return CtrlTransport[chosen.upper()]


class Control:
    """The control plane of one session.

    Args:
        token: what every peer has to know; empty = nothing.
        timeout_s: the deadline of what is given none.
    """

    def __init__(self, *, token: str = "", timeout_s: float = 30.0) -> None:
        self._token = token
        self._timeout_s = timeout_s
        self._instance = secrets.token_bytes(_INSTANCE_BYTES)
        self._lines: dict[int, Line] = {}
        self._instances: dict[int, bytes] = {}
        self._dialing: set[int] = set()
        self._changed = threading.Condition()
        self._doorway = Doorway(self._greet, "hmc-control")
        self._self_id: int | None = None
        self._port: int | None = None
        self._closed = False

    @property
    def self_id(self) -> int | None:
        """Our own id; None before it was given."""
        return self._self_id

    @property
    def port(self) -> int | None:
        """Where we listen by TCP; None = nowhere."""
        return self._port

    @property
    def peers(self) -> list[int]:
        """Ids that a line was made with and not taken away."""
        with self._changed:
            return sorted(self._lines)

    def listen(self, self_id: int, bind_ip: str, tcp_port: int, path: str = "") -> int:
        """Lets peers in by TCP and, where a path is given, by a Unix socket; returns the TCP port.

        Again is a no-op for what is open. If one of the two can't be opened, neither is.
        """
        self._become(self_id)
        by_tcp = self._port is None
        port = self._doorway.listen_tcp("tcp", bind_ip, tcp_port)[1] if by_tcp else self._port
        try:
            if path and "uds" not in self._doorway.doors:
                self._doorway.listen_unix("uds", Path(path))
        except BaseException:
            if by_tcp:
                self._doorway.shut("tcp")
            raise
        self._port = port
        return int(port or 0)

    def stop_listening(self) -> None:
        """Frees port and path; lines that were made stay."""
        self._doorway.shut("tcp")
        self._doorway.shut("uds")
        self._port = None

    def connect(self, peer_id: int, self_id: int, link: CtrlLink) -> None:
        """Makes a line to a peer; one that is there and alive stays."""
        peer_number(peer_id)
        self._become(self_id)
        deadline = deadline_after(self._timeout_s)
        with self._changed:
            self._dialing.add(peer_id)
        try:
            while not self._alive(peer_id) and not self._dial(peer_id, link, deadline):
                with self._changed:  # it makes a line with us at the same moment: ours is not needed
                    self._changed.wait(_RETRY_S)
        finally:
            with self._changed:
                self._dialing.discard(peer_id)

    def send(self, peer: int, tag: int, timeout_s: float | None = None) -> None:
        """Sends a tag, a number of 64 bits, after all that were sent to this peer before."""
        if not 0 <= whole(tag, "a tag") < _TAG_LIMIT:
            raise ConfigError(f"a tag is {tag}; give 0 to {_TAG_LIMIT - 1}")
        deadline = deadline_after(self._timeout_s if timeout_s is None else timeout_s)
        self._line(peer, None).send(Frame(INT, 0, _TAG.pack(tag)), deadline)

    def receive(self, peer: int, timeout_s: float | None = None) -> int:
        """The next tag of this peer, in the order in which it sent them.

        Where we listen, a peer that never was here is waited for.

        Raises:
            UnknownPeer: there is none of this id.
            DeadlineExceeded: it sent none in time.
            PeerLost: it ended, and everything that it sent is received.
        """
        deadline = deadline_after(self._timeout_s if timeout_s is None else timeout_s)
        while True:
            line = self._line(peer, deadline if self._doorway.doors else None)
            try:
                frame = line.receive(deadline, limit=_TAG.size)
            except PeerLost:
                with self._changed:
                    if self._lines.get(peer, line) is line:
                        raise
                continue  # it came again, by a new line
            if frame.kind != INT or len(frame.payload) != _TAG.size:
                self.close_peer(peer)
                raise MetadataError(f"peer {peer} sent kind {frame.kind} of {len(frame.payload)} bytes, not a tag")
            return int(_TAG.unpack(frame.payload)[0])

    def close_peer(self, peer: int) -> None:
        """Ends the line to a peer; one that isn't there is a no-op."""
        with self._changed:
            line = self._lines.pop(peer_number(peer), None)
        if line is not None:
            line.close()

    def close(self) -> None:
        """Ends everything and wakes whoever waits; again is a no-op."""
        with self._changed:
            self._closed = True
            lines, self._lines = list(self._lines.values()), {}
            self._changed.notify_all()
        self._doorway.close()
        for line in lines:
            line.close()

    def _become(self, self_id: int) -> None:
        peer_number(self_id)
        if self._self_id not in (None, self_id):
            raise ConfigError(f"self_id is {self_id}, and this session is {self._self_id} already")
        self._self_id = self_id

    def _dial(self, peer_id: int, link: CtrlLink, deadline: float) -> bool:
        line = Line(_dialed(link, deadline), f"control of peer {peer_id}")
        try:
            if not same_user(line):
                raise PeerRefused(f"{link.uds_path} belongs to another user")
            welcome, used = greeting.dial(line, self._introduction(), self._token, deadline)
            found, instance = _introduced(line, welcome)
            if found != peer_id:
                raise PeerRefused(f"the peer there is {found}, not {peer_id}; check address, port and id")
            if used:
                self._keep(peer_id, instance, line)
        except BaseException:
            line.close()
            raise
        if not used:
            line.close()
        return used

    def _greet(self, line: Line, door: str) -> None:
        deadline = deadline_after(self._timeout_s)
        if door == "uds" and not same_user(line):
            raise PeerRefused("a process of another user")
        said, wants_answer = greeting.hello(line, deadline)
        peer, instance = _introduced(line, said)
        line.name = f"control of peer {peer}"

        def admit() -> bool:
            with self._changed:
                return not self._crossed(peer, instance) and self._keep(peer, instance, line)

        if not greeting.answer(line, self._introduction(), self._token, deadline, admit=admit, wanted=wants_answer):
            line.close()

    def _introduction(self) -> bytes:
        assert self._self_id is not None  # nobody listens or dials before it is known
        return _ID.pack(self._self_id) + self._instance

    def _crossed(self, peer: int, instance: bytes) -> bool:
        """Whether the two of us have a line already, or make one that wins: the one of the lower id."""
        if instance and self._alive(peer) and self._instances.get(peer) == instance:
            return True
        return bool(instance) and peer in self._dialing and self.self_id is not None and self.self_id < peer

    def _alive(self, peer: int) -> bool:
        with self._changed:
            line = self._lines.get(peer)
        return line is not None and not line.ended

    def _keep(self, peer: int, instance: bytes, line: Line) -> bool:
        with self._changed:
            if self._closed:
                raise ClosedError("the session was closed")
            before = self._lines.get(peer)
            self._lines[peer] = line
            self._instances[peer] = instance
            self._changed.notify_all()
        if before is not None:
            before.close()
        return True

    def _line(self, peer: int, deadline: float | None) -> Line:
        peer_number(peer)
        with self._changed:
            while True:
                if self._closed:
                    raise ClosedError("the session was closed")
                line = self._lines.get(peer)
                if line is not None:
                    return line
                if deadline is None or not self._changed.wait(remaining(deadline)):
                    known = ", ".join(map(str, sorted(self._lines))) or "none"
                    raise UnknownPeer(f"no control line with peer {peer}; there are: {known}")


def _introduced(line: Line, said: bytes) -> tuple[int, bytes]:
    """The id that a peer gave, and which of its lives this is; HMC's own HELLO has only the id."""
    if len(said) not in (_ID.size, _ID.size + _INSTANCE_BYTES):
        raise MetadataError(f"{line.name} introduced itself with {len(said)} bytes")
    return int(_ID.unpack_from(said)[0]), said[_ID.size :]


def _dialed(link: CtrlLink, deadline: float) -> socket.socket:
    where = link.uds_path if link.transport is CtrlTransport.UDS else f"{link.ip}:{link.port}"
    try:
        if link.transport is CtrlTransport.TCP:
            return connected(link.ip, link.port, deadline)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(remaining(deadline))
            connection.connect(link.uds_path)
        except BaseException:
            connection.close()
            raise
        return connection
    except OSError as error:
        hint = "; set CTRL_TRANSPORT=tcp if it is not on this host" if link.transport is CtrlTransport.UDS else ""
        raise PeerUnreachable(f"no control plane at {where}: {error.strerror or error}{hint}") from error


def connected(ip: str, port: int, deadline: float) -> socket.socket:
    """A TCP connection, without delay for small frames."""
    connection = socket.create_connection((ip, port), timeout=max(0.001, remaining(deadline)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
