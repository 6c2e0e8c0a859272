"""A session's calls of HMC's second generation: peers by ip and port, an offset for each buffer, control tags."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from penstock.compat.hmc.communicator import TWO_SIDED, kind_of
from penstock.compat.hmc.connection import Connection
from penstock.compat.hmc.connections import port_number
from penstock.compat.hmc.enums import ConnType
from penstock.compat.hmc.errors import operation
from penstock.compat.hmc.meeting import Meeting
from penstock.compat.hmc.payload import byte_count, is_device_tensor, writable
from penstock.errors import ConfigError, TransportUnavailable

__all__ = ["Remote"]


class Remote(Meeting):
    """What a session does with a peer's buffer and with its control plane."""

    @operation("put_remote")
    def put_remote(
        self, ip: str, port: int, local_off: int, remote_off: int, nbytes: int, conn: Any = ConnType.RDMA
    ) -> None:
        """Writes ``nbytes`` of our buffer from ``local_off`` to ``remote_off`` of a peer's; they are there at return.

        Raises:
            HMCStatusError: not connected, outside of either buffer, or the bytes didn't arrive.
        """
        self._peer(ip, port, conn).move("WRITE", self.buf.core, local_off, remote_off, nbytes)

    @operation("get_remote")
    def get_remote(
        self, ip: str, port: int, local_off: int, remote_off: int, nbytes: int, conn: Any = ConnType.RDMA
    ) -> None:
        """Reads ``nbytes`` of a peer's buffer from ``remote_off`` to ``local_off`` of ours; as ``put_remote``."""
        self._peer(ip, port, conn).move("READ", self.buf.core, local_off, remote_off, nbytes)

    @operation("put_nb")
    def put_nb(
        self, ip: str, port: int, local_off: int, remote_off: int, nbytes: int, conn: Any = ConnType.RDMA
    ) -> int:
        """Starts what ``put_remote`` does. Our bytes have to stay as they are until it is waited for.

        Returns:
            A number for ``wait``; 0 = done already.
        """
        found = self._peer(ip, port, conn, wait=False)
        return self.comm.pending.add(found.start("WRITE", self.buf.core, local_off, remote_off, nbytes))

    @operation("get_nb")
    def get_nb(
        self, ip: str, port: int, local_off: int, remote_off: int, nbytes: int, conn: Any = ConnType.RDMA
    ) -> int:
        """Starts what ``get_remote`` does; as ``put_nb``."""
        found = self._peer(ip, port, conn, wait=False)
        return self.comm.pending.add(found.start("READ", self.buf.core, local_off, remote_off, nbytes))

    @operation("wait")
    def wait(self, ids: int | Iterable[int], timeout_s: float | None = None) -> None:
        """Waits until what was started is done: one number, or several. 0 is done already.

        Raises:
            HMCStatusError: ``NOT_FOUND`` for a number that is none, or was waited for before; ``TIMEOUT``, and it can
                be waited for again; else what it failed with.
        """
        self.comm.pending.wait(ids, self._timeout_s if timeout_s is None else timeout_s)

    @operation("buffer_put_then_put")
    def buffer_put_then_put(
        self,
        ip: str,
        port: int,
        data: Any,
        *,
        local_off: int = 0,
        remote_off: int = 0,
        conn: Any = ConnType.RDMA,
        nbytes: int | None = None,
        device: str | None = None,
    ) -> int:
        """Copies ``data`` to ``local_off`` of our buffer, then to ``remote_off`` of a peer's; says how many bytes."""
        found = self._peer(ip, port, conn)
        with self.alone():
            count = self.buf.put(data, nbytes=nbytes, offset=local_off, device=device)
            found.move("WRITE", self.buf.core, local_off, remote_off, count)
        return count

    @operation("get_then_buffer_get_into")
    def get_then_buffer_get_into(
        self,
        ip: str,
        port: int,
        dest: Any,
        *,
        local_off: int = 0,
        remote_off: int = 0,
        conn: Any = ConnType.RDMA,
        nbytes: int | None = None,
        device: str | None = None,
    ) -> int:
        """Reads from ``remote_off`` of a peer's buffer to ``local_off`` of ours, and into ``dest``; says how much."""
        count = self._wanted(dest, nbytes, device)
        self._read_out(self._peer(ip, port, conn), dest, local_off, remote_off, count, device)
        return count

    @operation("ctrl_send")
    def ctrl_send(self, peer: int, tag: int) -> None:
        """Sends a tag, a number of 64 bits, to a peer of this id, after those that were sent before.

        Raises:
            HMCStatusError: there is no such peer, or it is gone.
        """
        self._control.send(peer, tag)

    @operation("ctrl_recv")
    def ctrl_recv(self, peer: int, timeout_s: float | None = None) -> int:
        """The next tag of this peer, in the order in which it sent them.

        Raises:
            HMCStatusError: ``TIMEOUT`` if none came; ``NOT_FOUND`` for no such peer; ``ERROR`` if it is gone and all
                that it sent was received.
        """
        return self._control.receive(peer, timeout_s)

    @operation("send_data_to")
    def send_data_to(self, *arguments: Any, **keywords: Any) -> None:
        """HMC's two-sided send; always ``UNSUPPORT``."""
        del arguments, keywords
        raise TransportUnavailable(TWO_SIDED)

    @operation("recv_data_from")
    def recv_data_from(self, *arguments: Any, **keywords: Any) -> None:
        """HMC's two-sided receive; always ``UNSUPPORT``."""
        del arguments, keywords
        raise TransportUnavailable(TWO_SIDED)

    def _peer(self, ip: str, port: Any, conn: Any, *, wait: bool = True) -> Connection:
        return self._connections.find(ip, port_number(port), kind_of(conn), wait=wait)

    def _wanted(self, dest: Any, size: int | None, device: str | None) -> int:
        """How many bytes to read; looked at before anything moves."""
        if device == "ptr":
            if size is None:
                raise ConfigError("a size is needed with a pointer, which doesn't say how much is there")
            return size
        available = byte_count(dest)
        if size is not None and size > available:
            raise ConfigError(f"Destination too small: have={available} need={size}")
        return available if size is None else size

    def _read_out(self, found: Connection, dest: Any, local: int, remote: int, count: int, device: str | None) -> None:
        if device in (None, "cpu") and not is_device_tensor(dest):
            writable(dest)  # what can't be filled is said before anything moves
        with self.alone():
            found.move("READ", self.buf.core, local, remote, count)
            self.buf.get_into(dest, nbytes=count, offset=local, device=device)
