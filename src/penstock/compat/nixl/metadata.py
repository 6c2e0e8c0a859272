"""Calls about descriptors and about what agents know of each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.compat.nixl.base import AgentState
from penstock.compat.nixl.descriptors import (
    DescriptorList,
    list_from_bytes,
    nixlRegDList,
    nixlRemoteDList,
    nixlXferDList,
)
from penstock.compat.nixl.errors import as_nixl, nixlInvalidParamError, nixlNotFoundError
from penstock.compat.nixl.forms import registered_list, remote_list, transfer_list
from penstock.compat.nixl.messages import as_text
from penstock.compat.nixl.partial import restricted
from penstock.transfer.metadata import AgentMetadata

__all__ = ["MetadataCalls"]


class MetadataCalls(AgentState):
    """Descriptors and metadata."""

    def get_xfer_descs(self, descs: Any, mem_type: str | None = None) -> nixlXferDList | None:
        """A list to transfer from or to.

        Args:
            descs: such a list (returned as it is), tuples (address, length, device), an array (N, 3) of uint64 or
                int64, a contiguous tensor, or a list of those.
            mem_type: what tuples and arrays lie in: ``"DRAM"``, ``"VRAM"``, ...; a tensor knows.

        Returns:
            None, with a line in the log, where that isn't enough to tell.

        Raises:
            KeyError: there is no such memory.
            ValueError: an array of another dtype, or not C-contiguous.
            IndexError: an empty list.
        """
        return transfer_list(descs, mem_type)

    def get_reg_descs(self, descs: Any, mem_type: str | None = None) -> nixlRegDList | None:
        """A list to register: as ``get_xfer_descs``, but tuples have a fourth field, a str or bytes."""
        return registered_list(descs, mem_type)

    def get_remote_descs(self, descs: Any, mem_type: str | None) -> nixlRemoteDList | None:
        """A list of others' memory: tuples (address, length, device, agent)."""
        return remote_list(descs, mem_type)

    def get_serialized_descs(self, descs: DescriptorList) -> bytes:
        """A list as bytes: versioned, bounded, and no pickle."""
        if not isinstance(descs, DescriptorList):
            raise nixlInvalidParamError(f"{type(descs).__name__} isn't a descriptor list; give get_xfer_descs(...)")
        return descs.to_bytes()

    def deserialize_descs(self, serialized_descs: bytes) -> DescriptorList:
        """The list of ``get_serialized_descs``.

        Raises:
            nixlMismatchError: it isn't one.
        """
        return list_from_bytes(serialized_descs)

    def get_agent_metadata(self) -> bytes:
        """Who we are, how we are reached and what we registered up to now, for ``add_remote_agent`` elsewhere.

        Whoever has it can read and write that memory.

        Raises:
            nixlInvalidParamError: no backend reaches other agents.
        """
        return self._metadata_of()

    def get_partial_agent_metadata(
        self,
        descs: DescriptorList | None,
        inc_conn_info: bool = False,  # noqa: ARG002
        backends: Sequence[str] = (),
    ) -> bytes:
        """The same with these registered descriptors and no others; whoever loads it adds them to what it knows.

        Args:
            descs: None, or an empty list: only how we are reached.
            inc_conn_info: kept; how we are reached is always told.
            backends: of which at least one must move memory; none given = all.

        Raises:
            nixlNotFoundError: one of them isn't registered.
        """
        self._check_backends(backends)
        whole = AgentMetadata.from_bytes(self._metadata_of())
        if descs is None or not len(descs):
            return restricted(whole, None).to_bytes()
        with as_nixl():
            told = self._mover.descriptors(descs.table, memory=self._memory_of(descs))
        return restricted(whole, told).to_bytes()

    def add_remote_agent(self, metadata: bytes) -> bytes:
        """Loads another agent's metadata; doesn't connect. Again, to learn what it registered since.

        Returns:
            Its name, as UTF-8.

        Raises:
            nixlInvalidParamError: it is our own.
            nixlMismatchError: it isn't metadata.
            nixlNotAllowedError: another agent of this name is loaded; ``remove_remote_agent`` first.
        """
        return self._load(metadata).encode()

    def remove_remote_agent(self, agent: str | bytes) -> None:
        """Disconnects from an agent and forgets it; an unknown one is forgotten already."""
        name = as_text(agent)
        if name in self._mover.peers:
            self._mover.remove_peer(name)

    def make_connection(self, remote_agent: str | bytes, backends: Sequence[str] = ()) -> None:
        """Connects now, and not with the first transfer.

        Raises:
            nixlNotFoundError: an unknown agent.
            nixlRemoteDisconnectError: it can't be reached.
        """
        self._check_backends(backends)
        with as_nixl():
            self._peer(remote_agent).connect()

    def check_remote_metadata(self, agent: str | bytes, descs: DescriptorList | None = None) -> bool:
        """Whether an agent's metadata is loaded, and with ``descs`` whether it says how to reach all of them."""
        peer = self._mover.peers.get(as_text(agent))
        if peer is None or descs is None or not len(descs):
            return peer is not None
        try:
            self._prepared(peer, descs)
        except nixlNotFoundError:
            return False
        return True
