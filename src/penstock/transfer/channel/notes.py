"""What the two ends of a channel say to each other, in notifications, and the offer that one end makes. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from typing_extensions import Buffer

from penstock.errors import MetadataError
from penstock.transfer.descriptors import Descriptors
from penstock.transfer.mail import TOPIC_BYTES, is_topic
from penstock.transfer.wire import Reader, Writer

__all__ = ["MOST_SLOTS", "Kind", "Note", "Offer", "stride_of"]

MOST_SLOTS: Final = 4096
"""Of a ring: the notes of so many messages wait at the receiver until it looks."""

_HEADER: Final = struct.Struct("<BQQ")
_MOST_TAIL_BYTES: Final = 100 << 10
_MOST_OFFER_BYTES: Final = 100 << 10
_ALIGNMENT: Final = 64
_WHAT: Final = "a channel's offer"
_MAGIC: Final = b"PSch"
_VERSION: Final = 1


class Kind(IntEnum):
    """What a note is about; by the sender of messages, if not said otherwise."""

    OPEN = 1
    """I shall send. Tail: the topic of notes to me, and my metadata."""
    GRANT = 2
    """By the receiver: numbers below ``first`` may be sent."""
    DATA = 3
    """Message ``first`` of ``second`` bytes is in its slot."""
    END = 4
    """That was all: ``first`` messages."""
    SHUT = 5
    """By either: I stop here. Tail: why, in UTF-8."""


@dataclass(frozen=True)
class Note:
    """One of these notifications, without its topic."""

    kind: Kind
    first: int = 0
    second: int = 0
    tail: bytes = b""

    def to_bytes(self) -> bytes:
        """As it is sent."""
        return _HEADER.pack(self.kind, self.first, self.second) + self.tail

    @staticmethod
    def from_bytes(data: bytes) -> Note:
        """As it arrived.

        Raises:
            MetadataError: it is no note.
        """
        if not _HEADER.size <= len(data) <= _HEADER.size + _MOST_TAIL_BYTES:
            raise MetadataError(
                f"a channel's note of {len(data)} bytes; from {_HEADER.size} to {_HEADER.size + _MOST_TAIL_BYTES}"
            )
        kind, first, second = _HEADER.unpack_from(data)
        try:
            return Note(Kind(kind), first, second, data[_HEADER.size :])
        except ValueError:
            raise MetadataError(f"a channel's note of the unknown kind {kind}") from None


@dataclass(frozen=True)
class Offer:
    """A receiver's ring, and how it is reached.

    Attributes:
        topic: what the channel's notifications begin with.
        slots: how many messages the ring holds.
        slot_bytes: the largest message.
        ring: one descriptor, of the whole ring.
        metadata: of the receiver, as ``Agent.add_peer`` takes it.
    """

    topic: bytes
    slots: int
    slot_bytes: int
    ring: Descriptors
    metadata: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not is_topic(self.topic) or not 0 < self.slots <= MOST_SLOTS:
            raise MetadataError(f"{_WHAT}: topic {self.topic!r}, {self.slots} slots; at most {MOST_SLOTS}")
        fits = self.slot_bytes > 0 and len(self.ring) == 1 and self.ring.registered
        if not fits or int(self.ring.table[0, 1]) != self.slots * stride_of(self.slot_bytes):
            raise MetadataError(f"{_WHAT}: {self.slots} slots of {self.slot_bytes} bytes aren't {self.ring!r}")

    def to_bytes(self) -> bytes:
        """As it is sent.

        Raises:
            MetadataError: more than 100 KiB.
        """
        writer = Writer(_WHAT, _MAGIC, _VERSION).raw(self.topic).u32(self.slots).u64(self.slot_bytes)
        writer.sized(self.ring.to_bytes(), most=_MOST_OFFER_BYTES).sized(self.metadata, most=_MOST_OFFER_BYTES)
        return writer.done(most=_MOST_OFFER_BYTES)

    @staticmethod
    def from_bytes(blob: Buffer) -> Offer:
        """As it arrived.

        Raises:
            MetadataError: it is no offer.
        """
        reader = Reader(_WHAT, blob, _MAGIC, _VERSION, most=_MOST_OFFER_BYTES)
        offer = Offer(
            topic=reader.raw(TOPIC_BYTES),
            slots=reader.u32(),
            slot_bytes=reader.u64(),
            ring=Descriptors.from_bytes(reader.sized(most=_MOST_OFFER_BYTES)),
            metadata=reader.sized(most=_MOST_OFFER_BYTES),
        )
        reader.end()
        return offer


def stride_of(slot_bytes: int) -> int:
    """Bytes from one slot to the next: each begins at a multiple of 64, so that arrays of any dtype lie well."""
    return -(-slot_bytes // _ALIGNMENT) * _ALIGNMENT
