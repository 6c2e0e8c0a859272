"""Writes an object of any size as a parallel multipart upload, in bounded memory."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import obstore

from penstock.errors import ClosedError, PenstockError, StoreError
from penstock.store import bridge
from penstock.store.base import Buffer
from penstock.store.clients import Client
from penstock.store.failures import CLIENT_ERRORS
from penstock.store.interrupt import uncovered
from penstock.store.requests import Requester
from penstock.store.urls import Address

__all__ = ["MOST_BYTES", "PART_BYTES", "PART_COUNT", "ObjectWriter"]

PART_BYTES = 8 << 20
"""Size of a part; the last one may be smaller. An object that fits into one is sent as one request."""

PART_COUNT = 4
"""Parts of one writer under way at once."""

_ABORT_TIMEOUT_S = 5.0

MOST_BYTES = PART_BYTES * 10_000
"""The largest object that can be written: stores take 10,000 parts."""


class ObjectWriter:
    """A new object being uploaded; nothing is visible before ``commit``. Satisfies ``Writer``.

    Memory: the parts under way, the one being filled and a copy of what is being handed over, so at most
    (``PART_COUNT`` + 2) x ``PART_BYTES`` = 48 MiB, whatever is written.

    A failed ``write`` or ``commit`` aborts the upload. If the process dies, or the store can't be reached for the
    abort, the parts stay in the bucket, invisible; a lifecycle rule for incomplete uploads removes them.

    Args:
        client: a client that retries parts by itself.
        at: the object.
        requests: makes the calls, each of which counts as one request of the process's limit.
        attributes: metadata of the object.
    """

    def __init__(self, client: Client, at: Address, requests: Requester, attributes: dict[str, str]) -> None:
        self._location = at.location
        self._requests = requests
        self._size_bytes = 0
        self._state = "open"
        self._upload = obstore.open_writer_async(
            client, at.path, attributes=attributes, buffer_size=PART_BYTES, max_concurrency=PART_COUNT
        )

    def write(self, data: Buffer) -> None:
        """Append ``data``; its memory may be reused as soon as this returns."""
        self._must_be_open()
        view = memoryview(data).cast("B")
        self._size_bytes += len(view)
        if self._size_bytes > MOST_BYTES:
            self.abort()
            raise StoreError(f"{self._location}: an object of more than {MOST_BYTES} bytes can't be uploaded; split it")
        for start in range(0, len(view), PART_BYTES):
            part = bytes(view[start : start + PART_BYTES])
            self._call(lambda part=part: self._upload.write(part))  # type: ignore[misc]

    def commit(self) -> None:
        """Make the object visible, whole and durable, in place of whatever had its key."""
        self._must_be_open()
        self._call(self._upload.close)
        self._state = "committed"

    def abort(self) -> None:
        """Drop what was written. After ``commit`` or a first ``abort`` it does nothing."""
        if self._state != "open":
            return
        self._state = "aborted"
        with uncovered(), contextlib.suppress(PenstockError, *CLIENT_ERRORS):  # nothing is visible in any case
            bridge.run(lambda: self._upload.__aexit__(RuntimeError, RuntimeError("aborted"), None), _ABORT_TIMEOUT_S)

    def _call(self, start: Callable[[], Awaitable[object]]) -> None:
        try:
            self._requests.once(self._location, start, self._requests.policy.total_s * 4)
        except BaseException:
            self.abort()
            raise

    def _must_be_open(self) -> None:
        if self._state != "open":
            raise ClosedError(f"the writer of {self._location} was {self._state}; open another one")
