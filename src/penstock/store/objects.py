"""Objects in S3, GCS, Azure or behind plain HTTP(S), through the obstore client."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import quote

import obstore

from penstock.errors import ObjectNotFound, PenstockError, PreconditionFailed, StoreError
from penstock.store.base import Buffer, ObjectInfo, Writer
from penstock.store.bodies import stream_range
from penstock.store.clients import connect
from penstock.store.limit import process_limit
from penstock.store.listing import list_objects
from penstock.store.requests import Requester
from penstock.store.settings import read_settings
from penstock.store.uploads import ObjectWriter
from penstock.store.urls import Address, StoreUrl, check_key, check_range

if TYPE_CHECKING:
    from obstore import PutMode, UpdateVersion

__all__ = ["HttpStore", "ObjectStore"]

_MARK = "penstockmark"  # metadata that tells one write from another of equal bytes, where the ETag doesn't


class _Version(NamedTuple):
    """What tells one write of a key from every other one."""

    e_tag: str
    version: str
    mark: str

    def __str__(self) -> str:
        return "\t".join(self)

    @classmethod
    def parse(cls, text: str) -> Self:
        e_tag, _, rest = text.partition("\t")
        version, _, mark = rest.partition("\t")
        return cls(e_tag, version, mark)

    def condition(self) -> UpdateVersion:
        """What the store itself compares in the step of writing."""
        return {"e_tag": self.e_tag, "version": self.version} if self.version else {"e_tag": self.e_tag}


class ObjectStore:
    """A bucket or container, or the part of it below a prefix. Satisfies ``Store``.

    Args:
        url: the parts of its address.
        requests: makes the requests; by default under the process's limit, as often as the environment says.

    Raises:
        ConfigError: settings in the environment that make no client.
    """

    def __init__(self, url: StoreUrl, *, requests: Requester | None = None) -> None:
        settings = read_settings(url)
        clients = connect(url, settings)
        self._url = url
        self._client = clients.requests
        self._upload_client = clients.uploads
        self._requests = requests or Requester(process_limit(), settings.policy)

    @property
    def url(self) -> str:
        """The root, as a person writes it."""
        return str(self._url)

    def locate(self, key: str) -> str:
        """The full location of a key."""
        return f"{self.url}/{key}"

    def size(self, key: str) -> int:
        """Size of an object in bytes."""
        at = self._address(key)
        return self._requests.call(at.location, lambda: obstore.head_async(self._client, at.path))["size"]

    def read(self, key: str) -> bytes:
        """All of a small object."""
        at = self._address(key)

        async def whole() -> bytes:
            result = await obstore.get_async(self._client, at.path)
            return (await result.bytes_async()).to_bytes()

        return self._requests.call(at.location, whole)

    def stream(self, key: str, start: int, end: int, *, object_bytes: int | None = None) -> Iterator[Buffer]:
        """Bytes ``[start, end)`` of an object, in pieces of 1 to 2 MiB that stay valid."""
        at = self._address(key)
        check_range(start, end, location=at.location)
        return stream_range(self._client, self._requests, at, start, end, object_bytes=object_bytes)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object below a prefix, a page at a time, in the order of the keys."""
        prefix = prefix.rstrip("/")
        folder, location = self._address(prefix) if prefix else Address(self._url.prefix, self.url)
        cut = len(self._url.prefix) + 1 if self._url.prefix else 0
        for path, size_bytes in list_objects(self._client, self._requests, folder, location):
            yield ObjectInfo(path[cut:], size_bytes)

    def put(self, key: str, data: Buffer) -> None:
        """Write a small object whole."""
        at = self._writable(key)
        self._requests.call(at.location, self._putting(at.path, data, "overwrite", _new_mark()))

    def put_if_absent(self, key: str, data: Buffer) -> None:
        """Write a small object only if nothing has its key."""
        self._put_conditionally(key, data, "create")

    def version(self, key: str) -> str | None:
        """The ETag, the store's own version where it has one, and a mark of the write."""
        at = self._address(key)
        try:
            return str(self._requests.call(at.location, lambda: self._head(at.path)))
        except ObjectNotFound:
            return None

    def replace(self, key: str, data: Buffer, version: str) -> None:
        """Write a small object only if its version is still this one.

        The store compares its ETag in the same step as it writes. Where an ETag is a checksum, as in S3, it can't
        tell equal bytes apart; the mark, which is read just before, can.
        """
        at = self._writable(key)
        if self.version(key) != version:
            raise PreconditionFailed(f"{at.location}: somebody else wrote since it was read; read it again")
        try:
            self._put_conditionally(key, data, _Version.parse(version).condition())
        except ObjectNotFound:
            raise PreconditionFailed(f"{at.location}: somebody else deleted it since it was read") from None

    def delete(self, key: str) -> None:
        """Remove an object; no error when it is absent."""
        at = self._writable(key)
        try:
            self._requests.call(at.location, lambda: obstore.delete_async(self._client, at.path))
        except ObjectNotFound:
            return

    def open_writer(self, key: str) -> Writer:
        """Start a new object of any size, as a parallel multipart upload."""
        at = self._writable(key)
        return ObjectWriter(self._upload_client, at, self._requests, {_MARK: _new_mark()})

    def _address(self, key: str) -> Address:
        check_key(key, root=self.url)
        return Address(f"{self._url.prefix}/{key}" if self._url.prefix else key, self.locate(key))

    def _writable(self, key: str) -> Address:
        """The address of a key that is about to be written."""
        return self._address(key)

    async def _head(self, path: str) -> _Version:
        result = await obstore.get_async(self._client, path, options={"head": True})
        mark = result.attributes.get(_MARK, "")
        return _Version(result.meta["e_tag"] or "", result.meta["version"] or "", str(mark))

    def _putting(self, path: str, data: Buffer, mode: PutMode, mark: str) -> Callable[[], Awaitable[object]]:
        body = bytes(data)  # the client keeps it until the answer is there
        return lambda: obstore.put_async(
            self._client, path, body, mode=mode, attributes={_MARK: mark}, use_multipart=False
        )

    def _put_conditionally(self, key: str, data: Buffer, mode: PutMode) -> None:
        """Write under a condition; a try whose answer got lost may stand in the way of the next one."""
        at = self._writable(key)
        mark = _new_mark()
        put = self._putting(at.path, data, mode, mark)
        attempt = 1
        while True:
            try:
                self._requests.once(at.location, put)
            except PreconditionFailed:
                if attempt == 1 or self._mark_of(at) != mark:
                    raise
            except PenstockError as error:
                self._requests.wait_or_raise(error, attempt)
                attempt += 1
                continue
            return

    def _mark_of(self, at: Address) -> str | None:
        try:
            return self._requests.call(at.location, lambda: self._head(at.path)).mark
        except ObjectNotFound:
            return None


class HttpStore(ObjectStore):
    """Files behind plain HTTP(S): they can be read, and neither listed nor written, which raises StoreError."""

    def locate(self, key: str) -> str:
        """The full location of a key, without the query, which may hold a signature."""
        return f"{self.url}/{quote(key)}"

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Refused: HTTP has no listing."""
        raise StoreError(f"{self.locate(prefix)}: plain HTTP can't be listed; name its files in a manifest")

    def _writable(self, key: str) -> Address:
        raise StoreError(f"{self.locate(key)}: plain HTTP is read-only; write to a folder, s3://, gs:// or az://")


def _new_mark() -> str:
    return uuid.uuid4().hex
