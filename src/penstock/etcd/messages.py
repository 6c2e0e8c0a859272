"""What stands in etcd's messages: keys and values in base64, numbers as text."""

from __future__ import annotations

import base64

from penstock.errors import MetadataError
from penstock.etcd.gateway import Message

__all__ = ["as_text", "encoded", "entries", "from_text", "number_in", "range_of", "revision_of"]


def range_of(prefix: str) -> Message:
    """All keys that begin so; a prefix ends with a slash, so its end is the next character."""
    first = encoded(prefix)
    return {"key": as_text(first), "range_end": as_text(first[:-1] + bytes([first[-1] + 1]))}


def encoded(key: str) -> bytes:
    """A key as bytes."""
    return key.encode("utf-8", "surrogatepass")


def as_text(data: bytes) -> str:
    """Bytes as they stand in a request."""
    return base64.b64encode(data).decode()


def from_text(text: object) -> bytes:
    """Bytes that stand in an answer.

    Raises:
        MetadataError: no base64.
    """
    try:
        return base64.b64decode(str(text), validate=True)
    except ValueError as error:
        raise MetadataError(f"etcd answers with {str(text)[:40]!r} where base64 should be") from error


def entries(message: Message, field: str) -> list[Message]:
    """The messages in a field; none where it is absent.

    Raises:
        MetadataError: something else is in it.
    """
    found = message.get(field) or []
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise MetadataError(f"etcd answers with {found!r:.80} as {field!r}")
    return found


def revision_of(answer: Message) -> int:
    """Etcd's revision when it answered."""
    (header,) = entries({"header": [answer.get("header")]}, "header")
    return number_in(header, "revision")


def number_in(message: Message, field: str) -> int:
    """A number, which stands there as text.

    Raises:
        MetadataError: there is none.
    """
    try:
        return int(message[field])
    except (KeyError, TypeError, ValueError) as error:
        raise MetadataError(f"etcd answers with {message!r:.80}, which has no number {field!r}") from error
