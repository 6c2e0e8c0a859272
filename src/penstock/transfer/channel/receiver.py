"""The receiving end of a channel: a ring of slots in our memory, and messages where they lie in it."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from penstock.errors import (
    ClosedError,
    DeadlineExceeded,
    MetadataError,
    PeerLost,
    PeerRefused,
    PeerUnreachable,
    PenstockError,
)
from penstock.sizes import whole_number
from penstock.transfer.channel.credits import Window
from penstock.transfer.channel.end import End
from penstock.transfer.channel.notes import MOST_SLOTS, Kind, Note, Offer, stride_of
from penstock.transfer.mail import TOPIC_BYTES, is_topic, new_topic
from penstock.transfer.metadata import AgentMetadata

if TYPE_CHECKING:
    from penstock.transfer.agent import Agent

__all__ = ["Message", "Receiver"]


_GRANT_S: Final = 0.1


class Message:
    """One message, where the sender wrote it: no copy was made.

    Its slot goes back to the sender when the message was released, or let go of, **and** the last view of its bytes is
    gone: a NumPy array or tensor over ``data`` is safe as long as it lives, and holds the slot as long.

    Attributes:
        sequence: its number, from 0.
        size_bytes: how long it is; may be 0.
    """

    __slots__ = ("_receiver", "_view", "sequence", "size_bytes")

    def __init__(self, receiver: Receiver, view: memoryview, sequence: int) -> None:
        self._receiver = receiver
        self._view: memoryview | None = view
        self.sequence = sequence
        self.size_bytes = view.nbytes

    @property
    def data(self) -> memoryview:
        """Its bytes, in the ring; writable.

        Raises:
            ClosedError: the message was released.
        """
        if self._view is None:
            raise ClosedError(f"message {self.sequence} was released; look at it before, or copy it")
        return self._view

    def array(self, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
        """Its bytes as an array (size_bytes / item size,) of this dtype, in the ring; writable.

        Raises:
            ClosedError: the message was released.
            ValueError: no whole number of items.
        """
        return np.asarray(self.data).view(dtype)

    def release(self) -> None:
        """Done with it. Idempotent."""
        if self._view is not None:
            self._view = None
            self._receiver._settle()

    def __len__(self) -> int:
        return self.size_bytes

    def __enter__(self) -> Message:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Message {self.sequence}, {self.size_bytes} bytes{', released' if self._view is None else ''}>"


class _SlotRef(weakref.ref[Any]):
    """Tells when the last view of a message's bytes is gone."""

    __slots__ = ("sequence",)
    sequence: int


class Receiver(End):
    """Takes a stream of messages from one sender, in order, each once.

    ``offer()`` goes to the sender by any way you like; who has it may write to the ring. Then::

        for message in receiver:
            with message:
                use(message.array(numpy.float32))

    The loop ends when the sender closed its end. A sender that dies is ``PeerLost``, after the messages that it had
    sent. On one host that is noticed within 0.3 s, on a network within the agent's ``peer_timeout_s``.

    Args:
        agent: whose memory the ring lies in, ``slots * slot_bytes`` (rounded up to 64) from its budget.
        slots: how many messages may lie there; at most 4096.
        slot_bytes: the largest message.
        timeout_s: how long a call may wait that isn't given a time of its own; None: the agent's ``timeout_s``.

    Threads: one at a time receives; messages may be let go of, and ``close()`` called, in any.

    Raises:
        ConfigError: numbers that can't be.
        BudgetError, DeadlineExceeded: the agent has no memory for the ring.
    """

    def __init__(self, agent: Agent, slots: int, slot_bytes: int, *, timeout_s: float | None = None) -> None:
        self.slots = whole_number("slots", slots, least=1, most=MOST_SLOTS)
        self.slot_bytes = whole_number("slot_bytes", slot_bytes, least=1)
        super().__init__(agent, timeout_s)
        self._stride = stride_of(self.slot_bytes)
        self._ring = agent.allocate(self.slots * self._stride, self.timeout_s)
        self._registration = agent.register(self._ring)
        self._box = agent.mail.open(new_topic())
        self._slot_type = ctypes.c_ubyte * self.slot_bytes
        self._lock = threading.Lock()
        self._window = Window(self.slots)
        self._views: dict[int, _SlotRef] = {}
        self._gone: deque[_SlotRef] = deque()
        self._count: int | None = None
        self._sender: tuple[str, bytes] | None = None

    def offer(self) -> bytes:
        """What the sender needs. It is good for one sender, and as long as this end is open.

        Raises:
            ClosedError: this end was closed.
        """
        self._check()
        metadata = self._agent.metadata([self._registration])
        return Offer(self._box.topic, self.slots, self.slot_bytes, self._registration.descriptors, metadata).to_bytes()

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """The next message; None = the sender closed its end, and all was received.

        Raises:
            DeadlineExceeded: none came in time.
            PeerLost: the sender ended, or gave up, in the middle.
            ClosedError: this end, or the agent, was closed.
            MetadataError: the sender isn't one, or not in its right mind.
        """
        return self._wait_for(self._step, timeout_s, "no message came")[0]

    async def received(self, timeout_s: float | None = None) -> Message | None:
        """``receive()`` for a running event loop."""
        return (await self._wait_for_async(self._step, timeout_s, "no message came"))[0]

    def __iter__(self) -> Iterator[Message]:
        while (message := self.receive()) is not None:
            yield message

    async def __aiter__(self) -> AsyncIterator[Message]:
        while (message := await self.received()) is not None:
            yield message

    def close(self, timeout_s: float | None = None) -> None:
        """Take no more; the sender's next call raises ``PeerLost``. Idempotent.

        Messages that were received stay readable as long as they are held.

        Raises:
            DeadlineExceeded: the sender is in the middle of the ring; the memory is kept until it is done or gone.
        """
        if self._closed:
            return
        if self._count is None:
            self._stop("the receiver closed it")
        self._closed = True
        self._agent.mail.shut(self._box)
        self._registration.close(timeout_s)

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._window.held_count} of {self.slots} slots held"
        return f"<Receiver of {self.slot_bytes} bytes from {self.peer_name or 'nobody yet'}: {state}>"

    def _why_not(self) -> str:
        if self._window.limit > self._window.next:
            return ""
        return (
            f"; none can come: {self._window.held_count} of the {self.slots} slots, the oldest of them too, are held "
            "here by messages or by arrays over them; let go of them, or give the ring more slots"
        )

    def _step(self) -> tuple[Message | None] | None:
        """A message, or that there are no more, or that neither is known yet."""
        if self._closed:
            self._check()
        while True:
            failed = self._failure is not None
            self._listen()
            self._settle()
            found = self._window.take()
            if found is not None:
                return (self._message(*found),)
            if self._window.next == self._count:
                return (None,)
            if failed or self._failure is None:
                break  # else it failed meanwhile: what was said before that is heard first
        self._check()
        self._settle(at_once=True)  # we are about to sleep: nothing is held back from the sender
        return None

    def _message(self, sequence: int, size_bytes: int) -> Message:
        slot = self._slot_type.from_buffer(self._ring, sequence % self.slots * self._stride)
        ref = _SlotRef(slot, self._gone.append)
        ref.sequence = sequence
        self._views[sequence] = ref
        whole = np.frombuffer(memoryview(slot), np.uint8)
        return Message(self, whole[:size_bytes].data, sequence)

    def _settle(self, *, at_once: bool = False) -> None:
        """Free what nobody looks at any more, and grant it when it is worth a note."""
        with self._lock:
            while self._gone:
                ref = self._gone.popleft()
                del self._views[ref.sequence]
                self._window.free(ref.sequence)
            worth = 1 if at_once else max(1, self.slots // 4)
            done = self._closed or self._failure is not None or self._count is not None
            if self._window.owed < worth or self._peer is None or done:
                return
            before = self._window.granted
            try:
                # The first one connects. Later ones don't wait for a sender that leaves its notifications lying.
                self._tell(Kind.GRANT, self._window.grant(), timeout_s=_GRANT_S if before else self.timeout_s)
            except DeadlineExceeded:
                self._window.granted = before  # the next look tries again
            except (PeerLost, PeerUnreachable, PeerRefused) as error:
                # It may have sent everything before it went; that is heard first.
                self._fail(self._lost(error))

    def _hear(self, sender: str, note: Note) -> None:
        if note.kind == Kind.OPEN:
            self._open(sender, note.tail)
        elif self._peer is None or sender != self._peer.name:
            raise MetadataError(f"a note from {sender!r} in a channel with {self.peer_name or 'nobody yet'}")
        elif note.kind == Kind.DATA:
            if note.second > self.slot_bytes:
                raise MetadataError(f"message {note.first} has {note.second} bytes in slots of {self.slot_bytes}")
            self._window.arrive(note.first, note.second)
        elif note.kind == Kind.END:
            self._count = note.first
        elif note.kind == Kind.SHUT:
            self._heard_stop(note)

    def _open(self, sender: str, tail: bytes) -> None:
        topic, blob = tail[:TOPIC_BYTES], tail[TOPIC_BYTES:]
        metadata = AgentMetadata.from_bytes(blob)
        if not is_topic(topic) or metadata.name != sender:
            raise MetadataError(f"{sender!r} opens a channel as {metadata.name!r}")
        if self._peer is None:
            self._peer = self._agent_of(blob)
            self._peer_topic = topic
        elif sender != self._peer.name:
            peer = self._agent.add_peer(blob)
            why = f"{self.peer_name} sends into it already; an offer is for one sender"
            with contextlib.suppress(PenstockError):  # the stranger's trouble isn't ours
                self._agent.notify(peer, topic + Note(Kind.SHUT, tail=why.encode()[:255]).to_bytes(), self.timeout_s)
