"""The connections of one session: whom it has met, over which agent, and the bytes that go between the buffers."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import secrets
import threading
from typing import Any

from penstock.compat.hmc import rendezvous
from penstock.compat.hmc.buffer import ConnBuffer
from penstock.compat.hmc.connection import Connection
from penstock.compat.hmc.control import connected
from penstock.compat.hmc.doorway import Doorway
from penstock.compat.hmc.enums import ConnType, MemoryType
from penstock.compat.hmc.greeting import refuse
from penstock.compat.hmc.line import Line, deadline_after, remaining
from penstock.compat.hmc.rendezvous import Offer
from penstock.compat.hmc.whole import whole
from penstock.errors import (
    ClosedError,
    ConfigError,
    PeerUnreachable,
    PenstockError,
    TransportUnavailable,
    UnknownPeer,
)
from penstock.transfer import Agent
from penstock.transfer.network_plane import has_rdma_device

__all__ = ["Connections", "port_number"]

_log = logging.getLogger(__name__)


class Connections:
    """What a session's calls that concern peers do; all raise ``penstock.errors``.

    Args:
        buffer: what peers read and write.
        token: what every peer has to know; empty = nothing.
        timeout_s: the deadline of everything.
    """

    def __init__(self, buffer: ConnBuffer, *, token: str = "", timeout_s: float = 30.0) -> None:
        self.buffer = buffer
        self.timeout_s = timeout_s
        self._token = token
        self._agents: dict[tuple[ConnType, str | None], Agent] = {}
        self._connections: list[Connection] = []
        self._met: set[tuple[str, int | None]] = set()
        self._changed = threading.Condition()
        self._making = threading.Lock()
        self._doorway = Doorway(self._greet, "hmc-server")
        self._listening: dict[ConnType, int] = {}
        self._closed = False

    @property
    def ports(self) -> dict[ConnType, int]:
        """Where we listen."""
        return dict(self._listening)

    def listen(self, ip: str, port: int, conn: ConnType) -> None:
        """Lets peers in at exactly this address; a second time for a kind of connection is a no-op."""
        if conn in self._listening:
            return
        address, bound = self._doorway.listen_tcp(conn.name, ip, port)
        try:
            if not ipaddress.ip_address(address).is_unspecified:
                self._agent(conn, address)  # what it lacks is said here, not to the first peer
        except BaseException:
            self._doorway.shut(conn.name)
            raise
        self._listening[conn] = bound

    def stop_listening(self) -> None:
        """Frees the ports; connections stay."""
        for conn in list(self._listening):
            self._doorway.shut(conn.name)
            del self._listening[conn]

    def connect(self, ip: str, port: int, conn: ConnType) -> None:
        """Connects with a session that listens there; one that we are connected with stays."""
        if self.alive(ip, port, conn):
            return
        _check_rdma(conn)
        deadline = deadline_after(self.timeout_s)
        try:
            line = Line(connected(ip, port, deadline), f"{ip}:{port}")
        except OSError as error:
            why = error.strerror or error
            raise PeerUnreachable(f"no session at {ip}:{port} ({why}); is init_server called there?") from error
        try:
            agent = self._agent(conn, line.local_ip)
            rendezvous.introduce(line, self._token, deadline)
            rendezvous.send_offer(line, self._offer(agent, conn), deadline)
            offer = rendezvous.receive_offer(line, deadline)
            made = Connection(ip, conn, line, agent, agent.add_peer(offer.metadata), offer, port=port)
        except BaseException:
            line.close()
            raise
        try:
            made.peer.connect(timeout_s=remaining(deadline))
            self._keep(made)
        except BaseException:
            self._forget(made)
            raise

    def disconnect(self, ip: str, port: int | None, conn: ConnType) -> None:
        """Ends what connects us with a peer; nothing there is a no-op."""
        with self._changed:
            ending = [each for each in self._connections if each.is_with(ip, port, conn)]
        for each in ending:
            self._drop(each)

    def alive(self, ip: str, port: int | None, conn: ConnType) -> bool:
        """Whether we are connected with this peer."""
        with self._changed:
            return self._latest(ip, port, conn) is not None

    def find(self, ip: str, port: int | None, conn: ConnType, *, wait: bool = True) -> Connection:
        """The latest connection with this peer. Where we listen, one whom we never met is waited for.

        Raises:
            PeerUnreachable: there is none, or it didn't come in time.
        """
        deadline = deadline_after(self.timeout_s)
        with self._changed:
            while True:
                if self._closed:
                    raise ClosedError("the session was closed; make a new one")
                found = self._latest(ip, port, conn)
                if found is not None:
                    return found
                may_come = wait and conn in self._listening and (ip, port) not in self._met
                if not may_come or not self._changed.wait(remaining(deadline)):
                    raise PeerUnreachable(self._missing(ip, port, conn))

    def close(self) -> None:
        """Ends everything and wakes whoever waits; again is a no-op."""
        with self._changed:
            self._closed = True
            ending = list(self._connections)
            self._changed.notify_all()
        self._listening.clear()
        self._doorway.close()
        for each in ending:
            self._drop(each)
        with self._changed:
            agents, self._agents = list(self._agents.values()), {}
        for agent in agents:
            agent.close()

    def _agent(self, conn: ConnType, ip: str) -> Agent:
        """The agent that reaches peers from this address of ours; made when first asked for."""
        network = self._network(ip, conn)
        with self._making:
            agent = self._agents.get((conn, network))
            if agent is None:
                if self._closed:
                    raise ClosedError("the session was closed; make a new one")
                agent = self._agents[conn, network] = self._new_agent(conn, network)
            return agent

    def _new_agent(self, conn: ConnType, network: str | None) -> Agent:
        _check_rdma(conn)
        name, require = f"hmc-{secrets.token_hex(8)}", "rdma" if conn is ConnType.RDMA else None
        try:
            agent = Agent(name, network=network, require=require, timeout_s=self.timeout_s)
        except TransportUnavailable as error:
            if require or self.buffer.mem_type is not MemoryType.CPU:
                raise
            _log.warning("only sessions on this host can be reached: %s", error)
            agent = Agent(name, timeout_s=self.timeout_s)
        agent.register(self.buffer.shared)
        return agent

    def _network(self, ip: str, conn: ConnType) -> str | None:
        """Where an agent has to listen for peers that see us at ``ip``; None = on this host alone."""
        if not ipaddress.ip_address(ip.partition("%")[0]).is_loopback:
            return ip
        on_host = conn is ConnType.UCX and self.buffer.mem_type is MemoryType.CPU
        return None if on_host else "loopback"

    def _offer(self, agent: Agent, conn: ConnType) -> Offer:
        buffer = self.buffer
        port = self._listening.get(conn, 0)
        return Offer(conn, buffer.mem_type, port, buffer.device, buffer.ptr, buffer.size, agent.metadata())

    def _greet(self, line: Line, door: str) -> None:
        deadline = deadline_after(self.timeout_s)
        conn = ConnType[door]
        rendezvous.welcome(line, self._token, deadline)
        try:
            offer = rendezvous.receive_offer(line, deadline)
            if offer.conn is not conn:
                raise ConfigError(f"this port is for conn={conn.name}, not {offer.conn.name}")
            agent = self._agent(conn, line.local_ip)
            peer = agent.add_peer(offer.metadata)
            self._keep(Connection(line.peer_ip, conn, line, agent, peer, offer, port=offer.port))
        except PenstockError as error:
            refuse(line, str(error), deadline)
            raise
        rendezvous.send_offer(line, self._offer(agent, conn), deadline)

    def _keep(self, connection: Connection) -> None:
        with self._changed:
            if self._closed:
                raise ClosedError("the session was closed; make a new one")
            for each in [each for each in self._connections if each.line.ended]:
                self._drop(each)
            self._connections.append(connection)
            self._met |= {(connection.ip, None), (connection.ip, connection.port)}
            self._changed.notify_all()

    def _drop(self, connection: Connection) -> None:
        with self._changed:
            if connection not in self._connections:
                return
            self._connections.remove(connection)
        self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        """Ends what isn't, or is no more, among the connections."""
        connection.line.close()
        with self._changed:
            shared = any(each.peer is connection.peer for each in self._connections)
        if not shared:
            with contextlib.suppress(UnknownPeer):
                connection.agent.remove_peer(connection.peer.name)

    def _latest(self, ip: str, port: int | None, conn: ConnType) -> Connection | None:
        for each in [each for each in reversed(self._connections) if each.is_with(ip, port, conn)]:
            if not each.line.ended:
                return each
            self._drop(each)
        return None

    def _missing(self, ip: str, port: int | None, conn: ConnType) -> str:
        where = ip if port is None else f"{ip}:{port}"
        there = ", ".join(f"{each.ip}:{each.port} by {each.conn.name}" for each in self._connections) or "nobody"
        return (
            f"not connected with {where} by {conn.name}; connected with {there}. "
            "The key is the ip that connect() got, and its conn"
        )


def _check_rdma(conn: ConnType) -> None:
    if conn is ConnType.RDMA and not has_rdma_device():
        raise TransportUnavailable("this machine has no RDMA device; use conn=ConnType.UCX, at both ends")


def port_number(port: Any) -> int:
    """A port.

    Raises:
        TypeError: no whole number.
        ConfigError: none of 1 to 65535.
    """
    number = whole(port, "port")
    if not 1 <= number <= 65535:
        raise ConfigError(f"port is {number}; give 1 to 65535")
    return number
