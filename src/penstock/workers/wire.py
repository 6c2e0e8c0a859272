"""How a loader and its worker processes talk: JSON in frames over a Unix socket; payload never goes this way.

A frame is its size (4 bytes, little-endian) and so many bytes of JSON. With one frame, that of ``arena``, a file
descriptor travels along (``SCM_RIGHTS``, unix(7)).
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, Final

from penstock.errors import PenstockError

__all__ = ["Gone", "Message", "Overdue", "receive", "send"]

Message = dict[str, Any]

MOST_BYTES: Final = 64 << 20
_HEADER: Final = struct.Struct("<I")
_SLICE_S: Final = 1.0  # how long one wait lasts before it looks again whether it is still wanted


class Gone(Exception):
    """The other side is no more."""


class Overdue(Exception):
    """The other side didn't answer in time."""


def send(connection: socket.socket, message: Message, fd: int | None = None) -> None:
    """Send one message.

    Raises:
        Gone: nobody is there to take it.
        Overdue: it wasn't taken within the socket's timeout.
    """
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MOST_BYTES:
        raise PenstockError(
            f"a message of {len(data)} bytes to or from a worker; at most {MOST_BYTES}: smaller batches"
        )
    frame = _HEADER.pack(len(data)) + data
    try:
        sent = socket.send_fds(connection, [frame], [fd]) if fd is not None else 0
        connection.sendall(memoryview(frame)[sent:])
    except TimeoutError as error:
        raise Overdue from error
    except OSError as error:
        raise Gone from error


def receive(
    connection: socket.socket, *, deadline_s: float | None = None, check: Callable[[], None] | None = None
) -> tuple[Message, int | None]:
    """The next message, and the file descriptor that came with it.

    Args:
        connection: what to listen to.
        deadline_s: until when, by ``time.monotonic()``; None = for ever.
        check: called while waiting, once a second; may raise.

    Raises:
        Gone: the other side ended.
        Overdue: the deadline passed.
    """
    fds: list[int] = []
    try:
        (size,) = _HEADER.unpack(_exactly(connection, _HEADER.size, deadline_s, check, fds))
        if size > MOST_BYTES:
            raise Gone
        message = json.loads(_exactly(connection, size, deadline_s, check, fds))
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return message, fds[0] if fds else None


def _exactly(
    connection: socket.socket,
    size: int,
    deadline_s: float | None,
    check: Callable[[], None] | None,
    fds: list[int],
) -> bytes:
    data = bytearray()
    while len(data) < size:
        if deadline_s is not None:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise Overdue
            connection.settimeout(min(_SLICE_S, left_s))
        try:
            piece, ancillary, _, _ = connection.recvmsg(
                min(size - len(data), 1 << 20), socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
            )
        except TimeoutError:
            if check is not None:
                check()
            continue
        except OSError as error:
            raise Gone from error
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.extend(array.array("i", content))
        if not piece:
            raise Gone
        data += piece
    return bytes(data)
