"""The columnar form of a manifest, made once for each hash and then only mapped.

One Arrow IPC file: a single uncompressed record batch, so that every column is a view of the mapped file,
with the locations as a dictionary. It can always be made again from the text, and is whenever it doesn't
look whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from penstock._core import ManifestParser, crc32c

if TYPE_CHECKING:
    from penstock.store.base import Buffer

__all__ = ["CachedColumns", "ColumnSpool", "build_turn", "map_columns"]

_FORMAT: Final = "1"
_WINDOW_BYTES: Final = 1 << 20
_TURN_TIMEOUT_S: Final = 120.0
_COLUMNS: Final = ("location", "offset", "length", "label_id", "crc32c")
_COUNTED: Final = ("length", "label_id", "crc32c")


@dataclass(frozen=True, slots=True)
class CachedColumns:
    """A mapped cache file: its one record batch, and what its schema says about it."""

    batch: Any  # pyarrow.RecordBatch
    version: int
    present_counts: dict[str, int]  # rows in which a column isn't -1


def map_columns(path: Path, manifest_hash: str) -> CachedColumns | None:
    """Map a cache file; None when it is missing, torn, corrupt, or of another manifest or format."""
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            meta = {key.decode(): value.decode() for key, value in (reader.schema.metadata or {}).items()}
            if meta.get("hash") != manifest_hash or meta.get("format") != _FORMAT:
                return None
            batch = reader.get_batch(0)
            if meta["crc32c"] != _checksum(path, source, batch):
                return None
            counts = {name: int(meta[f"{name}_count"]) for name in _COUNTED}
            return CachedColumns(batch, int(meta["version"]), counts)
    except (OSError, KeyError, ValueError, IndexError, pa.ArrowException):
        return None


@contextlib.contextmanager
def build_turn(path: Path) -> Iterator[None]:
    """Let one process at a time build the cache file ``path``, so that eight ranks don't parse the same text.

    Only a courtesy: after two minutes, or where no lock file can be made, the caller just goes ahead.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("wb")
    except OSError:
        yield
        return
    with lock:
        deadline = time.monotonic() + _TURN_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(0.02)
        yield
        with contextlib.suppress(OSError):
            Path(lock.name).unlink()


class ColumnSpool:
    """Parses text piece by piece into temporary files, one for each column, and makes a cache file of them.

    Anonymous memory stays at one piece's rows, however long the text is.

    Args:
        folder: where the temporary files and the cache file go; it must exist and be writable.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parser = ManifestParser()
        self._stack = contextlib.ExitStack()
        names = ("location", "offset", "length", "label_id", "crc32c", "location_text", "location_ends")
        self._files = {
            name: self._stack.enter_context(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115 (the stack closes it)
            for name in names
        }
        self._counts = dict.fromkeys(_COUNTED, 0)
        self._text_bytes = 0
        self._files["location_ends"].write(np.zeros(1, np.int64).data)

    def __enter__(self) -> ColumnSpool:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def feed(self, text: Buffer) -> None:
        """Take the next piece of the manifest's text. Raises ManifestError."""
        self._spool(self._parser.feed(text))

    def write(self, path: Path, manifest_hash: str) -> None:
        """End the text and write the cache file, durably, in place of whatever was there.

        Raises:
            ManifestError: the text ends in the middle of something.
            OSError: the file can't be written.
        """
        self._spool(self._parser.finish())
        batch = self._batch()
        meta = {
            "hash": manifest_hash,
            "format": _FORMAT,
            "version": str(self._parser.version),
            "crc32c": f"{_chain(_buffers(batch)):08x}",
            **{f"{name}_count": str(count) for name, count in self._counts.items()},
        }
        batch = batch.replace_schema_metadata(meta)
        handle, name = tempfile.mkstemp(dir=self._folder, prefix=".columns-")
        try:
            with open(handle, "wb") as file:
                with pa.ipc.new_file(file, batch.schema) as writer:
                    writer.write_batch(batch)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise

    def _spool(self, columns: tuple[Any, ...]) -> None:
        index, offset, length, label_id, crc, text, text_lengths = columns
        arrays = dict(zip(_COLUMNS, (index, offset, length, label_id, crc), strict=True))
        for name, array in arrays.items():
            self._files[name].write(array.data)
        for name in _COUNTED:
            self._counts[name] += int(np.count_nonzero(arrays[name] >= 0))
        self._files["location_text"].write(text)
        self._files["location_ends"].write((np.cumsum(text_lengths) + self._text_bytes).data)
        self._text_bytes += len(text)

    def _batch(self) -> Any:
        rows = self._parser.row_count
        buffers = {name: _map_file(file) for name, file in self._files.items()}
        location_count = len(buffers["location_ends"]) // 8 - 1
        locations = pa.Array.from_buffers(
            pa.large_string(), location_count, [None, buffers["location_ends"], buffers["location_text"]]
        )
        index = pa.Array.from_buffers(pa.uint32(), rows, [None, buffers["location"]])
        numbers = [pa.Array.from_buffers(pa.int64(), rows, [None, buffers[name]]) for name in _COLUMNS[1:]]
        location = pa.DictionaryArray.from_arrays(index, locations, safe=False)
        return pa.RecordBatch.from_arrays([location, *numbers], names=list(_COLUMNS))


def _map_file(file: IO[bytes]) -> Any:
    file.flush()
    if os.fstat(file.fileno()).st_size == 0:
        return pa.py_buffer(b"")
    return pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _buffers(batch: Any) -> list[Any]:
    """Every buffer with values, in a fixed order; an empty column's are left out, as files differ in them."""
    location = batch.column(0)
    arrays = [location.indices, location.dictionary, *batch.columns[1:]]
    return [buffer for array in arrays if len(array) for buffer in array.buffers() if buffer is not None]


def _chain(buffers: list[Any]) -> int:
    value = 0
    for buffer in buffers:
        value = crc32c(buffer, value)
    return value


def _checksum(path: Path, source: Any, batch: Any) -> str:
    """The checksum of the mapped columns, read through a small buffer so that they don't enter our RSS."""
    source.seek(0)
    start = source.read_buffer().address
    window = memoryview(bytearray(_WINDOW_BYTES))
    value = 0
    with open(path, "rb", buffering=0) as file:
        for buffer in _buffers(batch):
            file.seek(buffer.address - start)
            left = buffer.size
            while left:
                count = file.readinto(window[: min(left, _WINDOW_BYTES)])
                if not count:
                    return "truncated"
                value = crc32c(window[:count], value)
                left -= count
    return f"{value:08x}"
