"""Where manifests are kept: texts by their hash, and for each dataset a pointer to its current one.

::

    by-hash/<hash>                  the canonical text, never rewritten
    intent/<intent key>/current     the hash that a plain link means
    locks/<intent key>.lock         who is indexing this dataset just now

The place is any store: a folder, or a prefix in an object store.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from penstock import config
from penstock.dataset.intent_lock import IntentLock, LockWatch
from penstock.dataset.links import local_path
from penstock.dataset.manifest import Manifest
from penstock.errors import ConfigError, ManifestError, ManifestNotFound, ObjectNotFound
from penstock.store.base import Store
from penstock.store.oserrors import os_errors

__all__ = ["ManifestStore", "Pointer", "check_hash", "staging_file", "staging_folder"]

_PIECE_BYTES = 1 << 20
_LONGEST_HASH = 200  # a file of this name, with what staging adds, is still one


@dataclass(frozen=True, slots=True)
class Pointer:
    """A dataset's pointer as it was read.

    Attributes:
        version: differs after every write; None when there is no pointer.
        hash: the manifest that it names, None when there is none.
    """

    version: str | None
    hash: str | None

    def moved_since(self, earlier: Pointer) -> bool:
        """Whether it was written again after ``earlier`` was read, even to the same hash."""
        return self.hash is not None and self.version != earlier.version


def check_hash(manifest_hash: str) -> str:
    r"""Return a hash that can be a key.

    Raises:
        ConfigError: it is empty, longer than a file's name may be, or holds ``/``, ``\`` or ``..``.
    """
    long = len(manifest_hash) > _LONGEST_HASH
    if not manifest_hash or long or any(part in manifest_hash for part in ("/", "\\", "..", "\0")):
        raise ConfigError(f"manifest hash {manifest_hash[:80]!r} can't be one; give 64 lower-case hex digits")
    return manifest_hash


@contextlib.contextmanager
def staging_file() -> Iterator[IO[bytes]]:
    """A temporary file without a name, in the cache folder if that can be written.

    It is gone when it is closed and when the process dies.

    Raises:
        StoreError: the operating system failed in the block; StoreFull when no room is left.
    """
    folder = staging_folder()
    with os_errors(str(folder), "staging a manifest in"), tempfile.TemporaryFile(dir=folder) as file:
        yield file


def staging_folder(name: str = "staging") -> Path:
    """A folder of the cache, or the system's folder of temporary files where the cache can't be written."""
    folder = config.cache_dir() / name
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    return Path(tempfile.gettempdir())


class ManifestStore:
    """Manifests and pointers in one store. Safe for use from several processes and machines at once."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, manifest_hash: str, text: IO[bytes]) -> None:
        """Keep a text under its hash, durably.

        Args:
            manifest_hash: the key; that the text hashes to it is the caller's word.
            text: the canonical text, read from its beginning.

        Raises:
            ManifestError: other bytes are kept under this hash.
            StoreError: the store failed.
        """
        key = _text_key(manifest_hash)
        if self._holds(key, text):
            return
        text.seek(0)
        writer = self._store.open_writer(key)
        try:
            while piece := text.read(_PIECE_BYTES):
                writer.write(piece)
            writer.commit()
        except BaseException:
            writer.abort()
            raise

    def open(self, manifest_hash: str) -> Manifest:
        """Open a manifest; its bytes are hashed again.

        Raises:
            ManifestNotFound: nothing is kept under this hash.
            ManifestError: the bytes have another hash, or aren't a manifest.
        """
        key = _text_key(manifest_hash)
        path = local_path(self._store.locate(key))
        if path is not None:
            return Manifest.open(path, expected_hash=manifest_hash)
        copy = config.cache_dir() / "texts" / manifest_hash
        if copy.exists():
            with contextlib.suppress(ManifestError, ManifestNotFound):
                return Manifest.open(copy, expected_hash=manifest_hash)
        with self._fetched(manifest_hash, copy) as fetched:
            return Manifest.open(fetched, expected_hash=manifest_hash)

    def verify(self, manifest_hash: str) -> None:
        """Hash the kept bytes again. Raises as ``open`` does."""
        digest = hashlib.sha256()
        for piece in self.pieces(manifest_hash):
            digest.update(piece)
        if digest.hexdigest() != manifest_hash:
            raise ManifestError(
                f"{self._store.locate(_text_key(manifest_hash))} hashes to {digest.hexdigest()}, but "
                f"{manifest_hash} was asked for: it was changed or damaged; delete it and resolve the "
                "dataset again with @refresh"
            )

    def check_present(self, manifest_hash: str) -> None:
        """Raise ManifestNotFound if nothing is kept under this hash."""
        self._size(manifest_hash)

    def pointer(self, intent_key: str) -> Pointer:
        """Read a dataset's pointer."""
        key = _pointer_key(intent_key)
        version = self._store.version(key)
        if version is None:
            return Pointer(None, None)
        try:
            text = self._store.read(key).decode("utf-8", "replace").strip()
        except ObjectNotFound:
            return Pointer(None, None)
        return Pointer(version, text or None)

    def move_pointer(self, intent_key: str, manifest_hash: str, since: Pointer) -> None:
        """Point a dataset to a manifest that is already kept.

        Raises:
            PreconditionFailed: the pointer was moved since it was read as ``since``.
        """
        key, data = _pointer_key(intent_key), f"{check_hash(manifest_hash)}\n".encode()
        if since.version is None:
            self._store.put_if_absent(key, data)
        else:
            self._store.replace(key, data, since.version)

    def try_lock(self, intent_key: str, *, node_id: str, stale_ms: int, watch: LockWatch) -> IntentLock | None:
        """Try to become the one that indexes a dataset; None while somebody else is."""
        return IntentLock.try_take(self._store, intent_key, node_id=node_id, stale_ms=stale_ms, watch=watch)

    def _size(self, manifest_hash: str) -> int:
        try:
            return self._store.size(_text_key(manifest_hash))
        except ObjectNotFound:
            raise ManifestNotFound(
                f"manifest not found: {manifest_hash} is not in {self._store.url}; resolve the dataset with "
                "@refresh, or name the manifest store that has it"
            ) from None

    def pieces(self, manifest_hash: str) -> Iterator[bytes | bytearray | memoryview]:
        """The kept bytes, as they are.

        Raises:
            ManifestNotFound: nothing is kept under this hash.
        """
        size = self._size(manifest_hash)
        return self._store.stream(_text_key(manifest_hash), 0, size)

    def _holds(self, key: str, text: IO[bytes]) -> bool:
        """Whether exactly this text is kept already. Raises ManifestError when another one is."""
        try:
            size = self._store.size(key)
        except ObjectNotFound:
            return False
        same = size == text.seek(0, os.SEEK_END)
        text.seek(0)
        if not same or any(piece != text.read(len(piece)) for piece in self._store.stream(key, 0, size)):
            raise ManifestError(
                f"manifest bytes do not match existing content for hash {key.rpartition('/')[2]}: "
                f"{self._store.locate(key)} was changed or damaged; delete it"
            )
        return True

    @contextlib.contextmanager
    def _fetched(self, manifest_hash: str, copy: Path) -> Iterator[Path]:
        """A local copy of a text in an object store: kept as ``copy`` if possible, else for this block."""
        handle, name = tempfile.mkstemp(dir=staging_folder(copy.parent.name))
        path = Path(name)
        try:
            with os_errors(name, "copying a manifest to"), open(handle, "wb") as partial:
                for piece in self.pieces(manifest_hash):
                    partial.write(piece)
            with contextlib.suppress(OSError):
                path = path.replace(copy)
            yield path
        finally:
            if path != copy:
                path.unlink(missing_ok=True)


def _text_key(manifest_hash: str) -> str:
    return f"by-hash/{check_hash(manifest_hash)}"


def _pointer_key(intent_key: str) -> str:
    return f"intent/{intent_key}/current"
