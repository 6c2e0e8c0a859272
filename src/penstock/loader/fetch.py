"""Fetching: the bytes of a unit of work into a region that was charged before.

Files of this machine are read by the core, many samples a system call, with the GIL released. Objects come as
ranged reads that merge neighbours, several at a time; their pieces are scattered to where they belong. Whatever the
way, every sample is checked against its crc32c where the manifest has one.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np

from penstock import _core
from penstock.dataset.joined import Dataset
from penstock.errors import (
    AccessDenied,
    ClosedError,
    ManifestError,
    ObjectNotFound,
    PenstockError,
    SampleChanged,
    ShardCorrupt,
    StoreUnavailable,
)
from penstock.loader.order import Int64Array
from penstock.loader.plan import Span, Unit, coalesce
from penstock.loader.reading import Reading
from penstock.observe.stages import StageClock
from penstock.store import Interrupt, Store, open_store, split_location
from penstock.store.base import Buffer

__all__ = ["Fetcher"]

_OPEN_FILES = 128  # shards kept open; an epoch in shuffled order comes back to each of them in every batch
_PLACES = 1024  # locations whose path or store is remembered
_OBJECT_GAP_BYTES = 256 << 10  # at 1 GB/s and 1 ms a request, reading this much in vain is the cheaper way


class _File:
    """An open file that closes when its last user lets go, be that the cache or a read under way."""

    __slots__ = ("fd",)

    def __init__(self, path: str) -> None:
        self.fd = -1
        # Without O_NONBLOCK, opening a named pipe that nobody writes to would wait for ever.
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            raise ManifestError(f"{path} isn't a regular file; a manifest may name files only: resolve with @refresh")

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


@dataclass(frozen=True, slots=True)
class _Part:
    """Some rows of a unit, or with a slice all, and where in ``dest`` the samples of the whole unit belong."""

    unit: Unit
    rows: Int64Array | slice
    dest: Buffer
    unit_dest_offsets: Int64Array  # one for each row

    def take(self, positions: Int64Array) -> _Part:
        """Some of these rows, by their positions among them."""
        rows = positions if isinstance(self.rows, slice) else self.rows[positions]
        return _Part(self.unit, rows, self.dest, self.unit_dest_offsets)

    def row(self, index: int) -> int:
        return index if isinstance(self.rows, slice) else int(self.rows[index])

    @property
    def locations(self) -> Int64Array:
        return self.unit.locations[self.rows]

    @property
    def offsets(self) -> Int64Array:
        return self.unit.offsets[self.rows]

    @property
    def lengths(self) -> Int64Array:
        return self.unit.lengths[self.rows]

    @property
    def crcs(self) -> Int64Array:
        return self.unit.crcs[self.rows]

    @property
    def dest_offsets(self) -> Int64Array:
        return self.unit_dest_offsets[self.rows]


class Fetcher:
    """Reads samples of one manifest, and tells the clock how long it took. Thread-safe; closed by its owner."""

    def __init__(self, dataset: Dataset, clock: StageClock | None = None, reading: Reading | None = None) -> None:
        self._dataset = dataset
        self._clock = clock or StageClock()
        self._reading = reading or Reading()
        self._files: dict[int, _File] = {}  # by location, the oldest first
        self._lock = Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._stores: dict[str, Store] = {}  # by root: finding one reads the environment
        self._places: dict[int, tuple[Store | None, str]] = {}
        self._interrupt = Interrupt()
        self._closed = False

    def cancel(self) -> None:
        """End all requests under way with ClosedError; later ones fail at once."""
        self._interrupt.set()

    def close(self) -> None:
        """Cancel requests, close files, and stop and join the threads that read objects."""
        self.cancel()
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
            sizes = list(self._objects_pool().map(self._place_size, places))
        return np.array(sizes, dtype=np.int64)

    def _place_size(self, place: tuple[Store | None, str]) -> int:
        store, key = place
        if store is None:
            return _file_size(key)
        with self._interrupt.cover():
            return store.size(key)

    def fetch(self, unit: Unit, dest: Buffer) -> None:
        """Read all samples of a unit, in delivery order, into ``dest`` (writable, ``unit.payload_bytes`` bytes).

        Raises:
            SampleChanged: a file is shorter than the manifest says, or a whole file longer or shorter than sized.
            ShardCorrupt: a sample doesn't match its crc32c.
            StoreError: the bytes can't be had.
        """
        started = time.monotonic()
        every = _Part(unit, slice(None), dest, unit.dest_offsets()[:-1])
        whole = unit.offsets < 0
        if not whole.any():
            self._fetch_ranges(every)
        else:
            self._fetch_whole(every.take(np.flatnonzero(whole)))
            if not whole.all():
                self._fetch_ranges(every.take(np.flatnonzero(~whole)))
        self._clock.record("fetch", unit.index, started)

    def _fetch_ranges(self, part: _Part) -> None:
        rows_locations = part.locations
        locations = sorted(set(rows_locations.tolist()))
        local, objects = [], []
        for location in locations:
            store, key = self._place(location)
            if store is None:
                local.append(location)
            else:
                objects.append((store, key, part.take(np.flatnonzero(rows_locations == location))))
        self._read_objects(objects)
        if len(local) == len(locations) <= _OPEN_FILES:
            self._read_files(part, local)
            return
        for start in range(0, len(local), _OPEN_FILES):
            some = local[start : start + _OPEN_FILES]
            self._read_files(part.take(np.flatnonzero(np.isin(rows_locations, some))), some)

    def _fetch_whole(self, part: _Part) -> None:
        places = [self._place(index) for index in part.locations.tolist()]
        local = [position for position, (store, _) in enumerate(places) if store is None]
        if local:
            files = part.take(np.array(local))
            paths = [os.fsencode(places[position][1]) for position in local]
            self._check(files, _core.read_files(paths, files.lengths, files.dest, files.dest_offsets, files.crcs))
        remote = [position for position, (store, _) in enumerate(places) if store is not None]
        if remote:
            objects = part.take(np.array(remote))
            chains: list[Callable[[], None]] = []
            for index, (store, key) in enumerate(places[position] for position in remote):
                assert store is not None
                whole = Span(0, int(objects.lengths[index]), index, index + 1)
                chains += [partial(_stream_whole, store, key, objects, c) for c in self._reading.chains([whole])]
            self._side_by_side(chains)
            self._verify(objects)

    def _read_files(self, part: _Part, locations: list[int]) -> None:
        """Read ranges of many files at once: each call into the core may have to wait for the interpreter's lock."""
        files = self._open(locations)  # held while it reads
        fds = np.array([file.fd for file in files])[np.searchsorted(locations, part.locations)]
        places = part.offsets, part.lengths, part.dest, part.dest_offsets, part.crcs
        self._check(part, _core.read_ranges(fds, *places, threads=self._reading.threads))

    def _read_objects(self, objects: Sequence[tuple[Store, str, _Part]]) -> None:
        chains: list[Callable[[], None]] = []
        for store, key, unsorted in objects:
            part = unsorted.take(np.argsort(unsorted.offsets))
            spans = coalesce(
                part.offsets,
                part.lengths,
                max_gap_bytes=_OBJECT_GAP_BYTES,
                max_span_bytes=self._reading.part_bytes,
            )
            chains += [partial(_stream_spans, store, key, part, chain) for chain in self._reading.chains(spans)]
        self._side_by_side(chains)
        for _, _, part in objects:
            self._verify(part)

    def _side_by_side(self, tasks: Sequence[Callable[[], None]]) -> None:
        """Run tasks on the threads that read objects; raises what the first one raised."""

        def run(task: Callable[[], None]) -> None:
            with self._interrupt.cover():
                task()

        if tasks:
            for _ in self._objects_pool().map(run, tasks):
                pass

    def _verify(self, part: _Part) -> None:
        bad = _core.verify_crc32c(part.dest, part.dest_offsets, part.lengths, part.crcs)
        if bad >= 0:
            start, length = int(part.dest_offsets[bad]), int(part.lengths[bad])
            found = _core.crc32c(memoryview(part.dest)[start : start + length])
            self._check(part, (_core.READ_BAD_CHECKSUM, bad, found))

    def _check(self, part: _Part, outcome: tuple[int, int, int]) -> None:
        status, index, detail = outcome
        if status != _core.READ_OK:
            raise self._error(status, detail, part.unit, part.row(index))

    def _error(self, status: int, detail: int, unit: Unit, row: int) -> PenstockError:
        sample, length, offset = int(unit.sample_ids[row]), int(unit.lengths[row]), int(unit.offsets[row])
        location = self._dataset.location(int(unit.locations[row]))
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
            "if the dataset was packed again, resolve its link with @refresh, else restore the shard "
            "(`penstock verify` lists all damage)",
            location=location,
            offset=offset,
            sample_id=sample,
        )

    def _open(self, locations: list[int]) -> list[_File]:
        """The files of at most ``_OPEN_FILES`` locations, open for as long as the caller holds them."""
        with self._lock:
            if self._closed:
                raise ClosedError("the loader was closed while it was reading")
            found = [self._files.get(location) for location in locations]
        return [file or self._open_anew(location) for file, location in zip(found, locations, strict=True)]

    def _open_anew(self, location: int) -> _File:
        _, path = self._place(location)
        try:
            file = _File(path)
        except OSError as error:
            raise _os_error(error.errno or errno.EIO, path) from error
        with self._lock:
            if self._closed:
                raise ClosedError("the loader was closed while it was reading")
            self._files[location] = file
            if len(self._files) > _OPEN_FILES:
                del self._files[next(iter(self._files))]
        return file

    def _place(self, index: int) -> tuple[Store | None, str]:
        """Where a location is: (None, path) for a file of this machine, else (store, key)."""
        place = self._places.get(index)
        if place is None:
            if len(self._places) >= _PLACES:
                self._places.clear()
            place = self._places[index] = self._find_place(index)
        return place

    def _find_place(self, index: int) -> tuple[Store | None, str]:
        location = self._dataset.location(index)
        if "\0" in location:
            raise ManifestError(f"location {location!r} has a NUL byte, which no file name can have")
        if location.startswith("file://"):
            return None, location.removeprefix("file://")
        if "://" not in location:
            return None, location
        root, key = split_location(location)
        store = self._stores.get(root)
        if store is None:
            store = self._stores[root] = open_store(root)
        return store, key

    def _objects_pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._closed:
                raise ClosedError("the loader was closed while it was reading")
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._reading.requests, thread_name_prefix="penstock-fetch")
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


def _stream_spans(store: Store, key: str, part: _Part, spans: Sequence[Span]) -> None:
    offsets, lengths, dests = part.offsets, part.lengths, part.dest_offsets
    for span in spans:
        rows, position = slice(span.first, span.last), span.start
        for piece in store.stream(key, span.start, span.end):
            _core.scatter(piece, position, offsets[rows], lengths[rows], part.dest, dests[rows])
            position += len(piece)


def _stream_whole(store: Store, key: str, part: _Part, spans: Sequence[Span]) -> None:
    view = memoryview(part.dest)
    for span in spans:
        length, start = int(part.lengths[span.first]), int(part.dest_offsets[span.first])
        position = start + span.start
        for piece in store.stream(key, span.start, span.end, object_bytes=length):
            view[position : position + len(piece)] = piece
            position += len(piece)
