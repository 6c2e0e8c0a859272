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
from typing import TypeAlias

import numpy as np

from penstock import _core
from penstock.dataset.joined import Dataset
from penstock.errors import (
    ClosedError,
    ManifestError,
    ObjectNotFound,
    SampleChanged,
)
from penstock.loader.blame import Blame, os_error
from penstock.loader.faults import STRICT, Faults
from penstock.loader.plan import Span, Unit, coalesce
from penstock.loader.reading import Reading
from penstock.observe.stages import StageClock
from penstock.order.order import Int64Array
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
    """Some rows of a unit, or with a slice all; where in ``dest`` the samples of the whole unit belong, and faults."""

    unit: Unit
    rows: Int64Array | slice
    dest: Buffer
    unit_dest_offsets: Int64Array  # one for each row
    faults: Faults

    def take(self, positions: Int64Array) -> _Part:
        """Some of these rows, by their positions among them."""
        rows = positions if isinstance(self.rows, slice) else self.rows[positions]
        return _Part(self.unit, rows, self.dest, self.unit_dest_offsets, self.faults)

    def halves(self) -> list[_Part]:
        """All of these rows, in two parts."""
        middle = len(self.lengths) // 2
        return [self.take(np.arange(middle)), self.take(np.arange(middle, len(self.lengths)))]

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


_Ranges: TypeAlias = tuple[Store, str, _Part]
"""Rows that lie in one object, by its key."""


class Fetcher:
    """Reads samples of one manifest, and tells the clock how long it took. Thread-safe; closed by its owner."""

    def __init__(self, dataset: Dataset, clock: StageClock | None = None, reading: Reading | None = None) -> None:
        self._dataset = dataset
        self._blame = Blame(dataset)
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
        """Bytes of whole objects, by location index; what a manifest of unpacked files doesn't say. 0 = absent."""
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
        try:
            return self._object_bytes(store, key)
        except ObjectNotFound:
            return 0  # as in _file_size

    def _object_bytes(self, store: Store, key: str) -> int:
        with self._interrupt.cover():
            return store.size(key)

    def fetch(self, unit: Unit, dest: Buffer, faults: Faults = STRICT) -> None:
        """Read all samples of a unit, in delivery order, into ``dest`` (writable, ``unit.payload_bytes`` bytes).

        Args:
            unit: what to read.
            dest: where to. What lies in the places of faulty samples is undefined.
            faults: takes what is a sample's own fault, of every such sample; by default the first one is raised.

        Raises:
            SampleChanged: a file is shorter than the manifest says, or a whole file longer or shorter than sized.
            SampleMissing: a file or object that is a sample isn't there.
            ShardCorrupt: a sample doesn't match its crc32c.
            StoreError: the bytes can't be had.
        """
        started = time.monotonic()
        every = _Part(unit, slice(None), dest, unit.dest_offsets()[:-1], faults)
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
            self._read_whole_files(part.take(np.array(local)))
        remote = [position for position, (store, _) in enumerate(places) if store is not None]
        if remote:
            self._read_whole_objects(part.take(np.array(remote)))

    def _read_whole_files(self, part: _Part) -> None:
        paths = [os.fsencode(self._place(location)[1]) for location in part.locations.tolist()]
        outcome = _core.read_files(paths, part.lengths, part.dest, part.dest_offsets, part.crcs)
        self._check(part, outcome, self._read_whole_files)

    def _read_whole_objects(self, part: _Part) -> None:
        tasks: list[Callable[[], None]] = []
        for index, location in enumerate(part.locations.tolist()):
            store, key = self._place(location)
            assert store is not None
            chains = self._reading.chains([Span(0, int(part.lengths[index]), index, index + 1)])
            tasks += [partial(self._read_whole_object, store, key, part, index, chain) for chain in chains or [[]]]
        self._side_by_side(tasks)
        self._verify(part)

    def _read_whole_object(self, store: Store, key: str, part: _Part, index: int, spans: Sequence[Span]) -> None:
        try:
            _stream_whole(store, key, part, index, spans)
        except (ObjectNotFound, SampleChanged) as error:
            row = part.row(index)
            part.faults.judge(row, self._blame.whole(error, part.unit, row))

    def _read_files(self, part: _Part, locations: list[int]) -> None:
        """Read ranges of many files at once: each call into the core may have to wait for the interpreter's lock."""
        files = self._open(locations)  # held while it reads
        fds = np.array([file.fd for file in files])[np.searchsorted(locations, part.locations)]
        places = part.offsets, part.lengths, part.dest, part.dest_offsets, part.crcs
        outcome = _core.read_ranges(fds, *places, threads=self._reading.threads)
        self._check(part, outcome, lambda some: self._read_files(some, sorted(set(some.locations.tolist()))))

    def _read_objects(self, objects: Sequence[_Ranges]) -> None:
        """Read ranges of many objects at once; of one that ends too early, then those that it still holds."""
        rest = [(store, key, part.take(np.argsort(part.offsets))) for store, key, part in objects]
        while rest:
            changed = self._stream_objects(rest)
            for index, (_, _, part) in enumerate(rest):
                if index not in changed:
                    self._verify(part)
            rest = [self._held(rest[index], error) for index, error in changed.items()]

    def _stream_objects(self, objects: Sequence[_Ranges]) -> dict[int, SampleChanged]:
        """Returns which of the objects hold less than was asked for, where that isn't raised, and what says so."""
        changed: dict[int, SampleChanged] = {}

        def read(index: int, spans: Sequence[Span]) -> None:
            try:
                _stream_spans(*objects[index], spans)
            except SampleChanged as error:
                if objects[index][2].faults.strict:
                    raise
                changed.setdefault(index, error)  # not raised: nobody may write to dest any more when we return

        tasks: list[Callable[[], None]] = []
        for index, (_, _, part) in enumerate(objects):
            spans = coalesce(
                part.offsets,
                part.lengths,
                max_gap_bytes=_OBJECT_GAP_BYTES,
                max_span_bytes=self._reading.part_bytes,
            )
            tasks += [partial(read, index, chain) for chain in self._reading.chains(spans)]
        self._side_by_side(tasks)
        return changed

    def _held(self, ranges: _Ranges, error: SampleChanged) -> _Ranges:
        """The rows that an object really holds; if these are all, ``error`` is about something else."""
        store, key, part = ranges
        object_bytes = self._object_bytes(store, key)
        held = part.offsets + part.lengths <= object_bytes
        if held.all():
            raise error
        for index in np.flatnonzero(~held).tolist():
            self._judge(part, index, _core.READ_TOO_SHORT, max(0, object_bytes - int(part.offsets[index])))
        return store, key, part.take(np.flatnonzero(held))

    def _side_by_side(self, tasks: Sequence[Callable[[], None]]) -> None:
        """Run tasks on the threads that read objects; raises what the first one raised."""

        def run(task: Callable[[], None]) -> None:
            with self._interrupt.cover():
                task()

        if tasks:
            for _ in self._objects_pool().map(run, tasks):
                pass

    def _verify(self, part: _Part) -> None:
        offsets, lengths, crcs = part.dest_offsets, part.lengths, part.crcs
        if _core.verify_crc32c(part.dest, offsets, lengths, crcs) < 0:
            return
        found = _core.crc32c_many(part.dest, offsets, lengths).astype(np.int64)
        for index in np.flatnonzero((crcs >= 0) & (found != crcs)).tolist():
            self._judge(part, index, _core.READ_BAD_CHECKSUM, int(found[index]))

    def _check(self, part: _Part, outcome: tuple[int, int, int], again: Callable[[_Part], None]) -> None:
        """Judge what reading files gave: which is the first fault, so that halves are read to find the others."""
        status, index, detail = outcome
        if status == _core.READ_OK:
            return
        if part.faults.strict or len(part.lengths) == 1:
            self._judge(part, index, status, detail)
            return
        for half in part.halves():
            again(half)

    def _judge(self, part: _Part, index: int, status: int, detail: int) -> None:
        row = part.row(index)
        part.faults.judge(row, self._blame.reading(status, detail, part.unit, row))

    def name(self, unit: Unit, faults: Faults) -> None:
        """Say of each faulty sample what it is called and where it lies, as far as that can be found out."""
        self._side_by_side(
            [partial(self._blame.name, error, unit, row, self._read_range) for row, error in faults.errors.items()]
        )

    def _read_range(self, location: int, start: int, end: int) -> bytes:
        store, key = self._place(location)
        if store is None:
            return os.pread(self._open([location])[0].fd, end - start, start)
        return b"".join(bytes(piece) for piece in store.stream(key, start, end))

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
            raise os_error(error.errno or errno.EIO, path) from error
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


def _file_size(path: str) -> int:
    """Bytes of a file; none where it isn't there, which is said, and may be forgiven, when it is read."""
    try:
        return Path(path).stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise os_error(error.errno or errno.EIO, path) from error


def _stream_spans(store: Store, key: str, part: _Part, spans: Sequence[Span]) -> None:
    offsets, lengths, dests = part.offsets, part.lengths, part.dest_offsets
    for span in spans:
        rows, position = slice(span.first, span.last), span.start
        for piece in store.stream(key, span.start, span.end):
            _core.scatter(piece, position, offsets[rows], lengths[rows], part.dest, dests[rows])
            position += len(piece)


def _stream_whole(store: Store, key: str, part: _Part, index: int, spans: Sequence[Span]) -> None:
    length, start = int(part.lengths[index]), int(part.dest_offsets[index])
    if not length:
        _check_empty(store.size(key), store.locate(key))
    view = memoryview(part.dest)
    for span in spans:
        position = start + span.start
        for piece in store.stream(key, span.start, span.end, object_bytes=length):
            view[position : position + len(piece)] = piece
            position += len(piece)


def _check_empty(size_bytes: int, location: str) -> None:
    if size_bytes:
        raise SampleChanged(f"{location} was empty or absent when it was sized, and has {size_bytes} bytes now")
