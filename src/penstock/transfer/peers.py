"""The peers that an agent knows, by name, with itself among them where it is asked for."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from penstock.errors import ConfigError, UnknownPeer
from penstock.transfer.metadata import AgentMetadata
from penstock.transfer.peer import Peer

if TYPE_CHECKING:
    from penstock.transfer.agent import Agent

__all__ = ["Peers"]


class Peers:
    """Those whose metadata is loaded. Threads: any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, Peer] = {}
        self._itself: Peer | None = None

    def __len__(self) -> int:
        """How many there are, without the agent itself."""
        return len(self._known)

    def add(self, agent: Agent, metadata: AgentMetadata) -> Peer:
        """The peer of that name, which takes the place of another one of its name, or learns what is new.

        Raises:
            ConfigError: it is the agent's own name.
        """
        if metadata.name == agent.name:
            raise ConfigError(
                f"metadata of {agent.name!r}, which is this agent's own name; use agent.itself for loopback"
            )
        with self._lock:
            known = self._known.get(metadata.name)
            if known is not None and known.metadata.instance == metadata.instance:
                known.refresh(metadata)
                return known
            peer = self._known[metadata.name] = Peer(agent, metadata)
        if known is not None:
            known.close("replaced by another agent of its name")
        return peer

    def remove(self, name: str) -> None:
        """Disconnect from one of them and forget it.

        Raises:
            UnknownPeer
        """
        with self._lock:
            peer = self._known.pop(name, None)
        if peer is None:
            raise UnknownPeer(f"no metadata of an agent {name!r} is loaded")
        peer.close("removed")

    def by_name(self) -> dict[str, Peer]:
        """All of them."""
        with self._lock:
            return dict(self._known)

    def named(self, name: str) -> Peer:
        """One of them.

        Raises:
            UnknownPeer
        """
        found = self._known.get(name)
        if found is None:
            known = ", ".join(sorted(self._known)) or "none"
            raise UnknownPeer(f"no metadata of an agent {name!r} is loaded (known: {known}); call add_peer() first")
        return found

    def itself(self, agent: Agent) -> Peer:
        """The agent as its own peer."""
        with self._lock:
            if self._itself is None:
                self._itself = Peer(agent, agent.planes.metadata((), complete=True))
            return self._itself

    def close(self, why: str) -> None:
        """Disconnect from all of them."""
        with self._lock:
            everyone = self._everyone()
        for peer in everyone:
            peer.close(why)

    def lose_hosts(self, why: str) -> None:
        """Take those on this host for gone, without a word to them and without a lock: for a forked child."""
        # Links of the network plane know by themselves; their locks may be held by threads that no longer are.
        for peer in self._everyone():
            peer.lose_host(why)

    def _everyone(self) -> list[Peer]:
        return [*self._known.values(), *([self._itself] if self._itself else [])]
