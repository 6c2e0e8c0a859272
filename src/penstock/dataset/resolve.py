"""From a dataset link to a manifest that never changes.

A pinned link names its manifest. A plain link means what its pointer says, and is indexed when it has none.
A refresh indexes again and moves the pointer. Of several that want to index one dataset at once, one does
and the others wait for its pointer.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from penstock import config
from penstock.dataset.dev_manifest import write_dev_manifest
from penstock.dataset.index import canonical_base, copy_packed_manifest, write_index
from penstock.dataset.intent_lock import IntentLock, LockWatch
from penstock.dataset.links import Link, intent_key, join_location, local_path, parse_link
from penstock.dataset.manifest import Manifest
from penstock.dataset.manifest_store import ManifestStore, Pointer, staging_file
from penstock.dataset.manifest_text import check_version
from penstock.errors import (
    DeadlineExceeded,
    EmptyDataset,
    ManifestError,
    ManifestNotFound,
    PreconditionFailed,
    ResolveError,
    StoreError,
)
from penstock.proof import prove
from penstock.store import open_store

__all__ = ["Resolved", "resolve", "resolve_manifest_hash"]

_POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Resolved:
    """A manifest, and where the dataset lies.

    Attributes:
        manifest: the samples.
        base: the folder's real path, or the URL, that relative locations are joined to.
        hash: the manifest's hash.
    """

    manifest: Manifest
    base: str
    hash: str

    def location(self, index: int) -> str:
        """The full location with this index: absolute in version 1; as it was written in version 0."""
        location = self.manifest.location(index)
        return join_location(self.base, location) if self.manifest.version else location

    def owner(self, index: int) -> tuple[Resolved, int]:
        """The dataset that a location is of, and its index there: this one, as nothing was joined."""
        return self, index


def resolve_manifest_hash(
    dataset_link: str | Path,
    *,
    manifest_store_root: str | Path | None = None,
    dev_manifest_path: str | Path | None = None,
    node_id: str | None = None,
    manifest_version: int = 1,
) -> str:
    """Resolve a dataset link to the hash of a manifest.

    Args:
        dataset_link: a base, ``base@refresh`` or ``base@sha256:<hash>``.
        manifest_store_root: where manifests are kept: a folder, or ``s3://``, ``gs://``, ``az://``.
        dev_manifest_path: a table of samples to use instead of indexing the base.
        node_id: who we are, for the lock; one line.
        manifest_version: 0 or 1, for a base that wasn't packed with a manifest of its own.

    Returns:
        64 lower-case hex digits.

    Raises:
        LinkError: the link doesn't parse.
        ResolveError: the base can't be indexed, has no files, or the pinned manifest isn't there.
        ManifestError: a manifest that doesn't parse, or whose bytes don't match its hash.
        DeadlineExceeded: another process indexes the dataset and takes longer than we wait.
        StoreError: a store failed.
    """
    request = _Request.make(dataset_link, manifest_store_root, dev_manifest_path, node_id, manifest_version)
    manifest_hash = request.hash()
    if request.link.kind == "pinned":
        request.store.verify(manifest_hash)
    else:
        request.store.check_present(manifest_hash)
    return manifest_hash


def resolve(
    dataset_link: str | Path,
    *,
    manifest_store_root: str | Path | None = None,
    dev_manifest_path: str | Path | None = None,
    node_id: str | None = None,
    manifest_version: int = 1,
    lock_stale_ms: int | None = None,
    wait_timeout_ms: int | None = None,
) -> Resolved:
    """Resolve a dataset link and open its manifest; takes and raises what ``resolve_manifest_hash`` does.

    Args:
        dataset_link: see there.
        manifest_store_root: see there.
        dev_manifest_path: see there.
        node_id: see there.
        manifest_version: see there.
        lock_stale_ms: age at which an indexer's lock is taken over; 0 = never, None = what the environment says.
        wait_timeout_ms: how long to wait for another process's indexing; None = what the environment says.
    """
    request = _Request.make(dataset_link, manifest_store_root, dev_manifest_path, node_id, manifest_version)
    if lock_stale_ms is not None:
        request = replace(request, stale_ms=lock_stale_ms)
    if wait_timeout_ms is not None:
        request = replace(request, wait_s=wait_timeout_ms / 1000)
    manifest_hash = request.hash()
    return Resolved(request.store.open(manifest_hash), canonical_base(request.link.base), manifest_hash)


@dataclass(frozen=True, slots=True)
class _Request:
    """One resolution: what is wanted and the settings that hold for it."""

    link: Link
    root: str
    store: ManifestStore
    dev_manifest_path: str | None
    node_id: str
    manifest_version: int
    stale_ms: int
    wait_s: float

    @classmethod
    def make(
        cls,
        dataset_link: str | Path,
        manifest_store_root: str | Path | None,
        dev_manifest_path: str | Path | None,
        node_id: str | None,
        manifest_version: int,
    ) -> _Request:
        """Check the arguments; whatever is None comes from the environment or has a default."""
        link = parse_link(dataset_link)
        root = str(manifest_store_root or "") or config.default_manifest_store_root().value
        assert root is not None
        return cls(
            link=link,
            root=root,
            store=ManifestStore(open_store(root)),
            dev_manifest_path=str(dev_manifest_path or "") or config.lookup("DEV_MANIFEST_PATH"),
            node_id=node_id or "",
            manifest_version=check_version(manifest_version),
            stale_ms=config.positive_int("SNAPSHOT_LOCK_STALE_MS", 60_000, least=0),
            wait_s=config.positive_int("SNAPSHOT_WAIT_TIMEOUT_MS", 30_000, least=0) / 1000,
        )

    def hash(self) -> str:
        """The hash that the link means, indexing its base if that is needed."""
        try:
            return self._hash()
        except StoreError as error:
            if self.root not in str(error):
                raise
            raise type(error)(
                f"{error}. That is where manifests are kept: give another manifest_store_root, or set "
                "PENSTOCK_MANIFEST_STORE_ROOT"
            ) from error

    def _hash(self) -> str:
        if self.link.pinned_hash is not None:
            self._adopt(self.link.pinned_hash)
            self._prove("pinned", self.link.pinned_hash)
            return self.link.pinned_hash
        key = intent_key(_intent_base(self.link.base))
        if self.link.kind == "refresh":
            prove("snapshot_refresh_requested", base=self.link.base)
        before = self.store.pointer(key)
        if self.link.kind == "plain" and before.hash is not None:
            self._prove("plain", before.hash)
            return before.hash
        return self._create_or_wait(key, before)

    def _adopt(self, pinned_hash: str) -> None:
        """Keep the pinned manifest if the store lacks it and the base was packed with it.

        A dataset that was just packed, or that came from another machine, carries its manifest along. Where it
        can't be had, or is another one, the store's own answer stands: it has no such manifest.
        """
        try:
            self.store.check_present(pinned_hash)
        except ManifestNotFound:
            with suppress(ResolveError, ManifestError, StoreError), staging_file() as text:
                packed = copy_packed_manifest(self.link.base, text)
                if packed is not None and packed.hash == pinned_hash:
                    text.flush()
                    self.store.put(pinned_hash, text)

    def _create_or_wait(self, key: str, before: Pointer) -> str:
        """Index, or wait for whoever does; a pointer that was there ``before`` is never the answer."""
        deadline = time.monotonic() + self.wait_s
        watch, waiting = LockWatch(), False
        while True:
            lock = self.store.try_lock(key, node_id=self.node_id, stale_ms=self.stale_ms, watch=watch)
            if lock is not None:
                with lock:
                    created = self._create(key, before, lock)
                if created is not None:
                    return created
            pointer = self.store.pointer(key)
            if pointer.hash is not None and pointer.moved_since(before):
                self._prove("wait", pointer.hash)
                return pointer.hash
            if not waiting:
                prove("snapshot_index_wait", base=self.link.base, intent=key)
                waiting = True
            if time.monotonic() >= deadline:
                prove("snapshot_index_wait_timeout", base=self.link.base, intent=key)
                raise DeadlineExceeded(
                    f"snapshot wait timed out after {self.wait_s:g} s: another process holds the lock {key} "
                    f"for {self.link.base!r}; wait longer with PENSTOCK_SNAPSHOT_WAIT_TIMEOUT_MS, or remove "
                    "the lock if its holder is gone"
                )
            time.sleep(_POLL_S)

    def _create(self, key: str, before: Pointer, lock: IntentLock) -> str | None:
        """Index and move the pointer; None when somebody else's indexing came first."""
        pointer = self.store.pointer(key)
        if pointer.moved_since(before):
            return None
        prove("snapshot_indexer_elected", base=self.link.base, intent=key, node_id=self.node_id)
        with staging_file() as text:
            if self.dev_manifest_path is not None:
                path = Path(self.dev_manifest_path)
                written = write_dev_manifest(path, text, version=self.manifest_version)
                if written.rows == 0:
                    raise EmptyDataset(f"dev manifest {path} has no rows")
            else:
                written = write_index(self.link.base, text, version=self.manifest_version)
            text.flush()
            self.store.put(written.hash, text)
        if lock.lost:
            return None
        try:
            self.store.move_pointer(key, written.hash, pointer)
        except PreconditionFailed:
            return None
        prove("snapshot_indexed", base=self.link.base, hash=written.hash, rows=written.rows)
        self._prove("refresh" if self.link.kind == "refresh" else "create", written.hash)
        return written.hash

    def _prove(self, mode: str, manifest_hash: str) -> None:
        prove("snapshot_resolved", mode=mode, base=self.link.base, hash=manifest_hash)


def _intent_base(base: str) -> str:
    """What stands for a base in the store: a folder named from here isn't the one of that name elsewhere."""
    path = local_path(base)
    if path is None or Path(base.strip()).is_absolute() or not path.is_dir():
        return base
    return str(path)
