"""A folder on a local file system as the source of a pack."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from penstock import _core
from penstock.dataset.spool import Entry
from penstock.errors import PackError
from penstock.packing.plan import FilePiece, WholeFiles
from penstock.packing.source import changed, shown
from penstock.packing.tar import BLOCK_BYTES
from penstock.store.oserrors import error_from_errno, os_errors
from penstock.store.passed_over import PassedOver

__all__ = ["FolderSource"]

_SKIPPED_NAMES = frozenset({b"_mx8", b"shards"})  # what a pack writes, at any depth


class FolderSource:
    """Every regular file below a folder, but not below ``_mx8`` and ``shards``, nor behind symlinks.

    The folder itself may be a symlink. Paths are bytes throughout, so that names that aren't UTF-8 pack as
    well, and no locale has a say.
    """

    readers = 2  # enough to overlap the waits for a disk; more would only add seeks

    def __init__(self, folder: str | bytes) -> None:
        """Name the folder.

        Raises:
            ObjectNotFound: it doesn't exist.
            PackError: it isn't a folder.
        """
        self._root = os.path.realpath(os.fsencode(folder))
        self.root = Path(os.fsdecode(self._root))
        self.url = shown(self._root)
        with os_errors(shown(os.fsencode(folder)), "packing"):
            mode = os.lstat(self._root).st_mode
        if not stat.S_ISDIR(mode):
            raise PackError(f"{shown(os.fsencode(folder))} is not a directory; give the folder that holds the files")

    def entries(self) -> Iterator[Entry]:
        """Path and size of every file, depth first; memory grows with the depth only."""
        passed_over = PassedOver()
        listings = [self._list(b"", passed_over)]
        while listings:
            for found in listings[-1]:
                if isinstance(found, bytes):
                    listings.append(self._list(found + b"/", passed_over))
                    break
                yield found
            else:
                listings.pop()
        passed_over.tell(self.url)

    def read_files(self, files: WholeFiles, segment: memoryview) -> None:
        """Read each file to its place behind its header, the GIL released."""
        head = self._root + b"/"
        paths = [head + path for path in files.paths]
        status, index, detail = _core.read_files(paths, files.sizes, segment, files.header_offsets + BLOCK_BYTES, None)
        if status:
            raise _read_failure(status, paths[index], int(files.sizes[index]), detail)

    def read_piece(self, piece: FilePiece, data: memoryview) -> None:
        """Fill ``data`` from one file and check that it still has its size."""
        path = self._root + b"/" + piece.path
        filled = 0
        with os_errors(shown(path), "reading"), open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            while filled < len(data):
                got = os.preadv(file.fileno(), [data[filled:]], piece.begin + filled)
                if not got:
                    break
                filled += got
        if size != piece.size or filled < len(data):
            raise changed(shown(path), piece.size, "grew" if size > piece.size else "shrank")

    def close(self) -> None:
        """Nothing to let go of."""

    def _list(self, prefix: bytes, passed_over: PassedOver) -> Iterator[Entry | bytes]:
        """The files of one folder as entries, and its folders as paths."""
        folder = self._root + b"/" + prefix
        with os_errors(shown(folder), "listing"), os.scandir(folder) as listing:
            for entry in listing:
                if entry.name in _SKIPPED_NAMES:
                    continue
                if entry.is_file(follow_symlinks=False):
                    yield prefix + entry.name, entry.stat(follow_symlinks=False).st_size
                elif entry.is_dir(follow_symlinks=False):
                    yield prefix + entry.name
                else:
                    passed_over.note(entry)


def _read_failure(status: int, path: bytes, size: int, detail: int) -> Exception:
    if status == _core.READ_TOO_LONG:
        return changed(shown(path), size, "grew")
    if status == _core.READ_TOO_SHORT:
        return changed(shown(path), size, "shrank")
    return error_from_errno(detail, shown(path), "reading")
