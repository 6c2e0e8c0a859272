"""HMC's ``Communicator``: a session's calls that concern peers, whose results are a ``Status`` instead of an error."""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Concatenate, ParamSpec, TypeVar

from penstock.compat.hmc.buffer import ConnBuffer, IOBuffer
from penstock.compat.hmc.connections import Connections, port_number
from penstock.compat.hmc.control import Control, CtrlLink, uds_path
from penstock.compat.hmc.enums import ConnType, Status, member
from penstock.compat.hmc.errors import status_of
from penstock.compat.hmc.pending import Pending
from penstock.compat.hmc.whole import whole
from penstock.errors import ConfigError, TransportUnavailable
from penstock.transfer.operation import Operation

__all__ = ["Communicator"]

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def _status(
    function: Callable[Concatenate[Communicator, _Arguments], Status | None],
) -> Callable[Concatenate[Communicator, _Arguments], Status]:
    """What a call raised, as the status that it returns; the error itself is kept in ``last_error``."""

    @functools.wraps(function)
    def wrapped(self: Communicator, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Status:
        try:
            return function(self, *args, **kwargs) or Status.SUCCESS
        except Exception as error:
            return self._failed(error)

    return wrapped


def _status_and(
    empty: _Result,
) -> Callable[
    [Callable[Concatenate[Communicator, _Arguments], _Result]],
    Callable[Concatenate[Communicator, _Arguments], tuple[Status, _Result]],
]:
    """The same for calls that return a pair of status and result; ``empty`` is the result of those that failed."""

    def decorate(
        function: Callable[Concatenate[Communicator, _Arguments], _Result],
    ) -> Callable[Concatenate[Communicator, _Arguments], tuple[Status, _Result]]:
        @functools.wraps(function)
        def wrapped(
            self: Communicator, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs
        ) -> tuple[Status, _Result]:
            try:
                return Status.SUCCESS, function(self, *args, **kwargs)
            except Exception as error:
                return self._failed(error), empty

        return wrapped

    return decorate


class Communicator:
    """A buffer's connections and control plane, under HMC's own names.

    Most programs use ``Session``, which raises errors that say what is wrong; here it is ``last_error``.

    Args:
        buffer: a ``ConnBuffer`` or ``IOBuffer``.
        num_chs: HMC's queue pairs of a connection; taken and without effect, as with UCX there.
        token: what every peer has to know; empty = nothing.
        timeout_s: the deadline of everything.

    Attributes:
        last_error: what the last call that didn't return ``SUCCESS`` failed with.
    """

    def __init__(
        self, buffer: ConnBuffer | IOBuffer, num_chs: int = 1, *, token: str = "", timeout_s: float = 30.0
    ) -> None:
        core = buffer.core if isinstance(buffer, IOBuffer) else buffer
        if not isinstance(core, ConnBuffer):
            raise TypeError(f"buffer is {type(buffer).__name__}; give a ConnBuffer or an IOBuffer")
        if whole(num_chs, "num_chs") < 1:
            raise ConfigError(f"num_chs is {num_chs}; give at least 1")
        self.connections = Connections(core, token=token, timeout_s=timeout_s)
        self.control = Control(token=token, timeout_s=timeout_s)
        self.pending = Pending()
        self.timeout_s = timeout_s
        self.last_error: Exception | None = None
        self._end = weakref.finalize(self, _close, self.connections, self.control, self.pending)

    def close(self) -> None:
        """Ends everything but the buffer, and wakes whoever waits; again is a no-op. Letting go of it does the same."""
        self._end()

    # Data, keyed by ip alone as in v0.1.

    @_status
    def writeTo(self, ip: str, ptr_bias: int, size: int, connType: Any = ConnType.RDMA) -> None:
        """Writes our bytes [ptr_bias, ptr_bias + size) over the same ones of a peer."""
        self._move("WRITE", (ip, None), connType, ptr_bias, ptr_bias, size)

    @_status
    def readFrom(self, ip: str, ptr_bias: int, size: int, connType: Any = ConnType.RDMA) -> None:
        """Reads a peer's bytes [ptr_bias, ptr_bias + size) over our own."""
        self._move("READ", (ip, None), connType, ptr_bias, ptr_bias, size)

    # Data, keyed by ip and port as in v2.

    @_status
    def put(
        self, ip: str, port: int, local_off: int, remote_off: int, size: int, connType: Any = ConnType.RDMA
    ) -> None:
        """Writes ``size`` of our bytes from ``local_off`` to a peer's ``remote_off``."""
        self._move("WRITE", (ip, port_number(port)), connType, local_off, remote_off, size)

    @_status
    def get(
        self, ip: str, port: int, local_off: int, remote_off: int, size: int, connType: Any = ConnType.RDMA
    ) -> None:
        """Reads ``size`` of a peer's bytes from ``remote_off`` to our ``local_off``."""
        self._move("READ", (ip, port_number(port)), connType, local_off, remote_off, size)

    @_status_and(0)
    def putNB(
        self, ip: str, port: int, local_off: int, remote_off: int, size: int, connType: Any = ConnType.RDMA
    ) -> int:
        """Starts what ``put`` does; the number is for ``wait``, 0 = done already."""
        return self._start("WRITE", (ip, port_number(port)), connType, local_off, remote_off, size)

    @_status_and(0)
    def getNB(
        self, ip: str, port: int, local_off: int, remote_off: int, size: int, connType: Any = ConnType.RDMA
    ) -> int:
        """Starts what ``get`` does; the number is for ``wait``, 0 = done already."""
        return self._start("READ", (ip, port_number(port)), connType, local_off, remote_off, size)

    @_status
    def wait(self, ids: int | Iterable[int]) -> None:
        """Waits for what was started: one number, or several."""
        self.pending.wait(ids, self.timeout_s)

    @_status
    def sendDataTo(self, *arguments: Any, **keywords: Any) -> None:
        """HMC's two-sided send, which is RDMA only; always ``UNSUPPORT``."""
        del arguments, keywords
        raise TransportUnavailable(TWO_SIDED)

    @_status
    def recvDataFrom(self, *arguments: Any, **keywords: Any) -> None:
        """HMC's two-sided receive, which is RDMA only; always ``UNSUPPORT``."""
        del arguments, keywords
        raise TransportUnavailable(TWO_SIDED)

    # Who is there.

    @_status
    def connectTo(self, ip: str, port: int, connType: Any = ConnType.RDMA) -> None:
        """Connects with a session that listens there."""
        self.connections.connect(ip, port_number(port), kind_of(connType))

    @_status
    def initServer(self, ip: str, port: int, connType: Any = ConnType.RDMA) -> None:
        """Lets peers in at exactly this address."""
        self.connections.listen(ip, whole(port, "port"), kind_of(connType))

    @_status
    def closeServer(self) -> None:
        """Frees the ports."""
        self.connections.stop_listening()

    @_status
    def disConnect(self, ip: str, port: Any = None, connType: Any = ConnType.RDMA) -> None:
        """``(ip, connType)`` or ``(ip, port, connType)``: ends the connection; nothing there is a no-op."""
        self.connections.disconnect(ip, *key_of(port, connType))

    @_status
    def checkConn(self, ip: str, port: Any = None, connType: Any = ConnType.RDMA) -> Status:
        """``(ip, connType)`` or ``(ip, port, connType)``: ``SUCCESS`` if we are connected, else ``ERROR``."""
        return Status.SUCCESS if self.connections.alive(ip, *key_of(port, connType)) else Status.ERROR

    # The control plane.

    @staticmethod
    def udsPathFor(dir: str, peer_id: int) -> str:  # noqa: A002 - HMC's name
        """The path of a peer's control socket."""
        return str(uds_path(dir, peer_id))

    @_status
    def initCtrlServer(self, bind_ip: str, tcp_port: int, uds_path: str = "") -> None:
        """Lets control peers in; our id is the one in ``uds_path``, or 0."""
        found = re.search(r"_(\d+)\.sock$", uds_path)
        known = self.control.self_id
        self.control.listen(known if known is not None else int(found[1]) if found else 0, bind_ip, tcp_port, uds_path)

    @_status
    def connectCtrl(self, peer_id: int, self_id: int, link: CtrlLink) -> None:
        """Makes a control line to a peer."""
        self.control.connect(peer_id, self_id, link)

    @_status
    def closeCtrlPeer(self, peer_id: int) -> None:
        """Ends the control line to a peer."""
        self.control.close_peer(peer_id)

    @_status
    def closeCtrl(self) -> None:
        """Frees the control plane's port and path, and ends its lines."""
        self.control.stop_listening()
        for peer in self.control.peers:
            self.control.close_peer(peer)

    @_status
    def ctrlSend(self, peer: int, tag: int) -> None:
        """Sends a tag."""
        self.control.send(peer, tag)

    @_status_and(0)
    def ctrlRecv(self, peer: int) -> int:
        """The next tag of a peer."""
        return self.control.receive(peer)

    def _move(
        self, operation: Operation, key: tuple[str, int | None], conn: Any, local: int, remote: int, size: int
    ) -> None:
        found = self.connections.find(*key, kind_of(conn))
        found.move(operation, self.connections.buffer, local, remote, size)

    def _start(
        self, operation: Operation, key: tuple[str, int | None], conn: Any, local: int, remote: int, size: int
    ) -> int:
        found = self.connections.find(*key, kind_of(conn), wait=False)
        return self.pending.add(found.start(operation, self.connections.buffer, local, remote, size))

    def _failed(self, error: Exception) -> Status:
        status = Status.INVALID_CONFIG if isinstance(error, TypeError | ValueError) else status_of(error)
        if status is None:
            raise error
        self.last_error = error
        return status


TWO_SIDED = "HMC's two-sided send and receive are RDMA only, and not here; use put and get with a control tag"


def key_of(port: Any, conn: Any) -> tuple[int | None, ConnType]:
    """Port and kind of what v0.1 calls as ``(ip, conn)`` and v2 as ``(ip, port, conn)``.

    A ``ConnType`` in the place of the port is the kind; a plain number there is a port.
    """
    if isinstance(port, ConnType):
        return None, port
    return None if port is None else port_number(port), kind_of(conn)


def kind_of(value: Any) -> ConnType:
    """The ``ConnType`` that an argument is."""
    return member(ConnType, value, "conn")


def _close(connections: Connections, control: Control, pending: Pending) -> None:
    control.close()
    connections.close()
    pending.close()
