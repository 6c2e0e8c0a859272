"""One message of the host plane with its descriptors, over a socket; and whose process is at the other end of it."""

from __future__ import annotations

import os
import socket
import struct
import time
from typing import Final

from penstock.errors import MetadataError
from penstock.transfer.host_messages import MOST_MESSAGE_BYTES, Message, decode

__all__ = ["close_all", "credentials", "pidfd_of", "receive", "seconds_left"]

_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


def receive(sock: socket.socket) -> tuple[Message | None, list[int]]:
    """One message and the descriptors that came with it, the caller's from now on; None = the other side closed.

    Raises:
        MetadataError: it isn't one.
        OSError: of the socket.
    """
    data, fds, flags, _ = socket.recv_fds(sock, MOST_MESSAGE_BYTES, 8, socket.MSG_CMSG_CLOEXEC)
    if not data:
        close_all(fds)
        return None, []
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise MetadataError(
                f"a peer on this host sent more than {MOST_MESSAGE_BYTES} bytes or 8 descriptors at once"
            )
        return decode(data), fds
    except MetadataError:
        close_all(fds)
        raise


def close_all(fds: list[int]) -> None:
    """Close descriptors that came with a message."""
    for fd in fds:
        os.close(fd)


def credentials(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end, as the kernel knows it; pid 0 = not to be seen from here."""
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


def pidfd_of(pid: int) -> int:
    """A descriptor, the caller's, that becomes readable when that process ends; -1 = there is none."""
    try:
        return os.pidfd_open(pid) if pid > 0 else -1
    except OSError:
        return -1  # it has ended already, which its socket tells as well; or a kernel without pidfd


def seconds_left(deadline: float) -> float:
    """For a socket's timeout, until ``deadline`` on the monotonic clock."""
    # A timeout of 0 would mean "don't block", and fail in another way.
    return max(0.001, deadline - time.monotonic())
