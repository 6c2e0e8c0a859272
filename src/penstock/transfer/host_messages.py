"""What two agents on one host say to each other before memory moves (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from penstock.errors import MetadataError
from penstock.transfer.descriptors import MOST_NAME_BYTES
from penstock.transfer.metadata import ID_BYTES
from penstock.transfer.wire import Reader, Writer

__all__ = [
    "MOST_MESSAGE_BYTES",
    "Gone",
    "Hello",
    "Map",
    "Message",
    "Refused",
    "SegmentAt",
    "Welcome",
    "decode",
    "encode",
]

MOST_MESSAGE_BYTES: Final = 4096
_MAGIC: Final = b"PSho"
_VERSION: Final = 1
_WHAT: Final = "message of a peer on this host"
_MOST_TEXT_BYTES: Final = 1024


@dataclass(frozen=True)
class Hello:
    """Initiator to target: who I am, and what shows that I may. ``instance``: of the target that is meant."""

    name: str
    instance: bytes
    secret: bytes


@dataclass(frozen=True)
class Welcome:
    """Target to initiator, with three descriptors: table of registrations, link segment, eventfd.

    Attributes:
        table_bytes: size of the table.
        link_bytes: size of the link segment.
        probe_address: an address of the target's process that can be read, to see whether the kernel allows it.
    """

    table_bytes: int
    link_bytes: int
    probe_address: int


@dataclass(frozen=True)
class Refused:
    """Target to initiator: no, and why."""

    reason: str


@dataclass(frozen=True)
class Map:
    """Initiator to target: a descriptor of this segment, please."""

    segment_id: int


@dataclass(frozen=True)
class SegmentAt:
    """Target to initiator, with the segment's descriptor."""

    segment_id: int
    size_bytes: int


@dataclass(frozen=True)
class Gone:
    """Target to initiator: there is no such segment (any more)."""

    segment_id: int


Message = Hello | Welcome | Refused | Map | SegmentAt | Gone


def encode(message: Message) -> bytes:
    """The message as one datagram.

    Raises:
        MetadataError: a name or reason that is too long.
    """
    writer = Writer(_WHAT, _MAGIC, _VERSION)
    match message:
        case Hello():
            writer.u8(1).text(message.name, most=MOST_NAME_BYTES).raw(message.instance).raw(message.secret)
        case Welcome():
            writer.u8(2).u64(message.table_bytes).u64(message.link_bytes).u64(message.probe_address)
        case Refused():
            writer.u8(3).text(message.reason[: _MOST_TEXT_BYTES // 4], most=_MOST_TEXT_BYTES)
        case Map():
            writer.u8(4).u64(message.segment_id)
        case SegmentAt():
            writer.u8(5).u64(message.segment_id).u64(message.size_bytes)
        case Gone():
            writer.u8(6).u64(message.segment_id)
    return writer.done(most=MOST_MESSAGE_BYTES)


def decode(data: bytes) -> Message:
    """The message in a datagram.

    Raises:
        MetadataError: none that we know.
    """
    reader = Reader(_WHAT, data, _MAGIC, _VERSION, most=MOST_MESSAGE_BYTES)
    message = _body(reader.u8(), reader)
    reader.end()
    return message


def _body(kind: int, reader: Reader) -> Message:
    match kind:
        case 1:
            return Hello(reader.text(least=1, most=MOST_NAME_BYTES), reader.raw(ID_BYTES), reader.raw(ID_BYTES))
        case 2:
            return Welcome(reader.u64(), reader.u64(), reader.u64())
        case 3:
            return Refused(reader.text(most=_MOST_TEXT_BYTES))
        case 4:
            return Map(reader.u64())
        case 5:
            return SegmentAt(reader.u64(), reader.u64())
        case 6:
            return Gone(reader.u64())
    raise MetadataError(f"{_WHAT}: of kind {kind}; kinds 1 to 6 are known")
