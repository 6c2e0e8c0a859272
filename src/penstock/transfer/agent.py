"""The agent: one process's end of all memory transfers."""

from __future__ import annotations

import os
import secrets
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy.typing as npt

from penstock import _core
from penstock.budget import Budget, Region
from penstock.errors import ClosedError, ConfigError, DeadlineExceeded, PenstockError
from penstock.transfer.descriptors import MOST_NAME_BYTES, Descriptors
from penstock.transfer.mail import Mail
from penstock.transfer.memory import ranges_of
from penstock.transfer.metadata import ID_BYTES, AgentMetadata
from penstock.transfer.operation import Operation, Transfer, checked_message
from penstock.transfer.peer import Peer, Prepared, indices_of, rows_of
from penstock.transfer.peers import Peers
from penstock.transfer.planes import Planes
from penstock.transfer.registration import Registration
from penstock.transfer.registrations import Registrations
from penstock.transfer.table import Memory

__all__ = ["Agent", "Notification"]

_CLOSE_TIMEOUT_S = 5.0


class Notification(NamedTuple):
    """A message that a peer sent."""

    sender: str
    message: bytes


class Agent:
    """Moves memory to and from other agents, and tells them so.

    Memory is *registered*; a snapshot of what is registered (``metadata()``) goes to peers by any way you like; they
    load it (``add_peer``) and then read and write that memory without this process doing anything. On one host bytes
    go through shared memory; between hosts, where both agents open a network, through UCX.

    Args:
        name: by which peers know this agent, from 1 to 255 bytes of UTF-8.
        network: where the network plane listens: an address, an interface, ``"loopback"`` or ``"any"``. None: nowhere.
        budget: what ``allocate()`` takes memory from; None: from the machine.
        require: a transport without which no connection is made: ``"shm"``, or one of UCX's: ``"tcp"``, ``"rdma"``.
        timeout_s: how long everything may take that isn't given a time of its own.
        peer_timeout_s: how long a peer on the network may be silent until it is taken for lost. On one host the end of
            a process is noticed at once.

    Threads: any. Processes: only the one that made it; a forked child gets ``ClosedError``.

    Raises:
        ConfigError: an argument that can't work.
        TransportUnavailable: there is no UCX for ``network``.
    """

    def __init__(
        self,
        name: str,
        *,
        network: str | None = None,
        budget: Budget | None = None,
        require: str | None = None,
        timeout_s: float = 30.0,
        peer_timeout_s: float = 5.0,
    ) -> None:
        if not isinstance(name, str) or not 1 <= len(name.encode()) <= MOST_NAME_BYTES:
            raise ConfigError(f"an agent's name has from 1 to {MOST_NAME_BYTES} bytes, not {name!r}")
        if timeout_s <= 0 or peer_timeout_s <= 0:
            raise ConfigError(f"timeout_s and peer_timeout_s are above 0, not {timeout_s} and {peer_timeout_s}")
        self.name = name
        self.timeout_s = timeout_s
        self.peer_timeout_s = peer_timeout_s
        self.instance = secrets.token_bytes(ID_BYTES)
        self.registry = _core.Registry()
        self.registrations = Registrations(self.registry)
        self._budget = budget
        self._inbox = _core.Inbox(self.registry)
        self.mail = Mail(name, self._inbox)
        self._lock = threading.Lock()
        self._peers = Peers()
        self._closed = ""
        exposed = weakref.WeakMethod(self.registrations.exposes)  # the planes' threads must not keep us alive
        self.planes = Planes(
            name,
            instance=self.instance,
            network=network,
            require=require,
            registry=self.registry,
            inbox=self._inbox,
            exposes=lambda segment_id: bool((ask := exposed()) and ask(segment_id)),
            peer_timeout_s=peer_timeout_s,
        )
        self._finalizer = weakref.finalize(self, self.planes.abandon)
        _agents.add(self)

    # Memory.

    def allocate(self, size: int, timeout_s: float | None = None) -> Region | _core.Segment:
        """Memory that peers on this host can reach by load and store, through the buffer protocol, writable.

        It holds zeros at first, or anything where it comes from a budget. It lives until the last view of it is gone,
        and no registration keeps it. Register it to let peers reach it.

        Args:
            size: bytes.
            timeout_s: how long to wait for the budget, where there is one.

        Raises:
            BudgetError: the machine, or the budget as a whole, doesn't have it.
            DeadlineExceeded: the budget didn't have it in time.
        """
        self.check_open()
        if size <= 0:
            raise ConfigError(f"{size} bytes of memory; give at least 1")
        if self._budget is None:
            return _core.Segment.create(size)
        return self._budget.reserve(size, self.wait_s(timeout_s)).region()

    def register(self, thing: Any, memory: Memory | None = None) -> Registration:
        """Let peers read and write this memory, from the next metadata on.

        Args:
            thing: a region, array, tensor, buffer, ``(address, length)``, or a list of those (one registration for
                thousands costs as much as one for one). What owns memory is kept alive; plain addresses are up to you.
            memory: what kind of memory plain addresses are in; with it an array is a table of addresses.

        Raises:
            ConfigError: nothing that is contiguous memory that can be written to, of one kind and device.
        """
        self.check_open()
        ranges = ranges_of(thing, memory)
        if not ranges.writable:
            raise ConfigError("memory that is read-only can't be registered, for peers may write to it; give a copy")
        return self.registrations.add(self, ranges)

    def descriptors(self, thing: Any, memory: Memory | None = None) -> Descriptors:
        """Descriptors of things that lie in registered memory.

        Raises:
            NotRegistered: one of them doesn't.
        """
        self.check_open()
        ranges = ranges_of(thing, memory)
        return Descriptors(self.name, ranges.memory, ranges.table, *self.registry.prepare(ranges.table).names())

    def prepare(self, things: Any, memory: Memory | None = None) -> Prepared:
        """The local side of transfers: descriptors of ours, or things in registered memory.

        Raises:
            NotRegistered, StaleDescriptor
        """
        self.check_open()
        rows = rows_of(things, self.name, memory)
        return Prepared(None, rows, self.registry.prepare(rows.table, rows.slots, rows.generations))

    # Peers.

    def metadata(self, registrations: Iterable[Registration] | None = None) -> bytes:
        """Who this agent is, how it is reached, and what it has registered now.

        Whoever has it may read and write the registered memory: treat it as a password.

        Args:
            registrations: only these, which are added to what a peer knows; None: all, which replace it.
        """
        self.check_open()
        chosen = self.registrations.all() if registrations is None else registrations
        records = (record for each in chosen for record in each.records)
        return self.planes.metadata(records, complete=registrations is None).to_bytes()

    def add_peer(self, metadata: bytes) -> Peer:
        """Learn of another agent, or of what it registered meanwhile. Doesn't connect.

        Metadata of another agent with a known name, such as one that was started again, replaces the old one.

        Raises:
            MetadataError: it doesn't parse.
            ConfigError: it is our own; transfers within one agent need none (``itself``).
        """
        self.check_open()
        return self._peers.add(self, AgentMetadata.from_bytes(metadata))

    def remove_peer(self, name: str) -> None:
        """Disconnect from a peer and forget it. Prepared lists and transfers of it fail from now on.

        Raises:
            UnknownPeer
        """
        self._peers.remove(name)

    @property
    def peers(self) -> Mapping[str, Peer]:
        """Those whose metadata is loaded, by name."""
        return self._peers.by_name()

    def peer(self, name: str) -> Peer:
        """One of them, or ourselves.

        Raises:
            UnknownPeer
        """
        return self.itself if name == self.name else self._peers.named(name)

    @property
    def itself(self) -> Peer:
        """This agent as its own peer: for transfers within one process."""
        self.check_open()
        return self._peers.itself(self)

    # Transfers.

    def transfer(
        self,
        operation: Operation,
        local: Prepared | Any,
        remote: Prepared,
        *,
        notify: bytes | None = None,
        local_indices: npt.ArrayLike | None = None,
        remote_indices: npt.ArrayLike | None = None,
        timeout_s: float | None = None,
        merge: bool = True,
    ) -> Transfer:
        """A transfer that isn't begun yet; ``post()`` begins it, as often as you like.

        Args:
            operation: ``"WRITE"``, local to remote, or ``"READ"``, remote to local.
            local: what ``prepare()`` gave, or what it takes.
            remote: what ``Peer.prepare()`` gave.
            notify: what the peer is told after the data.
            local_indices: which descriptors of the local side, in this order; None: all.
            remote_indices: which of the remote side; the i-th of both go together and are of equal length.
            timeout_s: the deadline of each post.
            merge: whether neighbours on both sides are moved as one.

        Raises:
            ConfigError: sides, counts, lengths or indices that don't fit.
            PeerUnreachable, PeerRefused, TransportUnavailable: no connection to the peer.
        """
        self.check_open()
        if operation not in ("WRITE", "READ"):
            raise ConfigError(f"operation {operation!r}; it is 'WRITE' or 'READ'")
        if not isinstance(local, Prepared):
            local = self.prepare(local)
        if not isinstance(remote, Prepared):
            raise ConfigError(
                f"{type(remote).__name__} as the remote side; give what peer.prepare() makes of Descriptors or rows"
            )
        if local.peer is not None or remote.peer is None:
            raise ConfigError("the local side comes from agent.prepare(), the remote one from a peer's prepare()")
        indices = indices_of(local_indices, len(local), "local"), indices_of(remote_indices, len(remote), "remote")
        return remote.peer.transfer(
            operation, local, remote, indices, notify=notify, timeout_s=self.wait_s(timeout_s), merge=merge
        )

    def write(self, local: Prepared | Any, remote: Prepared, **options: Any) -> Transfer:
        """Write ours to theirs: ``transfer("WRITE", ...)``, posted."""
        return self._posted("WRITE", local, remote, options)

    def read(self, local: Prepared | Any, remote: Prepared, **options: Any) -> Transfer:
        """Read theirs into ours: ``transfer("READ", ...)``, posted."""
        return self._posted("READ", local, remote, options)

    def _posted(self, operation: Operation, local: Any, remote: Prepared, options: dict[str, Any]) -> Transfer:
        transfer = self.transfer(operation, local, remote, **options)
        transfer.post()
        return transfer

    # Notifications.

    def notify(self, peer: Peer | str, message: bytes, timeout_s: float | None = None) -> None:
        """Send a message of at most 128 KiB. A peer gets ours in order, each once.

        Raises:
            UnknownPeer, PeerLost, PeerUnreachable, PeerRefused
            ConfigError: it isn't bytes, or too long.
            DeadlineExceeded: the peer doesn't take its notifications, and there is no room for more.
        """
        self.check_open()
        target = self.peer(peer) if isinstance(peer, str) else peer
        target.link(timeout_s).notify(checked_message(message), self.wait_s(timeout_s))

    def notifications(self) -> list[Notification]:
        """What arrived since the last call: in order for each sender, each once."""
        if self._closed:
            self.check_open()
        mail = self.mail
        arrived = mail.take(mail.general)
        return list(map(Notification._make, arrived)) if arrived else []

    def wait_notification(self, timeout_s: float | None = None) -> list[Notification]:
        """Sleep until something arrives; it costs no processor time meanwhile.

        Raises:
            DeadlineExceeded: nothing came.
            ClosedError: the agent was closed meanwhile.
        """
        wait_s = self.wait_s(timeout_s)
        deadline = time.monotonic() + wait_s
        while True:
            arrived = self.notifications()
            if arrived:
                return arrived
            left = deadline - time.monotonic()
            if left <= 0:
                raise _nothing_came(self.name, wait_s)
            self.mail.wait(self.mail.general, left)

    async def arrived(self, timeout_s: float | None = None) -> list[Notification]:
        """``wait_notification()`` for a running event loop.

        Raises:
            DeadlineExceeded, ClosedError
        """
        wait_s = self.wait_s(timeout_s)
        deadline = time.monotonic() + wait_s
        while not (arrived := self.notifications()):
            if not await self.mail.arrived(self.mail.general, max(0.0, deadline - time.monotonic())):
                raise _nothing_came(self.name, wait_s)
        return arrived

    # Its life.

    @property
    def has_network(self) -> bool:
        """Whether the network plane is open."""
        return self.planes.network is not None

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return bool(self._closed)

    def close(self) -> None:
        """End everything: connections, transfers under way, registrations. Idempotent; any time, any thread.

        Waits up to five seconds for peers that are in the middle of our memory. Memory that one of them still touches
        then (its process is stopped, say) is kept until this process ends.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = "closed"
        _agents.discard(self)
        self._finalizer.detach()
        self.mail.close()
        self._peers.close("closed: our agent was closed")
        self.planes.close_network(_CLOSE_TIMEOUT_S)
        self.registrations.close(_CLOSE_TIMEOUT_S)
        self.planes.host.close()

    def wait_s(self, timeout_s: float | None) -> float:
        """How long a call may take: what it was given, or the agent's ``timeout_s``."""
        return self.timeout_s if timeout_s is None else timeout_s

    def check_open(self) -> None:
        """Raises ``ClosedError`` once it was closed, and in a forked child."""
        if self._closed:
            raise ClosedError(f"the agent {self.name} {_WHY_CLOSED[self._closed]}")

    def _forked(self) -> None:
        """In a child: what we share with peers is our parent's to use."""
        self._closed = "forked"
        self._finalizer.detach()
        self._peers.lose_hosts(f"an agent {_WHY_CLOSED['forked']}")

    def __enter__(self) -> Agent:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """``close()``."""
        self.close()

    def __repr__(self) -> str:
        """Its name, and how much it has to do with whom."""
        state = f"{len(self.registrations)} registrations, {len(self._peers)} peers"
        return f"<Agent {self.name}: {self._closed or state}>"


_WHY_CLOSED = {"closed": "was closed", "forked": "doesn't survive fork(); make a new one in the child"}
_agents: weakref.WeakSet[Agent] = weakref.WeakSet()


def _nothing_came(name: str, wait_s: float) -> PenstockError:
    return DeadlineExceeded(f"no notification came for {name} within {wait_s} s")


def _after_fork_in_child() -> None:
    for agent in list(_agents):
        agent._forked()


os.register_at_fork(after_in_child=_after_fork_in_child)
