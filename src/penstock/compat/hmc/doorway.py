"""Where lines come in: listening sockets, a thread that accepts, short-lived ones that greet."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import selectors
import socket
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from penstock.compat.hmc.line import Line
from penstock.errors import ClosedError, ConfigError, PenstockError, TransferError

__all__ = ["Doorway", "same_user"]

_MOST_GREETINGS = 64
_log = logging.getLogger(__name__)


class Doorway:
    """Listening sockets of one session, and whoever comes in by them.

    Args:
        greet: called for every line that comes in, with it and the door's name, in a thread of its own; it must end by
            a deadline. What it raises closes the line.
        name: for the thread.
    """

    def __init__(self, greet: Callable[[Line, str], None], name: str) -> None:
        self._greet = greet
        self._name = name
        self._pid = os.getpid()
        self._doors: dict[str, socket.socket] = {}
        self._paths: dict[str, Path] = {}
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(_MOST_GREETINGS)
        self._thread: threading.Thread | None = None
        self._wake: tuple[socket.socket, socket.socket] | None = None
        self._closed = False

    @property
    def doors(self) -> list[str]:
        """Names of the doors that are open."""
        return list(self._doors)

    def listen_tcp(self, door: str, ip: str, port: int) -> tuple[str, int]:
        """Opens a door on exactly this address; returns address and port, which the system chooses for 0.

        Raises:
            TransferError: the port is busy, or the address isn't one of this machine's.
        """
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ports of ended sessions; not busy ones
            listener.bind((ip, port))
            listener.listen(128)
        except OSError as error:
            listener.close()
            raise TransferError(f"can't listen on {ip}:{port}: {_why(error)}") from error
        except OverflowError:
            listener.close()
            raise ConfigError(f"port is {port}; give 1 to 65535") from None
        self._open(door, listener)
        address: tuple[str, int] = listener.getsockname()[:2]
        return address

    def listen_unix(self, door: str, path: Path) -> None:
        """Opens a door at a path, for this user alone. A socket that nobody listens on any more is replaced.

        Raises:
            TransferError: somebody listens there, or the path can't be made.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            if _abandoned(path):
                path.unlink(missing_ok=True)
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(128)
        except OSError as error:
            listener.close()
            raise TransferError(f"can't listen on {path}: {_why(error)}") from error
        self._paths[door] = path
        self._open(door, listener)

    def shut(self, door: str) -> None:
        """Closes a door; the port or path is free when this returns. One that isn't open is a no-op."""
        with self._lock:
            listener = self._doors.pop(door, None)
            path = self._paths.pop(door, None)
        ours = os.getpid() == self._pid  # a forked child lets go of its copies, and leaves its parent alone
        if listener is not None and not ours:
            listener.close()
        elif listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            self._rouse()
        if path is not None and ours:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes all doors and ends the thread; again is a no-op."""
        self._closed = True
        for door in self.doors:
            self.shut(door)
        self._rouse()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _open(self, door: str, listener: socket.socket) -> None:
        listener.setblocking(False)
        with self._lock:
            if self._closed:
                listener.close()
                raise ClosedError("the session was closed")
            self._doors[door] = listener
            if self._thread is None:
                self._wake = socket.socketpair()
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and os.getpid() == self._pid:
            with contextlib.suppress(OSError):
                self._wake[1].send(b"\0", socket.MSG_DONTWAIT)

    def _run(self) -> None:
        assert self._wake is not None
        while not self._closed:
            with selectors.DefaultSelector() as selector:
                selector.register(self._wake[0], selectors.EVENT_READ)
                with self._lock:
                    for door, listener in self._doors.items():
                        selector.register(listener, selectors.EVENT_READ, door)
                for key, _ in selector.select():
                    if key.data is None:
                        self._wake[0].recv(4096)
                    else:
                        self._accept(key.data)
        for end in self._wake:
            end.close()

    def _accept(self, door: str) -> None:
        with self._lock:
            listener = self._doors.get(door)
        if listener is None:
            return
        try:
            connection, address = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                _log.warning("no file descriptor left to accept a peer on %s", door)
                threading.Event().wait(0.1)  # or this thread would spin
            return
        name = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "a local peer"
        if not self._free.acquire(blocking=False):
            connection.close()
            return
        arguments = (Line(connection, name), door)
        threading.Thread(target=self._serve, args=arguments, name=f"{self._name}-greeting", daemon=True).start()

    def _serve(self, line: Line, door: str) -> None:
        try:
            self._greet(line, door)
        except PenstockError as error:
            _log.info("a peer was not let in at %s: %s", door, error)
            line.close()
        except Exception:
            _log.exception("a peer could not be let in at %s", door)
            line.close()
        finally:
            self._free.release()


def same_user(line: Line) -> bool:
    """Whether the process at the other end of a Unix socket is this user's, or root's."""
    with socket.socket(fileno=os.dup(line.fileno())) as connection:
        if connection.family != socket.AF_UNIX:
            return True
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", peer)[1] in (0, os.getuid())


def _abandoned(path: Path) -> bool:
    """Whether a socket file is there that nobody listens on."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(str(path)) == errno.ECONNREFUSED


def _why(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "somebody listens there already; choose another, or end that process"
    if error.errno == errno.EADDRNOTAVAIL:
        return "that address is none of this machine's; give one that it has"
    return error.strerror or str(error)
