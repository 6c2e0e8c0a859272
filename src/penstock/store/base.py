"""What a store is: a place where bytes live under keys.

One protocol, implemented for folders (``local``) and for object stores (``objects``), and held to one contract
suite (``penstock.testing.store``). Keys are relative to the store's root, with ``/`` between their parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

__all__ = ["Buffer", "ObjectInfo", "Store", "Writer"]

Buffer: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object in a listing: its key, and its size in bytes."""

    key: str
    size_bytes: int


class Writer(Protocol):
    """A new object being written as a stream; invisible under its key until ``commit``."""

    def write(self, data: Buffer) -> None:
        """Append ``data``; its memory may be reused as soon as this returns."""

    def commit(self) -> None:
        """Make the object visible, whole and durable, in place of whatever had its key."""

    def abort(self) -> None:
        """Drop what was written; nothing becomes visible. Safe after ``commit`` or twice: then it does nothing."""


class Store(Protocol):
    """A place where bytes live under keys.

    Every method raises the ``StoreError`` that fits, naming the full location. Methods may be called from any
    thread. Implementations retry what is worth it by themselves, within their own deadline.
    """

    @property
    def url(self) -> str:
        """The root, as a person writes it: ``/data/train`` or ``s3://bucket/prefix``; no trailing slash."""

    def locate(self, key: str) -> str:
        """The full location of a key, as it stands in messages and absolute manifest rows."""

    def size(self, key: str) -> int:
        """Size of an object in bytes. Raises ObjectNotFound."""

    def read(self, key: str) -> bytes:
        """All of a *small* object: pointers, locks, labels. Payload goes through ``stream``."""

    def stream(self, key: str, start: int, end: int, *, object_bytes: int | None = None) -> Iterator[Buffer]:
        """Bytes ``[start, end)`` of an object, in order, in pieces of at most a few MiB.

        The pieces add up to exactly ``end - start`` bytes or an error is raised: ``ObjectNotFound``,
        ``SampleChanged`` when the object ends before ``end``, ``StoreUnavailable`` after the last retry. A broken
        transfer is taken up where it broke. A piece is valid until the next one is asked for. With ``object_bytes``
        an object of any other size raises ``SampleChanged`` as well: it grew, or was replaced by a longer one.
        """

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object below a prefix, in any order, a page at a time.

        ``prefix`` ends at a path boundary: ``a`` lists ``a/b`` and not ``ab``. Markers of empty folders (keys that
        end in ``/``) are left out. A local store follows no symlink.
        """

    def put(self, key: str, data: Buffer) -> None:
        """Write a small object whole and durably, in place of whatever had its key; readers see old or new."""

    def put_if_absent(self, key: str, data: Buffer) -> None:
        """Write a small object only if nothing has its key. Raises PreconditionFailed if something has."""

    def version(self, key: str) -> str | None:
        """A text that differs after every write of the key, even of equal bytes; None when it is absent."""

    def replace(self, key: str, data: Buffer, version: str) -> None:
        """Write a small object only if its version is still this one. Raises PreconditionFailed if it isn't."""

    def delete(self, key: str) -> None:
        """Remove an object; no error when it is absent."""

    def open_writer(self, key: str) -> Writer:
        """Start a new object of any size."""
