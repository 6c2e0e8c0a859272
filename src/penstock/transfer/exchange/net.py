"""Sockets with deadlines: what the clients and servers of this room share."""

from __future__ import annotations

import socket
from typing import Final

from penstock.errors import ConfigError, MetadataError, PeerUnreachable
from penstock.net import LOOPBACK, Deadline, bind

__all__ = [
    "listen",
    "receive_exactly",
    "receive_line",
    "send_all",
    "usable_token",
]

_BACKLOG: Final = 4096  # of a crowd that comes at once; the system may allow less
_PIECE_BYTES: Final = 256 << 10


def listen(host: str, port: int, token: str | None, what: str) -> socket.socket:
    """A listening socket that doesn't block.

    Args:
        host: the address; beyond loopback only with a token.
        port: 0 takes a free one.
        token: what clients must know, or None.
        what: who listens, as an error names it: "a key-value server".

    Raises:
        ConfigError: the port is taken, the address isn't ours, or everybody could reach it without a token.
    """
    usable_token(token)
    try:
        remedy = f"give it a token that its clients know, or host={LOOPBACK!r}"
        listener = bind(host, port, what=what, guarded=token is not None, remedy=remedy)
        listener.listen(_BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(f"{what} can't listen on {host}:{port}: {error}; choose another port or address") from error
    listener.setblocking(False)
    return listener


def usable_token(token: str | None) -> bytes:
    """A token's bytes; none of it is empty.

    Raises:
        ConfigError: an empty token, which would let everybody in.
    """
    if token is None:
        return b""
    if not token:
        raise ConfigError("the token is empty; give one of 16 characters or more, or None where everybody is trusted")
    return token.encode("utf-8", "surrogatepass")


def send_all(connection: socket.socket, data: bytes, deadline: Deadline) -> None:
    """Send all of it.

    Raises:
        PeerUnreachable: the other side ended.
        DeadlineExceeded: it didn't take it in time.
    """
    try:
        connection.settimeout(deadline.left_s())
        connection.sendall(data)
    except TimeoutError as error:
        raise deadline.exceeded("the other side doesn't read") from error
    except OSError as error:
        raise _ended(error) from error


def receive_exactly(connection: socket.socket, size: int, deadline: Deadline) -> bytes:
    """So many bytes.

    Raises:
        PeerUnreachable: the other side ended first.
        DeadlineExceeded: they didn't come in time.
    """
    data = bytearray()
    while len(data) < size:
        data += _receive(connection, size - len(data), deadline)
    return bytes(data)


def receive_line(connection: socket.socket, most_bytes: int, deadline: Deadline) -> bytes:
    """Everything up to the first newline, without it; what comes after it is lost.

    Raises:
        MetadataError: a longer line.
        PeerUnreachable: the other side ended first.
        DeadlineExceeded: it didn't come in time.
    """
    line = bytearray()
    while True:
        piece = _receive(connection, _PIECE_BYTES, deadline)
        end = piece.find(b"\n")
        line += piece if end < 0 else piece[:end]
        if len(line) > most_bytes:
            raise MetadataError(f"{deadline.doing}: the answer is longer than {most_bytes} bytes")
        if end >= 0:
            return bytes(line)


def _receive(connection: socket.socket, most_bytes: int, deadline: Deadline) -> bytes:
    try:
        connection.settimeout(deadline.left_s())
        piece = connection.recv(min(most_bytes, _PIECE_BYTES))
    except TimeoutError as error:
        raise deadline.exceeded("the other side is silent") from error
    except OSError as error:
        raise _ended(error) from error
    if not piece:
        raise _ended(None)
    return piece


def _ended(error: OSError | None) -> PeerUnreachable:
    said = f": {error}" if error else ""
    return PeerUnreachable(f"the connection was closed before the answer came{said}")
