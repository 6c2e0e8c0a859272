"""A folder on a local file system as the source of a pack."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from penstock import _core
from penstock.errors import AccessDenied, ObjectNotFound, PackError, StoreError, StoreFull
from penstock.pack.plan import FilePiece, WholeFiles
from penstock.pack.source import changed, shown
from penstock.pack.spool import Entry
from penstock.pack.tar import BLOCK_BYTES

__all__ = ["FolderSource", "os_failure"]

_SKIPPED_NAMES = frozenset({b"_mx8", b"shards"})  # what a pack writes, at any depth
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def os_failure(doing: str, path: str | bytes, number: int) -> StoreError:
    """The store error that fits an errno.

    Args:
        doing: what failed, as a verb: ``read`` or ``write``.
        path: the file or folder.
        number: the errno.
    """
    name = shown(os.fsencode(path))
    reason = os.strerror(number)
    if number in (errno.ENOENT, errno.ENOTDIR):
        return ObjectNotFound(f"can't {doing} {name}: {reason}")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return AccessDenied(f"can't {doing} {name}: {reason}; check its permissions")
    if number in _FULL:
        return StoreFull(f"can't {doing} {name}: {reason}; make room or choose another place")
    return StoreError(f"can't {doing} {name}: {reason}")


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
        self.url = shown(self._root)
        try:
            mode = os.lstat(self._root).st_mode
        except OSError as error:
            raise os_failure("pack", folder, error.errno or 0) from None
        if not stat.S_ISDIR(mode):
            raise PackError(
                f"{shown(os.fsencode(folder))} is not a directory; give the folder that holds the files"
            )

    def entries(self) -> Iterator[Entry]:
        """Path and size of every file, depth first; memory grows with the depth only."""
        prefixes = [b""]
        listings = [self._scan(b"")]
        try:
            while listings:
                entry = self._next(listings[-1], prefixes[-1])
                if entry is None:
                    listings.pop().close()
                    prefixes.pop()
                elif isinstance(entry, tuple):
                    yield entry
                else:
                    listings.append(self._scan(entry))
                    prefixes.append(entry + b"/")
        finally:
            for listing in listings:
                listing.close()

    def read_files(self, files: WholeFiles, segment: memoryview) -> None:
        """Read each file to its place behind its header, the GIL released."""
        head = self._root + b"/"
        paths = [head + path for path in files.paths]
        status, index, detail = _core.read_files(
            paths, files.sizes, segment, files.header_offsets + BLOCK_BYTES, None
        )
        if status:
            raise _read_failure(status, paths[index], int(files.sizes[index]), detail)

    def read_piece(self, piece: FilePiece, data: memoryview) -> None:
        """Fill ``data`` from one file and check that it still has its size."""
        path = self._root + b"/" + piece.path
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                size = os.fstat(fd).st_size
                filled = 0
                while filled < len(data):
                    got = os.preadv(fd, [data[filled:]], piece.begin + filled)
                    if not got:
                        break
                    filled += got
            finally:
                os.close(fd)
        except OSError as error:
            raise os_failure("read", path, error.errno or 0) from None
        if size != piece.size or filled < len(data):
            raise changed(shown(path), piece.size, "grew" if size > piece.size else "shrank")

    def close(self) -> None:
        """Nothing to let go of."""

    def _scan(self, relative: bytes) -> os._ScandirIterator[bytes]:
        folder = self._root + b"/" + relative if relative else self._root
        try:
            return os.scandir(folder)
        except OSError as error:
            raise os_failure("list", folder, error.errno or 0) from None

    def _next(self, listing: Iterator[os.DirEntry[bytes]], prefix: bytes) -> Entry | bytes | None:
        """The folder's next file as an entry, its next folder as a path, or None at the end."""
        path = prefix
        try:
            for entry in listing:
                if entry.name in _SKIPPED_NAMES:
                    continue
                path = prefix + entry.name
                if entry.is_file(follow_symlinks=False):
                    return path, entry.stat(follow_symlinks=False).st_size
                if entry.is_dir(follow_symlinks=False):
                    return path
        except OSError as error:
            raise os_failure("list", self._root + b"/" + path, error.errno or 0) from None
        return None


def _read_failure(status: int, path: bytes, size: int, detail: int) -> Exception:
    if status == _core.READ_TOO_LONG:
        return changed(shown(path), size, "grew")
    if status == _core.READ_TOO_SHORT:
        return changed(shown(path), size, "shrank")
    return os_failure("read", path, detail)
