"""One peer that a session is connected with, and the bytes that go between the two buffers."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np

from penstock.compat.hmc.buffer import ConnBuffer
from penstock.compat.hmc.enums import ConnType, MemoryType
from penstock.compat.hmc.line import Line
from penstock.compat.hmc.rendezvous import Offer
from penstock.compat.hmc.whole import whole
from penstock.errors import TransferError
from penstock.transfer import Agent, Transfer
from penstock.transfer.operation import Operation
from penstock.transfer.peer import Peer
from penstock.transfer.table import Memory

__all__ = ["Connection"]

_MOST_KEPT = 64


class Connection:
    """A peer, as ``Connections`` keeps it.

    Args:
        ip: what we dialed, or where it dialed from.
        conn: which way bytes go.
        line: the connection of the rendezvous, whose end is the peer's.
        agent: our agent that has loaded the peer's metadata.
        peer: the peer in it.
        offer: what it said of its buffer.
        port: where it listens; 0 = nowhere.
    """

    def __init__(
        self, ip: str, conn: ConnType, line: Line, agent: Agent, peer: Peer, offer: Offer, *, port: int
    ) -> None:
        self.ip = ip
        self.port = port
        self.conn = conn
        self.line = line
        self.agent = agent
        self.peer = peer
        self.offer = offer
        self._kept: OrderedDict[tuple[Operation, int, int, int], Transfer] = OrderedDict()

    def is_with(self, ip: str, port: int | None, conn: ConnType | None) -> bool:
        """Whether this is meant; None = any."""
        return self.ip == ip and port in (None, self.port) and conn in (None, self.conn)

    def move(
        self, operation: Operation, buffer: ConnBuffer, local_offset: int, remote_offset: int, nbytes: int
    ) -> None:
        """Moves bytes, and returns when they are there; see ``start``."""
        transfer = self.start(operation, buffer, local_offset, remote_offset, nbytes)
        if transfer is not None:
            transfer.wait()
            self._keep((operation, local_offset, remote_offset, nbytes), transfer)

    def start(
        self, operation: Operation, buffer: ConnBuffer, local_offset: int, remote_offset: int, nbytes: int
    ) -> Transfer | None:
        """Begins to move bytes between our buffer and the peer's. The same bytes again cost no preparation.

        Args:
            operation: ``"WRITE"`` from ours to the peer's, ``"READ"`` from the peer's to ours.
            buffer: ours.
            local_offset: in it.
            remote_offset: in the peer's.
            nbytes: how many.

        Returns:
            The transfer, or None if the bytes are there already.

        Raises:
            TransferError: they don't fit one of the buffers, or can't be moved.
        """
        key = (operation, local_offset, remote_offset, nbytes)
        transfer = self._kept.pop(key, None)  # out of it while it is used: another thread makes its own
        if transfer is None:
            transfer = self._transfer(operation, buffer, local_offset, remote_offset, nbytes)
        if transfer is None or transfer.post() == "ACTIVE":
            return transfer
        transfer.wait()  # raises what it failed with
        self._keep(key, transfer)
        return None

    def _keep(self, key: tuple[Operation, int, int, int], transfer: Transfer) -> None:
        self._kept[key] = transfer
        if len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)

    def _transfer(
        self, operation: Operation, buffer: ConnBuffer, local_offset: int, remote_offset: int, nbytes: int
    ) -> Transfer | None:
        offer = self.offer
        _check_bounds("our buffer", buffer.size, local_offset, nbytes)
        _check_bounds(f"the buffer of {self.ip}", offer.size, remote_offset, nbytes)
        if nbytes == 0:
            return None
        ours = _row(buffer.ptr + local_offset, nbytes, buffer.device)
        theirs = _row(offer.address + remote_offset, nbytes, offer.device_id)
        local = self.agent.prepare(ours, _kind(buffer.mem_type))
        remote = self.peer.prepare(theirs, _kind(offer.mem_type))
        return self.agent.transfer(operation, local, remote)


def _check_bounds(whose: str, size: int, offset: int, nbytes: int) -> None:
    offset, nbytes = whole(offset, "offset"), whole(nbytes, "size")
    if offset < 0 or nbytes < 0 or offset + nbytes > size:
        raise TransferError(f"{nbytes} bytes at offset {offset} don't fit {whose}, which has {size}")


def _kind(mem_type: MemoryType) -> Memory:
    return "DRAM" if mem_type is MemoryType.CPU else "VRAM"


def _row(address: int, nbytes: int, device: int) -> Any:
    return np.array([[address, nbytes, device]], dtype=np.uint64)
