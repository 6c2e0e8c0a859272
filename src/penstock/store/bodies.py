"""Streams a byte range of an object, whatever happens to the connections it comes over."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import obstore

from penstock.errors import PenstockError, SampleChanged, StoreError, StoreUnavailable
from penstock.store.clients import Client
from penstock.store.requests import Requester
from penstock.store.urls import Address

if TYPE_CHECKING:
    from obstore import BytesStream

__all__ = ["PIECE_BYTES", "stream_range"]

PIECE_BYTES = 1 << 20
"""Least size of a piece but the last; one is longer by what one read of the network brings, less than 1 MiB."""


class _Body(NamedTuple):
    """An answer whose body is still to come."""

    stream: BytesStream
    start: int
    end: int
    e_tag: str | None
    object_bytes: int


def stream_range(
    client: Client, requests: Requester, at: Address, start: int, end: int, *, object_bytes: int | None = None
) -> Iterator[bytes]:
    """Bytes ``[start, end)`` of an object, in order, in pieces of 1 to 2 MiB.

    One request brings the whole range. When it breaks, the rest is asked for from behind the last piece that came;
    the tries count anew with every piece. Only the piece that is being waited for takes a slot of the limit.

    Args:
        client: the client of the object's bucket; must not retry by itself.
        requests: makes the requests.
        at: the object.
        start: first byte.
        end: the byte after the last one.
        object_bytes: the size that the object should have, or None to take any.

    Raises:
        SampleChanged: the object ends before ``end``, isn't of the size that it should be, or was written anew
            while it was read.
        StoreError: the server sent other bytes than those asked for, or the last try failed.
    """
    position, attempt = start, 1
    body: _Body | None = None
    e_tag: str | None = None
    while position < end:
        try:
            if body is None:
                body, piece = _open(client, requests, at, position, end)
                _check_range(at.location, body, position, end)
                _check_size(at.location, object_bytes, body.object_bytes)
                e_tag = _same_object(at.location, e_tag, body.e_tag)
            else:
                piece = requests.once(at.location, partial(_next_piece, body.stream))
            _check_piece(at.location, len(piece), position, end)
        except PenstockError as error:
            body = None
            requests.wait_or_raise(error, attempt)
            attempt += 1
            continue
        attempt = 1
        position += len(piece)
        yield piece


def _open(client: Client, requests: Requester, at: Address, start: int, end: int) -> tuple[_Body, bytes]:
    """Ask for a range; its first piece comes along, because most ranges of small samples have no other."""

    async def opened() -> tuple[_Body, bytes]:
        result = await obstore.get_async(client, at.path, options={"range": (start, end)})
        stream = result.stream(min_chunk_size=PIECE_BYTES)
        body = _Body(stream, *result.range, result.meta["e_tag"], result.meta["size"])
        return body, await _next_piece(stream)

    return requests.once(at.location, opened)


async def _next_piece(stream: BytesStream) -> bytes:
    async for piece in stream:
        return piece
    return b""


def _check_range(location: str, body: _Body, start: int, end: int) -> None:
    if body.start == start and body.end < end:
        raise SampleChanged(
            f"{location} has {body.object_bytes} bytes, and bytes up to {end} were asked for; it was changed or cut "
            "short since its size was noted: pack or resolve it again"
        )
    if (body.start, body.end) != (start, end):
        raise StoreError(f"{location}: asked for bytes [{start}, {end}), was sent [{body.start}, {body.end})")


def _check_size(location: str, expected: int | None, found: int) -> None:
    if expected is not None and found != expected:
        how = "grew" if found > expected else "shrank"
        raise SampleChanged(
            f"{location} {how} from {expected} to {found} bytes since its size was noted: pack or resolve it again"
        )


def _same_object(location: str, before: str | None, now: str | None) -> str | None:
    if before is not None and before != now:
        raise SampleChanged(f"{location} was written anew while it was read; pack or resolve it again")
    return now


def _check_piece(location: str, size_bytes: int, position: int, end: int) -> None:
    if size_bytes == 0:
        raise StoreUnavailable(f"{location}: the body ended at byte {position}, before byte {end}; try again")
    if size_bytes > end - position:
        raise StoreError(f"{location}: the server sent more than bytes [{position}, {end}) that were asked for")
