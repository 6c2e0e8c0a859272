"""Lists a bucket page by page, and goes on behind the last key when a page fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import obstore

from penstock.errors import ObjectNotFound, PenstockError
from penstock.store.clients import Client
from penstock.store.requests import Requester

if TYPE_CHECKING:
    from obstore import ListStream, ObjectMeta

__all__ = ["PAGE_COUNT", "first_page", "list_objects"]

PAGE_COUNT = 1000
"""Objects asked for at a time; S3 gives no more."""


def list_objects(client: Client, requests: Requester, folder: str, location: str) -> Iterator[tuple[str, int]]:
    """Full key and size in bytes of every object below a folder, in the order of the keys, markers left out.

    Args:
        client: the client of the bucket.
        requests: makes the requests; one a page, and one for each empty object.
        folder: full key of the folder, without a slash at its end; "" for the whole bucket.
        location: its address, for messages.

    Raises:
        StoreError: the last try failed, or a key in the bucket can't be addressed.
    """
    last: str | None = None
    attempt = 1
    pages = _start(client, folder, last)
    while True:
        try:
            page = requests.once(location, lambda: _next_page(pages))  # noqa: B023 - called before pages changes
        except PenstockError as error:
            requests.wait_or_raise(error, attempt)
            attempt += 1
            pages = _start(client, folder, last)
            continue
        if not page:
            return
        attempt, last = 1, page[-1]["path"]
        for meta in page:
            if meta["size"] or not _is_marker(client, requests, meta["path"], location):
                yield meta["path"], meta["size"]


def _start(client: Client, folder: str, after: str | None) -> ListStream[Sequence[ObjectMeta]]:
    return obstore.list(client, folder or None, offset=after, chunk_size=PAGE_COUNT)


async def first_page(client: Client, folder: str) -> None:
    """Ask for the first page of a listing and drop it."""
    await _next_page(_start(client, folder, None))


async def _next_page(pages: ListStream[Sequence[ObjectMeta]]) -> Sequence[ObjectMeta]:
    async for page in pages:
        return page
    return ()


def _is_marker(client: Client, requests: Requester, path: str, location: str) -> bool:
    """Whether an empty object of a listing marks a folder: the client takes the slash off the end of such keys."""
    try:
        requests.call(location, lambda: obstore.head_async(client, path))
    except ObjectNotFound:
        return True
    return False
