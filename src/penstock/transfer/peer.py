"""A peer: another agent, as far as its metadata tells, and the connection to it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from penstock import _core
from penstock.errors import ConfigError, PeerLost, PeerUnreachable, TransferError, TransportUnavailable
from penstock.transfer.descriptors import Descriptors
from penstock.transfer.host_connection import Attempt, HostConnection
from penstock.transfer.memory import ranges_of
from penstock.transfer.metadata import AgentMetadata, merge
from penstock.transfer.network_plane import Link
from penstock.transfer.operation import Operation, Transfer
from penstock.transfer.table import Memory
from penstock.transfer.wire import UInt32s, UInt64s

if TYPE_CHECKING:
    from penstock.transfer.agent import Agent

__all__ = ["Peer", "Prepared", "rows_of"]


@dataclass(frozen=True)
class Rows:
    """Descriptors as columns: (N, 3) uint64, and their registrations where they are known."""

    table: UInt64s
    slots: UInt32s | None = None
    generations: UInt64s | None = None


def rows_of(things: Any, owner: str, memory: Memory | None = None) -> Rows:
    """Columns of descriptors, rows, arrays of addresses (with ``memory``), or things in memory."""
    if isinstance(things, Descriptors):
        if things.owner and things.owner != owner:
            raise ConfigError(f"descriptors of {things.owner!r} can't be prepared for memory of {owner!r}")
        return Rows(np.ascontiguousarray(things.table), things.slots, things.generations)
    return Rows(np.ascontiguousarray(ranges_of(things, memory).table))


class Prepared:
    """Descriptors that were checked, ready for any number of transfers.

    Attributes:
        peer: whose memory it is; None = our own agent's, for the local side of a transfer.
    """

    __slots__ = ("_core", "_rows", "_version", "peer")

    def __init__(self, peer: Peer | None, rows: Rows, core: _core.Prepared, version: int = 0) -> None:
        self.peer = peer
        self._rows = rows
        self._core = core
        self._version = version

    def __len__(self) -> int:
        """How many descriptors."""
        return len(self._core)

    @property
    def vram(self) -> bool:
        """Whether they lie in the memory of a device."""
        return bool(self._core.vram)

    def core(self) -> _core.Prepared:
        """The core's list, made anew when more of the peer's memory has become reachable since."""
        if self.peer is not None and self._version != self.peer.version:
            self._core, self._version = self.peer.prepare_rows(self._rows)
        return self._core


class Peer:
    """Another agent; made by ``Agent.add_peer``.

    Attributes:
        name: its name.
        version: counts what becomes known of its memory.
    """

    def __init__(self, agent: Agent, metadata: AgentMetadata) -> None:
        self.name = metadata.name
        self.version = 0
        self._agent = agent
        self._metadata = metadata
        self._lock = threading.RLock()  # nobody waits for a peer while holding it
        self._connecting = threading.RLock()  # one thread at a time talks to the peer; taken before the other
        self._attempt: Attempt | None = None
        self._memory = _core.RemoteMemory()
        self._host: HostConnection | None = None
        self._network: _core.NetworkLink | None = None
        self._current: Link | None = None  # what link() gave last
        self._removed = ""
        self._learn(metadata)

    @property
    def metadata(self) -> AgentMetadata:
        """What is known of it."""
        return self._metadata

    @property
    def is_self(self) -> bool:
        """Whether it is the agent itself."""
        return self._metadata.instance == self._agent.instance

    def refresh(self, newer: AgentMetadata) -> None:
        """Newer metadata of the same agent: more, or other, registrations."""
        with self._lock:
            self._learn(merge(self._metadata, newer))

    def _learn(self, metadata: AgentMetadata) -> None:
        self._metadata = metadata
        self._memory.clear()
        for record in metadata.registrations:
            self._memory.add(
                record.slot, record.generation, record.memory == "VRAM", record.device, record.segment_id, record.ranges
            )
        self._memory.prune()
        self.version += 1

    def knows(self, rows: Rows) -> bool:
        """Whether all of these lie in memory that it registered."""
        try:
            self.prepare_rows(rows)
        except LookupError:
            return False
        return True

    # The connection.

    @property
    def connected(self) -> bool:
        """Whether there is a connection that lives."""
        return any(link is not None and link.alive for link in self._links())

    @property
    def lost(self) -> str | None:
        """Why the connection ended; None = it lives, or there was none."""
        for link in self._links():
            if link is not None and not link.alive:
                return str(link.lost)
        return None

    @property
    def transport(self) -> str | None:
        """What moves bytes to and from it: ``"shm"``, ``"shm+process_vm"``, ``"ucx:tcp/lo"``; None = not connected."""
        if self._host is not None:
            return "shm+process_vm" if self._host.reaches_process else "shm"
        return f"ucx:{self._network.transport}" if self._network is not None else None

    def connect(self, timeout_s: float | None = None) -> None:
        """Connect, by shared memory where both are on one host, else over the network. Does nothing when connected.

        A connection that was lost is made anew; transfers that were prepared on the old one stay failed.

        Raises:
            PeerUnreachable, PeerRefused
            TransportUnavailable: neither plane leads there, or not the one that the agent requires.
            ClosedError: the agent was closed, or this is a forked child.
        """
        self._agent.check_open()
        self.link(timeout_s)

    def link(self, timeout_s: float | None = None, *, network: bool = False) -> Link:
        """The connection, made if need be. ``network``: that of the network plane, whatever else there is."""
        current = self._network if network else self._current
        if current is not None and current.alive:
            return current
        wait_s = self._agent.wait_s(timeout_s)
        deadline = time.monotonic() + wait_s
        if not self._connecting.acquire(timeout=max(0.0, wait_s)):
            raise PeerUnreachable(f"{self.name}: another thread tries to connect, for longer than {wait_s} s")
        try:
            if network:
                return self._network_link(deadline)
            shared = self._agent.planes.shares_host(self._metadata)
            self._current = self._host_link(deadline) if shared else self._network_link(deadline)
            return self._current
        finally:
            self._connecting.release()

    def _check_there(self) -> None:
        if self._removed:
            raise PeerLost(f"{self.name} was {self._removed}")

    def _host_link(self, deadline: float) -> _core.HostLink:
        with self._lock:
            self._check_there()
            if self._host is not None and self._host.link.alive:
                return self._host.link
            before, self._host = self._host, None
            attempt = self._attempt = Attempt()
        if before is not None:
            before.close()
        try:
            made = self._agent.planes.host.connect(self._metadata, deadline - time.monotonic(), attempt)
        except TransferError:
            self._check_there()  # who was removed meanwhile is neither unreachable nor refuses us
            raise
        finally:
            self._attempt = None
        with self._lock:
            if not self._removed:
                self._host = made
                self.version += 1
                return made.link
        made.close(self._removed)
        raise PeerLost(f"{self.name} was {self._removed}")

    def _network_link(self, deadline: float) -> Link:
        with self._lock:
            self._check_there()
            if self._network is not None and self._network.alive:
                return self._network
            before, self._network = self._network, None
        if before is not None:
            before.close()
        made = self._agent.planes.connect_network(self._metadata, deadline - time.monotonic())
        with self._lock:
            if not self._removed:
                self._network = made
                return made
        made.close()
        raise PeerLost(f"{self.name} was {self._removed}")

    # Transfers.

    def transfer(
        self,
        operation: Operation,
        local: Prepared,
        remote: Prepared,
        indices: tuple[UInt32s | None, UInt32s | None],
        *,
        notify: bytes | None,
        timeout_s: float,
        merge: bool,
    ) -> Transfer:
        """What ``Agent.transfer`` gives; ``indices`` are those of both sides, which fit."""
        link = self._link_for(local, remote)
        code = 0 if operation == "WRITE" else 1
        return Transfer(
            link.transfer(code, local.core(), remote.core(), *indices, merge),
            operation=operation,
            peer_name=self.name,
            transport=self._transport_over(link, remote),
            notify=notify,
            timeout_s=timeout_s,
            network=self._agent.planes.network,
            keep=(self._agent, local, remote),
        )

    def _link_for(self, local: Prepared, remote: Prepared) -> Link:
        """The connection that reaches this memory."""
        link = self.link()
        if self._host is None:
            return link
        self._map_segments()
        if not local.vram and not remote.vram and (self._host.reaches_process or remote.core().mapped):
            return link
        if not self._metadata.network_address or not self._agent.has_network:
            what = "memory of a device" if local.vram or remote.vram else f"memory of {self.name}'s own, not shared,"
            raise TransportUnavailable(
                f"{what} can't be reached without the network plane here; open it at both ends "
                "(Agent(..., network='loopback')), or have the memory come from allocate()"
            )
        return self.link(network=True)

    def _transport_over(self, link: Link, remote: Prepared) -> str:
        """What moves the bytes of a transfer: ``"shm"`` where all of that memory is mapped; see ``transport``."""
        if self._host is not None and link is self._host.link and remote.core().mapped:
            return "shm"
        return str(self.transport)

    def _map_segments(self) -> None:
        host = self._host
        if host is None or self.is_self or not self._memory.unmapped():
            return
        deadline = time.monotonic() + self._agent.timeout_s
        with self._connecting:
            for segment_id in self._memory.unmapped():
                fd, size_bytes = host.map(segment_id, deadline)
                with self._lock:
                    self._memory.map(segment_id, fd, size_bytes)
                    self.version += 1

    # Its memory.

    def prepare(self, things: Any, memory: Memory | None = None) -> Prepared:
        """Descriptors of its memory for transfers.

        Args:
            things: ``Descriptors`` that it sent, whose generations are checked; or rows ``(address, length, device)``.
            memory: what kind of memory an array of addresses is about.

        Raises:
            NotRegistered: a row lies outside of the memory that its metadata tells of.
            StaleDescriptor: it has closed or renewed that registration, as newer metadata tells.
        """
        rows = rows_of(things, self.name, memory)
        return Prepared(self, rows, *self.prepare_rows(rows))

    def prepare_rows(self, rows: Rows) -> tuple[_core.Prepared, int]:
        """The core's list, and the version of what is known that it was made from."""
        with self._lock:
            self._check_there()
            if self.is_self:
                return self._agent.registry.prepare(rows.table, rows.slots, rows.generations), self.version
            return self._memory.prepare(rows.table, rows.slots, rows.generations), self.version

    def close(self, why: str) -> None:
        """End the connections, also one that is being made; what is prepared for it can't be used any more."""
        with self._lock:
            self._removed = why
            attempt, host, network = self._attempt, self._host, self._network
        if attempt is not None:
            attempt.give_up()
        if host is not None:
            host.close(why)
        if network is not None:
            network.close()

    def lose_host(self, why: str) -> None:
        """Take it for gone where it is on this host."""
        if self._host is not None:
            self._host.link.lose(why)

    def _links(self) -> tuple[Link | None, Link | None]:
        return (self._host.link if self._host is not None else None), self._network

    def __repr__(self) -> str:
        """Its name, and what leads there."""
        return f"<Peer {self.name} {self.transport or 'not connected'}>"


def indices_of(indices: npt.ArrayLike | None, count: int, side: str) -> UInt32s | None:
    """Indices into a prepared list as the core takes them; None = all.

    Raises:
        ConfigError: not whole numbers, or out of range.
    """
    if indices is None:
        return None
    array = np.asarray(indices)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size:
        raise ConfigError(
            f"{side} indices of dtype {array.dtype} and shape {array.shape}; give whole numbers, at least one"
        )
    if int(array.min()) < 0 or int(array.max()) >= count:
        raise ConfigError(f"{side} indices from {array.min()} to {array.max()}, of {count} descriptors")
    return np.ascontiguousarray(array, np.uint32)
