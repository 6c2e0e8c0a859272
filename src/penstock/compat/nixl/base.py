"""What all calls of a ``nixl_agent`` act on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from penstock.compat.nixl.descriptors import DescriptorList
from penstock.compat.nixl.errors import (
    as_nixl,
    nixlBackendError,
    nixlInvalidParamError,
    nixlNotAllowedError,
    nixlNotFoundError,
)
from penstock.compat.nixl.memory import memory_of
from penstock.compat.nixl.messages import Messages, as_text
from penstock.compat.nixl.plugins import PLUGINS
from penstock.compat.nixl.registrations import Registrations
from penstock.transfer import Agent, Peer, Prepared
from penstock.transfer.metadata import AgentMetadata
from penstock.transfer.table import Memory

__all__ = ["AgentState", "nixl_backend_handle"]

nixl_backend_handle = int

log = logging.getLogger("penstock")


class AgentState:
    """The state of one agent.

    Attributes:
        name: the agent's.
        agent: Penstock's agent, which does everything; None before the backend "UCX" is created.
        notifs: what ``update_notifs`` and the checks drained, and nobody took yet.
        backends: those that were created, in order of preference.
        plugin_list: those that can be.
    """

    name: str
    agent: Agent | None
    notifs: Messages
    backends: dict[str, nixl_backend_handle]
    plugin_list: list[str]
    _notifs_lock: threading.Lock
    _params: dict[str, dict[str, str]]
    _registrations: Registrations
    _timed: bool

    @property
    def _mover(self) -> Agent:
        """What moves memory and notifications."""
        if self.agent is None:
            raise nixlBackendError(
                f"agent {self.name!r} has no backend that moves memory or notifications; create_backend('UCX')"
            )
        return self.agent

    def _check_backends(self, backends: Sequence[str]) -> None:
        """Refuses names of backends that weren't created, and lists of backends none of which moves memory."""
        unknown = [name for name in backends if name not in self.backends]
        if unknown:
            raise nixlNotFoundError(
                f"backend {unknown[0]!r} wasn't created; there are {', '.join(self.backends) or 'none'}"
            )
        if backends and not any(PLUGINS[name].moves for name in backends):
            raise nixlNotFoundError(f"none of {', '.join(backends)} moves memory; leave backends out, or name 'UCX'")

    def _peer(self, name: str | bytes) -> Peer:
        """Another agent whose metadata is loaded, or ourselves."""
        with as_nixl():
            return self._mover.peer(as_text(name))

    def _memory_of(self, rows: DescriptorList) -> Memory:
        memory = memory_of(rows.getType())
        if memory is None:
            raise nixlNotFoundError(f"{rows.getType().name} isn't memory that an agent moves; DRAM and VRAM are")
        return memory

    def _prepared(self, side: Agent | Peer, rows: DescriptorList) -> Prepared:
        """Descriptors of our own memory or a peer's, checked."""
        memory = self._memory_of(rows)
        with as_nixl():
            prepared = side.prepare(rows.table, memory=memory)
        if prepared.vram != (memory == "VRAM"):
            raise nixlNotFoundError(f"these rows are registered, but not in {memory}")
        return prepared

    def _metadata_of(self) -> bytes:
        """All of our own metadata."""
        if self.agent is None:
            raise nixlInvalidParamError(
                f"agent {self.name!r} has no backend that reaches others; create_backend('UCX')"
            )
        with as_nixl():
            return self.agent.metadata()

    def _load(self, blob: bytes) -> str:
        """Loads another agent's metadata; its name."""
        with as_nixl():
            loaded = AgentMetadata.from_bytes(blob)
            if loaded.name == self.name:
                raise nixlInvalidParamError(f"metadata of {loaded.name!r}, as we are called; load that of others")
            known = self._mover.peers.get(loaded.name)
            if known is not None and known.metadata.instance != loaded.instance and known.lost is None:
                raise nixlNotAllowedError(f"another agent {loaded.name!r} is loaded; remove_remote_agent() it first")
            return self._mover.add_peer(blob).name
