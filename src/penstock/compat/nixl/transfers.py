"""Calls that register memory and move it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.compat.nixl.base import AgentState
from penstock.compat.nixl.descriptors import nixlRegDList, nixlXferDList
from penstock.compat.nixl.errors import as_nixl, nixlInvalidParamError, nixlNotFoundError, translated
from penstock.compat.nixl.forms import is_tensors, registered_list, required, transfer_list
from penstock.compat.nixl.handles import nixl_prepped_dlist_handle, nixl_xfer_handle
from penstock.compat.nixl.memory import OPERATIONS, memory_of
from penstock.compat.nixl.messages import as_bytes, as_text
from penstock.compat.nixl.registrations import Registrations
from penstock.compat.nixl.telemetry import XferTelemetry
from penstock.errors import PeerLost, PenstockError
from penstock.transfer import Peer

__all__ = ["TransferCalls"]

INIT_AGENT = "NIXL_INIT_AGENT"
_STATES = {"IDLE": "IDLE", "ACTIVE": "PROC", "DONE": "DONE", "FAILED": "ERR"}


class TransferCalls(AgentState):
    """Registering memory and moving it."""

    def register_memory(self, reg_list: Any, mem_type: str | None = None, backends: Sequence[str] = ()) -> nixlRegDList:
        """Lets other agents that load our metadata from now on read and write memory.

        Args:
            reg_list: tensors, an array (N, 3), tuples, or what ``get_reg_descs`` returned. The memory of tensors is
                kept alive; that of addresses is yours to keep.
            mem_type: what tuples and arrays lie in.
            backends: of which at least one must move memory; none given = all.

        Returns:
            What was registered, for ``deregister_memory``, and trimmed for transfers.

        Raises:
            nixlNotFoundError: no backend moves this kind of memory.
        """
        rows = required(registered_list(reg_list, mem_type), reg_list)
        tensors = reg_list if is_tensors(reg_list) else None
        with as_nixl():
            self._registrations_of(rows, backends).add(self._memory_of(rows), rows, tensors)
        return rows

    def deregister_memory(self, reg_dlist: nixlRegDList, backends: Sequence[str] = ()) -> None:
        """Takes it back; waits until no transfer touches it any more.

        Raises:
            nixlNotFoundError: a descriptor isn't one that was registered; then nothing is deregistered.
            nixlCancelledError: a transfer still touched it when the agent's deadline came. Nobody can start another;
                the memory must stay until the agent is closed.
        """
        with as_nixl():
            self._registrations_of(reg_dlist, backends).remove(self._memory_of(reg_dlist), reg_dlist)

    def prep_xfer_dlist(
        self, agent_name: str | bytes, xfer_list: Any, mem_type: str | None = None, backends: Sequence[str] = ()
    ) -> nixl_prepped_dlist_handle:
        """Checks descriptors once, for any number of transfers.

        Args:
            agent_name: ``""`` or ``"NIXL_INIT_AGENT"``: our own, as the local side; our own name: as the remote side;
                another name: that agent's.
            xfer_list: tuples, an array (N, 3), tensors, or what ``get_xfer_descs`` returned.
            mem_type: what tuples and arrays lie in.
            backends: of which at least one must move memory; none given = all.

        Raises:
            nixlNotFoundError: an unknown agent, or memory that isn't registered, as far as its metadata was loaded.
        """
        rows = required(transfer_list(xfer_list, mem_type), xfer_list)
        self._check_backends(backends)
        local = as_text(agent_name) in ("", INIT_AGENT)
        return nixl_prepped_dlist_handle(self._prepared(self._mover if local else self._peer(agent_name), rows))

    def make_prepped_xfer(
        self,
        operation: str,
        local_xfer_side: nixl_prepped_dlist_handle,
        local_indices: Any,
        remote_xfer_side: nixl_prepped_dlist_handle,
        remote_indices: Any,
        notif_msg: bytes | str = b"",
        backends: Sequence[str] = (),
        skip_desc_merge: bool = False,
    ) -> nixl_xfer_handle:
        """A transfer between descriptors of two prepared lists: the i-th local index with the i-th remote one.

        Args:
            operation: ``"WRITE"``: local to remote; ``"READ"``: remote to local.
            local_xfer_side: of our own memory.
            local_indices: a list, or an array (N,) of whole numbers.
            remote_xfer_side: of another agent's memory, or of ours by our own name.
            remote_indices: as many.
            notif_msg: reaches the other agent after the data; empty = none.
            backends: of which at least one must move memory; none given = all.
            skip_desc_merge: keep neighbours apart.

        Raises:
            KeyError: another operation.
            nixlInvalidParamError: sides that are exchanged, indices out of range, counts or lengths that differ.
            nixlNotFoundError: the other agent was removed meanwhile.
        """
        direction = OPERATIONS[operation]
        self._check_backends(backends)
        ours, theirs = local_xfer_side.prepared, remote_xfer_side.prepared
        if ours.peer is not None or theirs.peer is None:
            raise nixlInvalidParamError(f"the local side is one prepared for {INIT_AGENT!r}, the remote side is not")
        self._check_known(theirs.peer)
        with as_nixl():
            transfer = self._mover.transfer(
                direction,
                ours,
                theirs,
                notify=as_bytes(notif_msg) or None,
                local_indices=local_indices,
                remote_indices=remote_indices,
                merge=not skip_desc_merge,
            )
        return nixl_xfer_handle(transfer, theirs.peer, len(local_indices), timed=self._timed)

    def initialize_xfer(
        self,
        operation: str,
        local_descs: Any,
        remote_descs: Any,
        remote_agent: str | bytes,
        notif_msg: bytes | str = b"",
        backends: Sequence[str] = (),
    ) -> nixl_xfer_handle:
        """A transfer between two lists of descriptors, the i-th with the i-th.

        Args:
            operation: ``"WRITE"``: local to remote; ``"READ"``: remote to local.
            local_descs: what ``get_xfer_descs`` returned, or tuples (address, length, device) in DRAM.
            remote_descs: as many, of the same lengths.
            remote_agent: whose they are.
            notif_msg: reaches the other agent after the data; empty = none.
            backends: of which at least one must move memory; none given = all.

        Raises:
            KeyError: another operation.
            nixlInvalidParamError: counts or lengths that differ.
            nixlNotFoundError: an unknown agent, or memory that isn't registered, as far as its metadata was loaded.
        """
        direction = OPERATIONS[operation]
        local = required(transfer_list(local_descs, "DRAM"), local_descs)
        remote = required(transfer_list(remote_descs, "DRAM"), remote_descs)
        self._check_backends(backends)
        _check_pairs(local, remote)
        peer = self._peer(remote_agent)
        ours, theirs = self._prepared(self._mover, local), self._prepared(peer, remote)
        with as_nixl():
            transfer = self._mover.transfer(direction, ours, theirs, notify=as_bytes(notif_msg) or None)
        return nixl_xfer_handle(transfer, peer, len(local), timed=self._timed)

    def transfer(self, handle: nixl_xfer_handle, notif_msg: bytes | str = b"") -> str:
        """Posts a transfer, again if it is done.

        Args:
            handle: of the transfer.
            notif_msg: sent after the data from now on; empty = what was given before.

        Returns:
            ``"DONE"``; ``"PROC"``: poll ``check_xfer_state``; or ``"ERR"``: it failed within the call, as where its
            memory was deregistered, and ``handle.error`` says why.

        Raises:
            nixlRepostActiveError: it is in progress.
            nixlNotFoundError: the other agent was removed.
            nixlRemoteDisconnectError: the other agent is gone; its metadata is dropped.
        """
        try:
            state = handle.post(as_bytes(notif_msg) if notif_msg else None)
        except PenstockError as error:
            raise translated(error) from error
        return _STATES[state] if state != "FAILED" else self._failed(handle)

    def check_xfer_state(self, handle: nixl_xfer_handle) -> str:
        """``"IDLE"`` (never posted), ``"PROC"``, ``"DONE"`` or ``"ERR"``: then ``handle.error`` says why."""
        return _STATES[handle.poll()]

    def get_xfer_telemetry(self, handle: nixl_xfer_handle) -> XferTelemetry:
        """What the last post of a transfer took.

        Raises:
            nixlNoTelemetryError: telemetry is off.
            nixlNotPostedError: it wasn't posted, or is still in progress.
        """
        return handle.telemetry()

    def estimate_xfer_cost(self, handle: nixl_xfer_handle) -> tuple[int, int, str]:
        """(microseconds, margin, method): nothing here estimates, so the method is ``"UNKNOWN"``."""
        _ = handle.transfer
        return 0, 0, "UNKNOWN"

    def query_xfer_backend(self, handle: nixl_xfer_handle) -> str:
        """The backend that a transfer uses; ``handle.transfer.transport`` says what lies below it."""
        _ = handle.transfer
        return "UCX"

    def release_xfer_handle(self, handle: nixl_xfer_handle) -> None:
        """``handle.release()``."""
        handle.release()

    def release_dlist_handle(self, handle: nixl_prepped_dlist_handle) -> None:
        """``handle.release()``."""
        handle.release()

    def _registrations_of(self, rows: nixlRegDList, backends: Sequence[str]) -> Registrations:
        """Where rows of this kind of memory are registered."""
        self._check_backends(backends)
        if self.agent is None or memory_of(rows.getType()) is None:
            created = ", ".join(self.backends) or "no backend"
            raise nixlNotFoundError(
                f"{rows.getType().name} can't be registered with {created}; UCX takes DRAM and VRAM"
            )
        return self._registrations

    def _check_known(self, peer: Peer) -> None:
        """Refuses a peer that was removed, also if another of its name was added since."""
        if self._peer(peer.name) is not peer:
            raise nixlNotFoundError(f"agent {peer.name!r} was removed, and then loaded anew; prepare and make it again")

    def _failed(self, handle: nixl_xfer_handle) -> str:
        """What a post that failed is: a refusal where there is nobody to post to, else an error of the transfer."""
        self._check_known(handle.peer)
        error = handle.transfer.error
        if not isinstance(error, PeerLost):
            return "ERR"
        self._mover.remove_peer(handle.peer.name)
        raise translated(error)


def _check_pairs(local: nixlXferDList, remote: nixlXferDList) -> None:
    if len(local) != len(remote) or not len(local):
        raise nixlInvalidParamError(
            f"{len(local)} local and {len(remote)} remote descriptors; give pairs, at least one"
        )
    ours, theirs = local.table[:, 1], remote.table[:, 1]
    if (ours != theirs).any():
        row = int((ours != theirs).argmax())
        raise nixlInvalidParamError(f"pair {row} has {ours[row]} local and {theirs[row]} remote bytes")
