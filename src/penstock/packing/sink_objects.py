"""A prefix of an object store as the destination of a pack.

There is no renaming in an object store, so a dataset is replaced in this order: the old manifest goes just
before the first new shard becomes visible; then shards, one after the other; then shards and labels that are
no longer wanted go; labels; last the manifest. A process that dies leaves shards without a manifest, which
the next pack makes whole.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import BinaryIO

from penstock.errors import DeadlineExceeded, PenstockError
from penstock.packing.sink import LABELS_KEY, MANIFEST_KEY, is_shard_key, shard_key
from penstock.packing.tar import TRAILER
from penstock.store import split_location
from penstock.store.base import Store, Writer
from penstock.store.oserrors import os_errors

__all__ = ["ObjectSink"]

_COPY_BYTES = 8 << 20
_COMMIT_DEADLINE_S = 900.0  # the last parts of one shard: beyond the store's own retries


class ObjectSink:
    """Writes a dataset below a prefix, the manifest last.

    Holds two uploads at most: the shard that is being written, and the one before it, whose last parts are
    under way. While a first pack into a prefix fails, the shards that it uploaded are removed again.
    """

    scratch = None

    def __init__(self, store: Store) -> None:
        self._store = store
        self._writer: Writer | None = None
        self._committer = ThreadPoolExecutor(1, "penstock-commit")
        self._committing: Future[None] | None = None
        self._shards: list[str] = []  # keys
        self._committed = 0
        self._manifest: BinaryIO | None = None
        self._is_settled = False  # the manifest may be visible: from here on nothing is removed any more

    def open(self) -> None:
        """Make sure that the store answers, before anything is read."""
        self._store.version(MANIFEST_KEY)

    def locate(self, key: str) -> str:
        """The URL of a key."""
        return self._store.locate(key)

    def result_key(self, key: str) -> str:
        """The key within the bucket."""
        return split_location(self._store.locate(key))[1]

    def write(self, shard: int, data: memoryview) -> None:
        """Upload the next part of a shard."""
        if self._writer is None:
            self._shards.append(shard_key(shard))
            self._writer = self._store.open_writer(shard_key(shard))
        self._writer.write(data)

    def end_shard(self) -> None:
        """End the archive; its last parts go out while the next one is being written."""
        assert self._writer is not None, "end_shard comes after write"
        self._writer.write(TRAILER)
        self._wait_for_commit()
        self._committing = self._committer.submit(self._commit, self._writer)
        self._writer = None

    def open_manifest(self) -> BinaryIO:
        """A temporary file on this machine."""
        with os_errors(tempfile.gettempdir(), "writing"):
            self._manifest = tempfile.TemporaryFile()  # noqa: SIM115 (publish and abort close it)
        return self._manifest

    def publish(self, labels: bytes | None) -> None:
        """Finish the shards, tidy up, and upload labels and manifest, the manifest last."""
        self._wait_for_commit()
        wanted = set(self._shards)
        for found in self._store.list("shards"):
            if is_shard_key(found.key) and found.key not in wanted:
                self._store.delete(found.key)
        if labels is None:
            self._store.delete(LABELS_KEY)
        else:
            self._store.put(LABELS_KEY, labels)
        self._upload_manifest()
        self._close()

    def abort(self) -> None:
        """Drop what was uploaded, unless the manifest may be visible already."""
        if self._writer is not None:
            self._writer.abort()
            self._writer = None
        with suppress(PenstockError):
            self._wait_for_commit()
        if not self._is_settled:
            for key in self._shards[: self._committed]:
                with suppress(PenstockError):  # what fails here is garbage, and overwritten by the next pack
                    self._store.delete(key)
            self._committed = 0
        self._close()

    def _commit(self, writer: Writer) -> None:
        try:
            if not self._committed:
                self._store.delete(MANIFEST_KEY)
            self._committed += 1
            writer.commit()
        except BaseException:
            writer.abort()
            raise

    def _wait_for_commit(self) -> None:
        committing, self._committing = self._committing, None
        if committing is not None:
            try:
                committing.result(_COMMIT_DEADLINE_S)
            except TimeoutError as error:
                if isinstance(error, PenstockError):
                    raise
                late = f"{self._store.url}: a shard wasn't complete within {_COMMIT_DEADLINE_S:.0f} s"
                raise DeadlineExceeded(late) from None

    def _upload_manifest(self) -> None:
        assert self._manifest is not None, "publish comes after open_manifest"
        self._manifest.seek(0)
        self._is_settled = True
        writer = self._store.open_writer(MANIFEST_KEY)
        try:
            while piece := self._manifest.read(_COPY_BYTES):
                writer.write(piece)
            writer.commit()
        except BaseException:
            writer.abort()
            raise

    def _close(self) -> None:
        self._committer.shutdown(wait=False)
        if self._manifest is not None:
            with suppress(OSError):
                self._manifest.close()
