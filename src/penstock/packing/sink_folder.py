"""A folder on a local file system as the destination of a pack.

Everything is written under staging names first, in the folder where it ends up, and flushed to the disk.
Then, in this order: the old manifest goes, the shards get their names, shards and labels that are no longer
wanted go, the labels and last the manifest get their names. A process that dies leaves staging files, which
the next pack into the folder removes, or a dataset without a manifest, which the next pack makes whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import BinaryIO

from penstock.errors import DeadlineExceeded, PackError
from penstock.packing.lock import FolderLock
from penstock.packing.sink import LABELS_KEY, MANIFEST_KEY, is_shard_key, shard_key
from penstock.packing.source import shown
from penstock.packing.tar import TRAILER
from penstock.store.files import flush_folder
from penstock.store.oserrors import os_errors

__all__ = ["FolderSink"]

_STAGING = ".staging-"
_LOCK_NAME = ".pack-lock"
_WRITE_BYTES = 1 << 20  # larger writes make the page cache look for larger pages: measured up to ten times slower
_FLUSH_BYTES = 64 << 20  # so that little is left to flush at the end
_FLUSH_DEADLINE_S = 3600.0  # a slow disk with a large cache behind it


class FolderSink:
    """Writes a dataset into a folder, all or nothing."""

    def __init__(self, out: str | os.PathLike[str]) -> None:
        """Name the folder; nothing is touched before ``open``."""
        self.root = Path(os.path.realpath(out))
        self._metadata = self.root / "_mx8"
        self._shards = self.root / "shards"
        self._lock = FolderLock(self._metadata / _LOCK_NAME)
        self._made: list[Path] = []  # folders that weren't there, outermost first
        self._staged: list[str] = []  # keys of shards
        self._fd = -1
        self._flusher = ThreadPoolExecutor(1, "penstock-flush")
        self._flushing: list[tuple[str, Future[None]]] = []  # with the shard's key
        self._unflushed_bytes = 0
        self._manifest: BinaryIO | None = None
        self._is_open = False

    @property
    def scratch(self) -> Path:
        """Temporary files go where the shards will: there is room for those."""
        return self._metadata

    def open(self) -> None:
        """Make the folders, take the lock and remove what dead packs left."""
        with _writing(self.root):
            try:
                self._make_folders()
                self._lock.acquire()
            except BaseException:
                self._remove_made()
                raise
            self._is_open = True
            self._remove_staging()

    def locate(self, key: str) -> str:
        """The canonical path of a key."""
        return str(self.root / key)

    def result_key(self, key: str) -> str:
        """The canonical path of a key."""
        return self.locate(key)

    def write(self, shard: int, data: memoryview) -> None:
        """Append to a shard under its staging name."""
        with _writing(self._staging(shard_key(shard))):
            if self._fd < 0:
                self._staged.append(shard_key(shard))
                self._fd = _create(self._staging(shard_key(shard)))
            _write_all(self._fd, data)
        self._unflushed_bytes += len(data)
        if self._unflushed_bytes >= _FLUSH_BYTES and all(flushing.done() for _, flushing in self._flushing[-1:]):
            self._flush(os.fdatasync)

    def end_shard(self) -> None:
        """End the archive; it is flushed to the disk while the next one is being written."""
        with _writing(self._staging(self._staged[-1])):
            _write_all(self._fd, memoryview(TRAILER))
        self._flush(_flush_and_close)
        self._fd = -1

    def open_manifest(self) -> BinaryIO:
        """The manifest's staging file."""
        path = self._staging(MANIFEST_KEY)
        with _writing(path):
            self._manifest = open(path, "wb", buffering=1 << 20)  # noqa: SIM115 (publish and abort close it)
        return self._manifest

    def publish(self, labels: bytes | None) -> None:
        """Put everything in its place, the manifest last."""
        self._flush_all(labels)
        with _writing(self.root):
            self._remove(MANIFEST_KEY)
            flush_folder(str(self._metadata))
            for key in self._staged:
                self._settle(key)
            self._remove_surplus()
            flush_folder(str(self._shards))
            if labels is None:
                self._remove(LABELS_KEY)
            else:
                self._settle(LABELS_KEY)
            self._settle(MANIFEST_KEY)
            flush_folder(str(self._metadata))
            for folder in self._made:
                flush_folder(str(folder.parent))
        self._made.clear()
        self._close()

    def abort(self) -> None:
        """Remove staging files, and the folders that ``open`` made."""
        if self._is_open:
            self._close()
        self._remove_made()

    def _make_folders(self) -> None:
        for folder in (*reversed(self.root.parents), self.root, self._metadata, self._shards):
            if not folder.exists():
                with suppress(FileExistsError):
                    folder.mkdir()
                    self._made.append(folder)
            if not folder.is_dir():
                raise PackError(f"{shown(os.fsencode(folder))} is not a directory; choose another out")

    def _flush(self, how: Callable[[int], None]) -> None:
        """Flush the shard that is being written, behind its back."""
        self._flushing.append((self._staged[-1], self._flusher.submit(how, self._fd)))
        self._unflushed_bytes = 0

    def _flush_all(self, labels: bytes | None) -> None:
        assert self._manifest is not None, "publish comes after open_manifest"
        with _writing(self._staging(MANIFEST_KEY)):
            self._manifest.flush()
            os.fsync(self._manifest.fileno())
            self._manifest.close()
        if labels is not None:
            with _writing(self._staging(LABELS_KEY)):
                fd = _create(self._staging(LABELS_KEY))
                try:
                    _write_all(fd, memoryview(labels))
                finally:
                    _flush_and_close(fd)
        self._wait_for_shards()

    def _wait_for_shards(self) -> None:
        for key, flushing in self._flushing:
            with _writing(self._staging(key)):
                try:
                    flushing.result(_FLUSH_DEADLINE_S)
                except TimeoutError:
                    message = f"{self._staging(key)} wasn't flushed to the disk within {_FLUSH_DEADLINE_S:.0f} s"
                    raise DeadlineExceeded(message) from None

    def _close(self) -> None:
        """Close files, remove what is still staged, let go of the lock."""
        self._is_open = False
        self._flusher.shutdown(wait=False)
        wait([flushing for _, flushing in self._flushing], _FLUSH_DEADLINE_S)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._manifest is not None:
            with suppress(OSError):  # a full disk has been reported already
                self._manifest.close()
        with suppress(OSError):
            self._remove_staging()
        self._lock.release()

    def _staging(self, key: str) -> Path:
        final = self.root / key
        return final.with_name(_STAGING + final.name)

    def _settle(self, key: str) -> None:
        self._staging(key).replace(self.root / key)

    def _remove(self, key: str) -> None:
        (self.root / key).unlink(missing_ok=True)

    def _remove_surplus(self) -> None:
        wanted = set(self._staged)
        for path in self._shards.iterdir():
            key = f"shards/{path.name}"
            if is_shard_key(key) and key not in wanted:
                path.unlink()

    def _remove_staging(self) -> None:
        for folder in (self._metadata, self._shards):
            for path in folder.iterdir():
                if path.name.startswith(_STAGING):
                    path.unlink(missing_ok=True)

    def _remove_made(self) -> None:
        while self._made:
            with suppress(OSError):  # somebody else put something there
                self._made.pop().rmdir()


def _writing(path: Path) -> AbstractContextManager[None]:
    return os_errors(shown(os.fsencode(path)), "writing")


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data[:_WRITE_BYTES]) :]


def _flush_and_close(fd: int) -> None:
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
