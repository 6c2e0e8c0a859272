"""The sending end of a channel."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import time
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from penstock.errors import ClosedError, ConfigError, DeadlineExceeded, MetadataError, PenstockError
from penstock.sizes import whole_number
from penstock.transfer.channel.credits import Allowance
from penstock.transfer.channel.end import End
from penstock.transfer.channel.notes import Kind, Note, Offer, stride_of
from penstock.transfer.descriptors import Descriptors
from penstock.transfer.mail import new_topic
from penstock.transfer.memory import ranges_of

if TYPE_CHECKING:
    from penstock.transfer.agent import Agent
    from penstock.transfer.operation import Transfer

__all__ = ["Sender", "Slot"]

UInt8s: TypeAlias = npt.NDArray[np.uint8]

_NO_CREDIT: Final = "no free slot came"


class Slot:
    """Room for the next message, to be filled in place; from ``Sender.reserve()``.

    Attributes:
        data: ``slot_bytes`` bytes, writable; what lies there before is undefined.
    """

    __slots__ = ("_sender", "data")

    def __init__(self, sender: Sender, data: memoryview) -> None:
        self._sender: Sender | None = sender
        self.data = data

    def send(self, size_bytes: int | None = None) -> None:
        """Send the first ``size_bytes`` bytes; None: all. Once; then the memory is the sender's again.

        Raises:
            ClosedError: it was sent before, or this end was closed.
            ConfigError: more than there are.
            PeerLost, ...: as ``Sender.send``.
        """
        sender, self._sender = self._sender, None
        if sender is None:
            raise ClosedError("this slot was sent already; reserve another one")
        size_bytes = self.data.nbytes if size_bytes is None else size_bytes
        sender._send_staged(whole_number("size_bytes", size_bytes, least=0, most=self.data.nbytes))


class Sender(End):
    """Sends messages into the ring that a ``Receiver`` offers, and waits while none of its slots is free.

    Args:
        agent: from whose memory; ``staging_slots * slot_bytes`` from its budget.
        offer: what ``Receiver.offer()`` gave. Its agent becomes a peer of ours.
        staging_slots: how many messages may be under way over a network at once.
        timeout_s: how long a call may wait that isn't given a time of its own; None: the agent's ``timeout_s``.

    Leaving a ``with`` block by an exception tells the receiver that this wasn't all: it gets ``PeerLost``.

    Threads: one at a time sends; ``close()`` may be called in any.

    Raises:
        MetadataError: it is no offer.
        PeerUnreachable, PeerRefused: no connection to the receiver.
        BudgetError, DeadlineExceeded: the agent has no memory.
    """

    def __init__(self, agent: Agent, offer: Buffer, *, staging_slots: int = 2, timeout_s: float | None = None) -> None:
        accepted = Offer.from_bytes(offer)
        staging_slots = whole_number("staging_slots", staging_slots, least=1, most=accepted.slots + 1)
        super().__init__(agent, timeout_s)
        self.slots = accepted.slots
        self.slot_bytes = accepted.slot_bytes
        self._peer_topic = accepted.topic
        self._ring = accepted.ring
        self._stride = stride_of(accepted.slot_bytes)
        self._peer = self._agent_of(accepted.metadata)
        if self._peer.name != accepted.ring.owner:
            raise MetadataError(f"an offer of {self._peer.name!r} with a ring of {accepted.ring.owner!r}")
        self._allowance = Allowance(accepted.slots)
        self._staging_slots = staging_slots
        memory = agent.allocate(staging_slots * self._stride, self.timeout_s)
        self._registration = agent.register(memory)
        self._staging = np.frombuffer(memoryview(memory), np.uint8).reshape(staging_slots, self._stride)
        self._staged = self._registration.descriptors
        self._transfers: dict[tuple[int, int], Transfer] = {}
        self._under_way: list[Transfer | None] = [None] * staging_slots
        self._box = agent.mail.open(new_topic())
        try:
            self._transfer(0, 0, self.slot_bytes)  # connects, and maps the ring: later sends needn't wait for that
            self._tell(Kind.OPEN, tail=self._box.topic + agent.metadata([]))
        except BaseException:
            self._let_go()
            raise

    def send(self, data: Any, timeout_s: float | None = None) -> None:
        """Send one message; when it returns, ``data`` may be changed.

        Args:
            data: a buffer, array or tensor on the host; or a list of them, which arrive as one message; or
                ``Descriptors`` of registered memory of ours, which are moved from where they lie without a copy.
            timeout_s: how long to wait for a free slot.

        Raises:
            DeadlineExceeded: no slot became free in time; nothing was sent, and the same call may be tried again.
            PeerLost: the receiver ended, or closed its end.
            ConfigError: more than ``slot_bytes``, or nothing that lies in host memory.
            ClosedError: this end, or the agent, was closed.
        """
        if isinstance(data, Descriptors):
            self._check_size(data.total_bytes)
            self._wait_for(self._step, timeout_s, _NO_CREDIT)
            self._send_registered(data)
            return
        pieces = self._pieces(data)
        self._fill(self.reserve(timeout_s), pieces)

    async def sent(self, data: Any, timeout_s: float | None = None) -> None:
        """``send()`` of anything but descriptors for a running event loop."""
        pieces = self._pieces(data)
        deadline = self._deadline(timeout_s)
        await self._wait_for_async(self._step, timeout_s, _NO_CREDIT)
        last = self._last()
        if last is not None:
            try:
                with self._reaching():
                    async with asyncio.timeout(deadline - time.monotonic()):
                        await last
            except TimeoutError as error:
                self._blame(last)
                raise DeadlineExceeded(f"the message before is still on its way to {self.peer_name}") from error
        self._fill(self._slot(), pieces)

    def reserve(self, timeout_s: float | None = None) -> Slot:
        """Room for the next message, when the receiver has a free slot for it. Until it is sent, it is the same one.

        Raises:
            DeadlineExceeded, PeerLost, ClosedError: as ``send``.
        """
        deadline = self._deadline(timeout_s)
        self._wait_for(self._step, timeout_s, _NO_CREDIT)
        last = self._last()
        if last is not None:
            self._finish(last, max(0.0, deadline - time.monotonic()))
        return self._slot()

    def close(self) -> None:
        """Tell the receiver that this was all. Idempotent.

        Raises:
            DeadlineExceeded, PeerLost: messages on their way didn't arrive.
        """
        if self._closed:
            return
        try:
            for transfer in self._under_way:
                if transfer is not None and self._failure is None:
                    self._finish(transfer)
            if self._failure is None and not self._agent.closed:
                with self._reaching():
                    self._tell(Kind.END, self._allowance.next)
        finally:
            if self._failure is not None:
                self._stop(f"the sender failed: {self._failure}")
            self._let_go()

    def abandon(self, why: str = "the sender gave up") -> None:
        """Close without having sent everything: the receiver gets ``PeerLost``. Idempotent; raises nothing."""
        if not self._closed:
            self._stop(why)
            with contextlib.suppress(PenstockError):
                self._let_go()

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon(f"{kind.__name__} at the sender: {error}")

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._allowance.left} of {self.slots} slots free"
        return f"<Sender of {self.slot_bytes} bytes to {self.peer_name}: {state}>"

    def _why_not(self) -> str:
        if self._allowance.limit:
            return ""
        return "; it grants them as it waits for messages: its program hasn't called receive(), nor begun its loop"

    def _step(self) -> bool | None:
        """True when the receiver has room, else None."""
        if self._closed or self._failure is not None:
            self._check()
        self._listen()
        if not self._allowance.left:
            self._check()
            return None
        return True

    def _last(self) -> Transfer | None:
        """What may still be read from the staging slot of the next message."""
        return self._under_way[self._allowance.next % self._staging_slots]

    def _slot(self) -> Slot:
        place = self._allowance.next % self._staging_slots
        self._under_way[place] = None
        return Slot(self, memoryview(self._staging[place])[: self.slot_bytes])

    def _fill(self, slot: Slot, pieces: list[UInt8s]) -> None:
        into, size_bytes = np.asarray(slot.data), 0
        for piece in pieces:
            into[size_bytes : size_bytes + piece.size] = piece
            size_bytes += piece.size
        slot.send(size_bytes)

    def _send_staged(self, size_bytes: int) -> None:
        self._check()
        sequence = self._allowance.next
        note = self._wrapped(Kind.DATA, sequence, size_bytes)
        place = sequence % self._staging_slots
        with self._reaching():
            if size_bytes == 0:
                self._agent.notify(self._peer_or_raise(), note, self.timeout_s)
                self._allowance.take()
                return
            transfer = self._transfer(place, sequence % self.slots, size_bytes)
        self._allowance.take()
        transfer.post(note)
        if transfer.state == "ACTIVE":
            self._under_way[place] = transfer
        else:
            self._finish(transfer)

    def _send_registered(self, data: Descriptors) -> None:
        lengths = data.table[:, 1]
        ring_slot = self._allowance.next % self.slots
        starts = np.cumsum(lengths) - lengths + np.uint64(ring_slot * self._stride)
        local = self._agent.prepare(data)
        with self._reaching():
            remote = self._peer_or_raise().prepare(_part(self._ring, starts, lengths))
            transfer = self._agent.transfer("WRITE", local, remote, timeout_s=self.timeout_s)
        transfer.post(self._wrapped(Kind.DATA, self._allowance.take(), data.total_bytes))
        self._finish(transfer)

    def _transfer(self, place: int, ring_slot: int, size_bytes: int) -> Transfer:
        """From a staging slot into a slot of the ring: that of last time, if it was as long."""
        known = self._transfers.get((place, ring_slot))
        if known is not None and known.total_bytes == size_bytes:
            return known
        length = np.array([size_bytes], np.uint64)
        from_, to = (np.array([slot * self._stride], np.uint64) for slot in (place, ring_slot))
        transfer = self._agent.transfer(
            "WRITE",
            self._agent.prepare(_part(self._staged, from_, length)),
            self._peer_or_raise().prepare(_part(self._ring, to, length)),
            timeout_s=self.timeout_s,
        )
        self._transfers[place, ring_slot] = transfer
        return transfer

    def _finish(self, transfer: Transfer, timeout_s: float | None = None) -> None:
        try:
            with self._reaching():
                transfer.wait(timeout_s)
        except DeadlineExceeded:
            self._blame(transfer)
            raise

    def _blame(self, transfer: Transfer) -> None:
        """A transfer that took too long leaves a gap, so nothing can follow it; one that goes on does no harm."""
        error = transfer.error
        if error is not None:
            self._fail(error)

    def _hear(self, sender: str, note: Note) -> None:
        if sender != self.peer_name:
            raise MetadataError(f"a note from {sender!r} in a channel with {self.peer_name!r}")
        if note.kind == Kind.GRANT:
            self._allowance.grant(note.first)
        elif note.kind == Kind.SHUT:
            self._heard_stop(note)

    def _pieces(self, data: Any) -> list[UInt8s]:
        pieces = [_flat(thing) for thing in (data if isinstance(data, (list, tuple)) else [data])]
        self._check_size(sum(piece.size for piece in pieces))
        return pieces

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self.slot_bytes:
            raise ConfigError(f"a message of {size_bytes} bytes; slots of this channel have {self.slot_bytes}")

    def _peer_or_raise(self) -> Any:
        assert self._peer is not None
        return self._peer

    def _let_go(self) -> None:
        self._closed = True
        self._agent.mail.shut(self._box)
        self._transfers.clear()
        self._registration.close()


def _part(whole: Descriptors, starts: Any, lengths: Any) -> Descriptors:
    """Ranges of one descriptor: from so many bytes in it, so long."""
    assert whole.slots is not None and whole.generations is not None
    count = len(lengths)
    table = np.column_stack([whole.table[0, 0] + starts, lengths, np.full(count, whole.table[0, 2])])
    return Descriptors(
        whole.owner, whole.memory, table, np.repeat(whole.slots, count), np.repeat(whole.generations, count)
    )


def _flat(thing: Any) -> UInt8s:
    """The bytes of a thing in host memory, (size,) uint8: no copy."""
    with contextlib.suppress(TypeError, ValueError, BufferError):
        view = memoryview(thing)
        if view.c_contiguous and "O" not in view.format:
            return np.frombuffer(view, np.uint8) if view.nbytes else np.empty(0, np.uint8)
    if getattr(thing, "nbytes", 1) == 0:  # a tensor without items
        return np.empty(0, np.uint8)
    ranges = ranges_of([thing])
    if ranges.memory != "DRAM":
        raise ConfigError("a message from the memory of a GPU; send a copy on the host, or registered descriptors")
    address, length, _ = ranges.table[0].tolist()
    # The array holds on to what owns the memory by way of this object.
    owned = (ctypes.c_ubyte * length).from_address(address)
    owned.owner = ranges.keepalive
    return np.frombuffer(memoryview(owned), np.uint8)
