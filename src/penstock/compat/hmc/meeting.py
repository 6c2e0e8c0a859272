"""The part of a session that meets peers: who is let in, whom it connects with."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from penstock.compat.hmc.buffer import IOBuffer
from penstock.compat.hmc.communicator import Communicator, key_of, kind_of
from penstock.compat.hmc.connections import port_number
from penstock.compat.hmc.control import CtrlLink, choose_transport, uds_path
from penstock.compat.hmc.enums import ConnType
from penstock.compat.hmc.errors import operation
from penstock.compat.hmc.whole import whole
from penstock.config import lookup
from penstock.errors import ConfigError, DeadlineExceeded, TransportUnavailable

__all__ = ["Meeting"]

_log = logging.getLogger(__name__)


class Meeting:
    """A buffer, its connections and its control plane, and who is at the other ends."""

    def __init__(
        self,
        buf: IOBuffer,
        num_chs: int = 1,
        *,
        local_ip: str = "",
        ctrl_uds_dir: str = "/tmp",
        token: str | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        if not isinstance(buf, IOBuffer):
            raise TypeError(f"buf is {type(buf).__name__}; give an IOBuffer, or use create_session")
        if not timeout_s > 0:
            raise ConfigError(f"timeout_s is {timeout_s!r}; give seconds, more than 0")
        known = lookup("HMC_TOKEN") if token is None else token
        self.buf = buf
        self.comm = Communicator(buf, num_chs, token=known or "", timeout_s=timeout_s)
        self._connections = self.comm.connections
        self._control = self.comm.control
        self._timeout_s = timeout_s
        self._staging = threading.Lock()
        self._local_ip = local_ip
        self._ctrl_uds_dir = ctrl_uds_dir

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def id(self) -> int | None:
        """Our id on the control plane; None before it was given."""
        return self._control.self_id

    @property
    def ports(self) -> dict[ConnType, int]:
        """Where we listen for each kind of connection; useful where port 0 was asked for."""
        return self._connections.ports

    @property
    def ctrl_port(self) -> int | None:
        """Where we listen for control tags by TCP; None = nowhere."""
        return self._control.port

    def set_local_ip(self, local_ip: str) -> None:
        """Says our own address, for the choice of the control plane's transport."""
        self._local_ip = local_ip

    def set_ctrl_uds_dir(self, ctrl_uds_dir: str) -> None:
        """Says the folder of the control plane's Unix sockets."""
        self._ctrl_uds_dir = ctrl_uds_dir

    def close(self) -> None:
        """Ends connections, listeners and the buffer, and wakes whoever waits; again is a no-op."""
        self.comm.close()
        self.buf.close()

    # Who is there.

    @operation("init_server")
    def init_server(
        self,
        ip: str | None = None,
        port: int | None = None,
        conn: Any = ConnType.RDMA,
        *,
        bind_ip: str | None = None,
        ucx_port: int | None = None,
        rdma_port: int | None = None,
        ctrl_tcp_port: int | None = None,
        self_id: int | None = None,
        ctrl_uds_dir: str | None = None,
    ) -> None:
        """Lets peers in, at exactly this address: ``(ip, port, conn)``, or all planes by name.

        By name it listens for UCX, for RDMA where there is any, and for control tags by TCP and a Unix socket. A second
        call for what is open already is a no-op.

        Args:
            ip: the address; ``0.0.0.0`` = all of this machine's.
            port: for data; 0 = the system chooses, see ``ports``.
            conn: for which kind of connection.
            bind_ip: the address, in the form by name.
            ucx_port: for data by UCX.
            rdma_port: for data by RDMA.
            ctrl_tcp_port: for control tags.
            self_id: our id on the control plane.
            ctrl_uds_dir: the folder of the Unix socket.

        Raises:
            HMCStatusError: a port is busy, an address isn't ours, or that kind of connection isn't there.
        """
        if bind_ip is None:
            _form("init_server", "ip and port", (ip, port))
            self._connections.listen(str(ip), _listening_port(port), kind_of(conn))
            return
        names = "bind_ip, ucx_port, rdma_port, ctrl_tcp_port and self_id"
        _form("init_server", names, (ucx_port, rdma_port, ctrl_tcp_port, self_id), without=(ip, port))
        if ctrl_uds_dir is not None:
            self._ctrl_uds_dir = ctrl_uds_dir
        self._local_ip = self._local_ip or bind_ip
        try:
            self._connections.listen(bind_ip, _listening_port(ucx_port), ConnType.UCX)
            try:
                self._connections.listen(bind_ip, _listening_port(rdma_port), ConnType.RDMA)
            except TransportUnavailable as error:
                _log.info("not listening for RDMA: %s", error)
            path = str(uds_path(self._ctrl_uds_dir, self_id))  # type: ignore[arg-type]
            self._control.listen(self_id, bind_ip, _listening_port(ctrl_tcp_port), path)  # type: ignore[arg-type]
        except BaseException:
            self.close_server()
            raise

    def close_server(self) -> None:
        """Frees all ports and the Unix socket. Connections that were made stay."""
        self._connections.stop_listening()
        self._control.stop_listening()

    @operation("connect")
    def connect(
        self,
        ip: str | None = None,
        port: int | None = None,
        conn: Any = ConnType.RDMA,
        *,
        peer_id: int | None = None,
        self_id: int | None = None,
        peer_ip: str | None = None,
        data_port: int | None = None,
        ctrl_tcp_port: int | None = None,
        uds_dir: str | None = None,
    ) -> None:
        """Connects with a session that listens: ``(ip, port, conn)``, or data and control by name.

        Being connected already is a no-op.

        Args:
            ip: the address, and the key by which this peer is named from now on.
            port: where it listens for this kind of connection.
            conn: which way bytes go.
            peer_id: its id on the control plane.
            self_id: our own.
            peer_ip: the address, in the form by name.
            data_port: where it listens for this kind of connection, in the form by name.
            ctrl_tcp_port: where it listens for control tags by TCP.
            uds_dir: the folder of its Unix socket.

        Raises:
            HMCStatusError: nobody answers, it refuses, or that kind of connection isn't there.
        """
        if peer_ip is None:
            _form("connect", "ip and port", (ip, port))
            self._connections.connect(str(ip), port_number(port), kind_of(conn))
            return
        names = "peer_id, self_id, peer_ip, data_port and ctrl_tcp_port"
        _form("connect", names, (peer_id, self_id, data_port, ctrl_tcp_port), without=(ip, port))
        kind, port = kind_of(conn), port_number(data_port)
        known = self._connections.alive(peer_ip, port, kind)
        self._connections.connect(peer_ip, port, kind)
        try:
            self._connect_control(peer_id, self_id, peer_ip, port_number(ctrl_tcp_port), uds_dir)
        except BaseException:
            if not known:
                self._connections.disconnect(peer_ip, port, kind)
            raise

    def _connect_control(self, peer_id: Any, self_id: Any, peer_ip: str, port: int, uds_dir: str | None) -> None:
        path = str(uds_path(uds_dir or self._ctrl_uds_dir, peer_id))
        transport = choose_transport(self._local_ip, peer_ip)
        self._control.connect(peer_id, self_id, CtrlLink(transport, peer_ip, port, path))

    def disconnect(self, ip: str, port: Any = None, conn: Any = ConnType.RDMA) -> None:
        """Ends the connection with a peer, named ``(ip, conn)`` or ``(ip, port, conn)``; none there is a no-op."""
        self._connections.disconnect(ip, *key_of(port, conn))

    def check_conn(self, ip: str, port: int, conn: Any = ConnType.RDMA) -> bool:
        """Whether we are connected with this peer."""
        return self._connections.alive(ip, port_number(port), kind_of(conn))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other call of this session stages bytes in the buffer meanwhile."""
        if not self._staging.acquire(timeout=self._timeout_s):
            raise DeadlineExceeded(f"another thread used the buffer for {self._timeout_s} s")
        try:
            yield
        finally:
            self._staging.release()


def _form(call: str, names: str, given: tuple[Any, ...], without: tuple[Any, ...] = ()) -> None:
    """Raises unless a call was given all arguments of one of its two forms, and none of the other."""
    if any(each is None for each in given) or any(each is not None for each in without):
        raise TypeError(f"{call} takes ip, port and conn, or everything by name; here it needs just {names}")


def _listening_port(port: Any) -> int:
    return 0 if whole(port, "port") == 0 else port_number(port)
