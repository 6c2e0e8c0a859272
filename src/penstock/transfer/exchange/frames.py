"""What agents say to each other's listeners: one question and one answer, each in a frame.

A frame is a head and a body: magic ``PSxm``, version (u8), kind (u8), two zero bytes, the body's size (u32), a proof
(32 bytes), all little-endian, and then the body. The listener speaks first: its greeting's body is a nonce. The proof
of what follows is HMAC-SHA256 over nonce, kind and body with the shared token, which so never travels; without a token
the key is empty, and the proof is a checksum.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from enum import IntEnum
from typing import Final, NamedTuple

from penstock.errors import MetadataError

__all__ = ["HEAD_BYTES", "MOST_BODY_BYTES", "NONCE_BYTES", "Head", "Kind", "frame", "is_proven", "parse_head"]

NONCE_BYTES: Final = 16
MOST_BODY_BYTES: Final = 64 << 20
_MAGIC: Final = b"PSxm"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<4sBBHI32s")
HEAD_BYTES: Final = _HEAD.size


class Kind(IntEnum):
    """What a frame is; its body."""

    GREETING = 1  # a nonce
    FETCH = 2  # the name of the agent whose metadata is wanted; empty = whoever listens
    SEND = 3  # metadata to load
    INVALIDATE = 4  # the name of an agent to forget
    METADATA = 5  # what FETCH asked for
    DONE = 6  # nothing
    REFUSED = 7  # why, as text


class Head(NamedTuple):
    """What a frame begins with."""

    kind: Kind
    size: int
    proof: bytes


def frame(kind: Kind, body: bytes, token: bytes, nonce: bytes) -> tuple[bytes, bytes]:
    """A frame's head and body.

    Raises:
        MetadataError: a body that is too large.
    """
    if len(body) > MOST_BODY_BYTES:
        raise MetadataError(f"a message of {len(body)} bytes; at most {MOST_BODY_BYTES}: register fewer ranges")
    return _HEAD.pack(_MAGIC, _VERSION, kind, 0, len(body), _proof(kind, body, token, nonce)), body


def parse_head(data: bytes) -> Head:
    """A frame's head, from its first ``HEAD_BYTES`` bytes.

    Raises:
        MetadataError: it isn't one, or of another version, or its body is too large.
    """
    magic, version, kind, zero, size, proof = _HEAD.unpack(data)
    if magic != _MAGIC or zero:
        raise MetadataError(f"what speaks there isn't a listener of Penstock's: {data[:16]!r}")
    if version != _VERSION:
        raise MetadataError(f"the other side speaks version {version}, we {_VERSION}; run the same release on both")
    if size > MOST_BODY_BYTES:
        raise MetadataError(f"a message of {size} bytes; at most {MOST_BODY_BYTES}")
    try:
        return Head(Kind(kind), size, proof)
    except ValueError:
        raise MetadataError(f"a message of kind {kind}, which version {_VERSION} doesn't have") from None


def is_proven(head: Head, body: bytes, token: bytes, nonce: bytes) -> bool:
    """Whether who sent the frame knows the token and got the nonce."""
    return hmac.compare_digest(head.proof, _proof(head.kind, body, token, nonce))


def _proof(kind: Kind, body: bytes, token: bytes, nonce: bytes) -> bytes:
    proof = hmac.new(token, nonce + bytes([kind]), hashlib.sha256)
    proof.update(body)
    return proof.digest()
