"""How two sessions meet: over a TCP connection they tell each other how their buffers are reached.

After the greeting the dialer sends its offer, then the answerer its own. The connection stays open while the two are
connected: its end is how one learns that the other has disconnected or ended. Bytes of buffers never travel on it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from penstock.compat.hmc import greeting
from penstock.compat.hmc.enums import ConnType, MemoryType
from penstock.compat.hmc.line import STRUCT, Frame, Line
from penstock.errors import MetadataError, PeerRefused

__all__ = ["Offer", "introduce", "receive_offer", "send_offer", "welcome"]

_INTRODUCTION = b"penstock hmc 1"
_OFFER = 0x0100
_HEAD = struct.Struct("<BBHIQQ")  # conn, memory, listening port, device, address, size
_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Offer:
    """What a session says of its buffer.

    Attributes:
        conn: which way bytes go on this connection.
        mem_type: where the buffer lies.
        port: where the session listens for this kind of connection; 0 = it doesn't.
        device_id: which GPU the buffer lies on; 0 on the CPU.
        address: of the buffer's first byte, in its owner's address space.
        size: of the buffer, in bytes.
        metadata: of the agent that owns it.
    """

    conn: ConnType
    mem_type: MemoryType
    port: int
    device_id: int
    address: int
    size: int
    metadata: bytes

    def to_bytes(self) -> bytes:
        """The offer as it travels."""
        return _HEAD.pack(self.conn, self.mem_type, self.port, self.device_id, self.address, self.size) + self.metadata

    @classmethod
    def from_bytes(cls, data: bytes) -> Offer:
        """The offer that these bytes are.

        Raises:
            MetadataError: they are none.
        """
        if len(data) < _HEAD.size:
            raise MetadataError(f"an offer of {len(data)} bytes; it has at least {_HEAD.size}")
        conn, memory, port, device_id, address, size = _HEAD.unpack_from(data)
        try:
            kinds = ConnType(conn), MemoryType(memory)
        except ValueError as error:
            raise MetadataError(f"an offer that this version can't read: {error}") from error
        if size < 1 or address + size > 1 << 64:
            raise MetadataError(f"an offer of {size} bytes at {address:#x}, which no buffer is")
        return cls(*kinds, port, device_id, address, size, data[_HEAD.size :])


def introduce(line: Line, token: str, deadline: float) -> None:
    """The dialer's greeting; the errors are those of ``greeting.dial``."""
    found, _ = greeting.dial(line, _INTRODUCTION, token, deadline)
    if found != _INTRODUCTION:
        raise PeerRefused(f"{line.name} is {found!r}, this is {_INTRODUCTION!r}; use the same version of Penstock")


def welcome(line: Line, token: str, deadline: float) -> None:
    """The answerer's greeting.

    Raises:
        PeerRefused: the dialer speaks another version, or doesn't know the token; it has been told so.
    """
    said, _ = greeting.hello(line, deadline)
    if said != _INTRODUCTION:
        greeting.refuse(line, f"this is {_INTRODUCTION.decode()}; use the same version of Penstock", deadline)
        raise PeerRefused(f"{line.name} is {said!r}, this is {_INTRODUCTION!r}")
    greeting.answer(line, _INTRODUCTION, token, deadline, admit=lambda: True)


def send_offer(line: Line, offer: Offer, deadline: float) -> None:
    """Sends our offer."""
    line.send(Frame(STRUCT, _OFFER, offer.to_bytes()), deadline)


def receive_offer(line: Line, deadline: float) -> Offer:
    """The other end's offer.

    Raises:
        PeerRefused: it refused ours.
        MetadataError: it sent something else.
    """
    frame = line.receive(deadline, limit=_LIMIT)
    if frame.kind == STRUCT and frame.flags == greeting.REFUSED:
        raise PeerRefused(f"{line.name} refused: {frame.payload.decode(errors='replace')}")
    if frame.kind != STRUCT or frame.flags != _OFFER:
        raise MetadataError(f"{line.name} sent kind {frame.kind}, flags {frame.flags:#06x}, not an offer")
    return Offer.from_bytes(frame.payload)
