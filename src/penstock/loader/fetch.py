"""Fetching: the bytes of a unit of work into a region that was charged before.

Files of this machine are read by the core, many samples a system call, with the GIL released. Objects come as
ranged reads that merge neighbours, several at a time; their pieces are scattered to where they belong. Whatever the
way, every sample is checked against its crc32c where the manifest has one.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np

from penstock import _core
from penstock.errors import (
    AccessDenied,
    ClosedError,
    ObjectNotFound,
    PenstockError,
    SampleChanged,
    ShardCorrupt,
    StoreUnavailable,
)
from penstock.loader.order import Int64Array
from penstock.loader.plan import Span, Unit, coalesce
from penstock.manifest import Manifest
from penstock.store import Store, open_store, split_location
from penstock.store.base import Buffer

__all__ = ["Fetcher"]

_OPEN_FILES = 128  # shards kept open; an epoch in shuffled order comes back to each of them in every batch
_OBJECT_GAP_BYTES = 256 << 10  # at 1 GB/s and 1 ms a request, reading this much in vain is the cheaper way
_OBJECT_SPAN_BYTES = 8 << 20
_OBJECT_READS = 8  # ranged reads of one loader under way at once; the process's own limit is the store's


class _File:
    """An open file that closes when its last user lets go, be that the cache or a read under way."""

    __slots__ = ("fd",)

    def __init__(self, path: str) -> None:
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class Fetcher:
    """Reads samples of one manifest. Thread-safe; closed by its owner."""

    def __init__(self, manifest: Manifest, base: str) -> None:
        self._manifest = manifest
        self._base = base
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._lock = Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    def close(self) -> None:
        """Close files and stop the threads that read objects."""
        with self._lock:
            self._closed = True
            self._files.clear()
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def size_of(self, locations: Int64Array) -> Int64Array:
        """Bytes of whole objects, by location index; what a manifest of unpacked files doesn't say."""
        places = [self._place(index) for index in locations.tolist()]
        if all(store is None for store, _ in places):
            sizes = [_file_size(path) for _, path in places]
        else:
            sizes = list(self._objects_pool().map(_place_size, places))
        return np.array(sizes, dtype=np.int64)

    def fetch(self, unit: Unit, dest: Buffer) -> None:
        """Read all samples of a unit, in delivery order, into ``dest`` (writable, ``unit.payload_bytes`` bytes).

        Raises:
            SampleChanged: a file is shorter than the manifest says, or a whole file longer or shorter than sized.
            ShardCorrupt: a sample doesn't match its crc32c.
            StoreError: the bytes can't be had.
        """
        dest_offsets = unit.dest_offsets()[:-1]
        whole = unit.offsets < 0
        if whole.any():
            self._fetch_whole(unit, np.flatnonzero(whole), dest, dest_offsets)
        if not whole.all():
            self._fetch_ranges(unit, np.flatnonzero(~whole), dest, dest_offsets)

    def _fetch_ranges(self, unit: Unit, rows: Int64Array, dest: Buffer, dest_offsets: Int64Array) -> None:
        rows = rows[np.lexsort((unit.offsets[rows], unit.locations[rows]))]
        borders = np.flatnonzero(np.diff(unit.locations[rows])) + 1
        for group in np.split(rows, borders):
            location = int(unit.locations[group[0]])
            store, path = self._place(location)
            if store is None:
                self._read_file(location, path, unit, group, dest, dest_offsets)
            else:
                self._read_object(store, path, unit, group, dest, dest_offsets)

    def _fetch_whole(self, unit: Unit, rows: Int64Array, dest: Buffer, dest_offsets: Int64Array) -> None:
        places = [self._place(index) for index in unit.locations[rows].tolist()]
        local = [position for position, (store, _) in enumerate(places) if store is None]
        if local:
            group = rows[local]
            outcome = _core.read_files(
                [os.fsencode(places[position][1]) for position in local],
                unit.lengths[group],
                dest,
                dest_offsets[group],
                unit.crcs[group],
            )
            self._check(outcome, unit, group)
        remote = [position for position, (store, _) in enumerate(places) if store is not None]
        if remote:
            tasks = [(places[position], int(rows[position])) for position in remote]
            run = self._objects_pool().map(lambda task: _stream_whole(task, unit, dest, dest_offsets), tasks)
            for _ in run:
                pass
            self._verify(unit, rows[remote], dest, dest_offsets)

    def _read_file(
        self, location: int, path: str, unit: Unit, group: Int64Array, dest: Buffer, dest_offsets: Int64Array
    ) -> None:
        file = self._open(location, path)
        outcome = _core.read_ranges(
            file.fd, unit.offsets[group], unit.lengths[group], dest, dest_offsets[group], unit.crcs[group]
        )
        self._check(outcome, unit, group)

    def _read_object(
        self, store: Store, key: str, unit: Unit, group: Int64Array, dest: Buffer, dest_offsets: Int64Array
    ) -> None:
        offsets, lengths, dests = unit.offsets[group], unit.lengths[group], dest_offsets[group]
        spans = coalesce(offsets, lengths, max_gap_bytes=_OBJECT_GAP_BYTES, max_span_bytes=_OBJECT_SPAN_BYTES)

        def read(span: Span) -> None:
            part = slice(span.first, span.last)
            position = span.start
            for piece in store.stream(key, span.start, span.end):
                _core.scatter(piece, position, offsets[part], lengths[part], dest, dests[part])
                position += len(piece)

        for _ in self._objects_pool().map(read, spans):
            pass
        self._verify(unit, group, dest, dest_offsets)

    def _verify(self, unit: Unit, group: Int64Array, dest: Buffer, dest_offsets: Int64Array) -> None:
        bad = _core.verify_crc32c(dest, dest_offsets[group], unit.lengths[group], unit.crcs[group])
        if bad >= 0:
            row = int(group[bad])
            start = int(dest_offsets[row])
            found = _core.crc32c(memoryview(dest)[start : start + int(unit.lengths[row])])
            self._check((_core.READ_BAD_CHECKSUM, bad, found), unit, group)

    def _check(self, outcome: tuple[int, int, int], unit: Unit, group: Int64Array) -> None:
        status, index, detail = outcome
        if status != _core.READ_OK:
            raise self._error(status, detail, unit, int(group[index]))

    def _error(self, status: int, detail: int, unit: Unit, row: int) -> PenstockError:
        sample, length, offset = int(unit.sample_ids[row]), int(unit.lengths[row]), int(unit.offsets[row])
        location = self._location(int(unit.locations[row]))
        where = f"sample {sample} in {location}" + (f" at offset {offset}" if offset >= 0 else "")
        if status == _core.READ_SYSTEM_ERROR:
            return _os_error(detail, where)
        if status == _core.READ_TOO_LONG:
            return SampleChanged(f"file grew after sizing: {where} had {length} bytes; resolve the link with @refresh")
        if status == _core.READ_TOO_SHORT:
            return SampleChanged(
                f"short read: {where} should have {length} bytes and has {detail}; "
                "the file was truncated or replaced after it was listed: restore it, or pack or @refresh again"
            )
        return ShardCorrupt(
            f"{where} ({length} bytes) has crc32c {detail:08x}, its manifest says {int(unit.crcs[row]):08x}; "
            "restore the shard (`penstock verify` lists all damage)",
            location=location,
            offset=offset,
            sample_id=sample,
        )

    def _open(self, location: int, path: str) -> _File:
        with self._lock:
            if self._closed:
                raise ClosedError("the loader was closed while it was reading")
            file = self._files.get(location)
            if file is not None:
                self._files.move_to_end(location)
                return file
        try:
            file = _File(path)
        except OSError as error:
            raise _os_error(error.errno or errno.EIO, path) from error
        with self._lock:
            self._files[location] = file
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
        return file

    def _location(self, index: int) -> str:
        location = self._manifest.location(index)
        if "://" in location or location.startswith("/"):
            return location
        return f"{self._base.rstrip('/')}/{location}"

    def _place(self, index: int) -> tuple[Store | None, str]:
        """Where a location is: (None, path) for a file of this machine, else (store, key)."""
        location = self._location(index)
        if location.startswith("file://"):
            return None, location.removeprefix("file://")
        if "://" not in location:
            return None, location
        root, key = split_location(location)
        return open_store(root), key

    def _objects_pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._closed:
                raise ClosedError("the loader was closed while it was reading")
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_OBJECT_READS, thread_name_prefix="penstock-fetch")
            return self._pool


def _os_error(code: int, where: str) -> PenstockError:
    reason = f"{where}: {os.strerror(code)}"
    if code in (errno.ENOENT, errno.ENOTDIR):
        return ObjectNotFound(f"{reason}; the manifest names it, so restore it or resolve the link with @refresh")
    if code in (errno.EACCES, errno.EPERM):
        return AccessDenied(f"{reason}; make it readable for this user")
    return StoreUnavailable(reason)


def _file_size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError as error:
        raise _os_error(error.errno or errno.EIO, path) from error


def _place_size(place: tuple[Store | None, str]) -> int:
    store, key = place
    return _file_size(key) if store is None else store.size(key)


def _stream_whole(
    task: tuple[tuple[Store | None, str], int], unit: Unit, dest: Buffer, dest_offsets: Int64Array
) -> None:
    (store, key), row = task
    assert store is not None
    position = int(dest_offsets[row])
    view = memoryview(dest)
    for piece in _pieces(store, key, int(unit.lengths[row])):
        view[position : position + len(piece)] = piece
        position += len(piece)


def _pieces(store: Store, key: str, length: int) -> Iterator[Buffer]:
    return store.stream(key, 0, length) if length else iter(())
