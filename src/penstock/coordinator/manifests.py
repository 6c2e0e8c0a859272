"""The text of a manifest on its way to a node: chunk by chunk, read on another thread than the one that answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import Final

from penstock.dataset.manifest_store import ManifestStore
from penstock.errors import ManifestError

__all__ = ["CHUNK_BYTES", "ManifestText"]

CHUNK_BYTES: Final = 1 << 20
"""Most of a manifest in one message of a stream."""

_HEAD: Final = re.compile(rb"schema_version=(\d{1,9})\r?\n")


class ManifestText:
    """A manifest as it is kept. Nodes compare it with its hash; nobody else does.

    Attributes:
        schema_version: of the manifest.
    """

    def __init__(self, first: bytes, rest: Iterator[bytes], schema_version: int) -> None:
        self._first = first
        self._rest = rest
        self.schema_version = schema_version

    @classmethod
    async def open(cls, store: ManifestStore, manifest_hash: str) -> ManifestText:
        """Find it, and read its beginning.

        Raises:
            ConfigError: the hash can't be one.
            ManifestNotFound: the store doesn't have it.
            ManifestError: what the store has isn't a manifest.
            StoreError: the store failed.
        """
        return await asyncio.to_thread(cls._open, store, manifest_hash)

    @classmethod
    def _open(cls, store: ManifestStore, manifest_hash: str) -> ManifestText:
        pieces = _chunks(store, manifest_hash)
        first = next(pieces, b"")
        head = _HEAD.match(first)
        if head is None:
            raise ManifestError(
                f"what is kept as manifest {manifest_hash} isn't one; resolve the dataset with @refresh"
            )
        return cls(first, pieces, int(head[1]))

    async def chunks(self) -> AsyncIterator[bytes]:
        """All of it, in order, once. Raises as ``open`` does."""
        chunk = self._first
        while chunk:
            yield chunk
            chunk = await asyncio.to_thread(next, self._rest, b"")


def _chunks(store: ManifestStore, manifest_hash: str) -> Iterator[bytes]:
    for piece in store.pieces(manifest_hash):
        view = memoryview(piece)
        for start in range(0, len(view), CHUNK_BYTES):
            yield bytes(view[start : start + CHUNK_BYTES])
