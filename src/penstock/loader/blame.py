"""Which sample it was, and what was wrong with it: from what the core and the stores report to our errors."""

from __future__ import annotations

import errno
import os
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from penstock import _core
from penstock.budget import Charge
from penstock.dataset.joined import Dataset
from penstock.errors import (
    AccessDenied,
    ObjectNotFound,
    PenstockError,
    SampleChanged,
    SampleError,
    SampleMissing,
    ShardCorrupt,
    StoreUnavailable,
)
from penstock.loader.faults import Faults
from penstock.loader.plan import Unit
from penstock.loader.work import Delivery, Work

__all__ = ["Blame", "Naming", "os_error"]

T = TypeVar("T")

_HEADER_BYTES = 512  # of a member of a tar, right before its data

ReadRange = Callable[[int, int, int], bytes]
"""Bytes of a location: its index, start and end."""


class Blame:
    """Knows the samples of a dataset by name."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def reading(self, status: int, detail: int, unit: Unit, row: int) -> PenstockError:
        """What to raise for a READ_* status of the core."""
        length, offset = int(unit.lengths[row]), int(unit.offsets[row])
        where = f"sample {unit.sample_ids[row]} in {self._location(unit, row)}"
        where += f" at offset {offset}" if offset >= 0 else ""
        if status == _core.READ_SYSTEM_ERROR:
            error = os_error(detail, where)
            missing = isinstance(error, ObjectNotFound) and offset < 0
            return self.whole(error, unit, row) if missing else error
        if status == _core.READ_TOO_LONG:
            found = f"file grew after sizing: {where} had {length} bytes; resolve the link with @refresh"
            return self._identified(SampleChanged(found), unit, row)
        if status == _core.READ_TOO_SHORT:
            found = (
                f"short read: {where} should have {length} bytes and has {detail}; "
                "the file was truncated or replaced after it was listed: restore it, or pack or @refresh again"
            )
            return self._identified(SampleChanged(found), unit, row)
        found = (
            f"{where} ({length} bytes) has crc32c {detail:08x}, its manifest says {int(unit.crcs[row]):08x}; "
            "if the dataset was packed again, resolve its link with @refresh, else restore the shard "
            "(`penstock verify` lists all damage)"
        )
        return self._identified(ShardCorrupt(found), unit, row)

    def whole(self, error: PenstockError, unit: Unit, row: int) -> PenstockError:
        """What to raise where a file or object that is a sample is missing or has changed."""
        if not isinstance(error, ObjectNotFound):
            return self._identified(SampleChanged(str(error)), unit, row)
        dataset, _ = self._dataset.owner(int(unit.locations[row]))
        base = dataset.base
        if dataset.manifest.version and "://" not in base and not Path(base).is_dir():  # all are missing
            return StoreUnavailable(
                f"{base} isn't there any more, so nor is {self._location(unit, row)}; mount it again"
            )
        return self._identified(SampleMissing(str(error)), unit, row)

    def name(self, error: SampleError, unit: Unit, row: int, read: ReadRange) -> None:
        """Say in the error which sample it was. A key in a tar is in the member's header, which may be unreadable."""
        self._identified(error, unit, row)
        location = int(unit.locations[row])
        if error.offset < 0:
            dataset, own = self._dataset.owner(location)
            error.key = dataset.manifest.location(own)
        elif error.offset >= _HEADER_BYTES:
            with suppress(PenstockError, OSError, tarfile.HeaderError):
                header = read(location, error.offset - _HEADER_BYTES, error.offset)
                error.key = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name

    def _identified(self, error: SampleError, unit: Unit, row: int) -> SampleError:
        error.sample_id = int(unit.sample_ids[row])
        error.location = self._location(unit, row)
        error.offset = int(unit.offsets[row])
        return error

    def _location(self, unit: Unit, row: int) -> str:
        return self._dataset.location(int(unit.locations[row]))


class Naming(Generic[T]):
    """Work that says which sample it was, also where the first faulty one ends it.

    Args:
        work: what is done with units.
        name: finds out what faulty samples are called.
    """

    def __init__(self, work: Work[T], name: Callable[[Unit, Faults], None]) -> None:
        self._work = work
        self._name = name
        self.cost_bytes = work.cost_bytes

    def build(self, unit: Unit, charge: Charge) -> Delivery[T]:
        """See ``Work``."""
        try:
            return self._work.build(unit, charge)
        except SampleError as error:
            rows = np.flatnonzero(unit.sample_ids == error.sample_id)
            if error.key is None and rows.size:
                faults = Faults()
                faults.errors[int(rows[0])] = error
                with suppress(PenstockError):  # of naming it
                    self._name(unit, faults)
                error.add_note(f"sample {error.sample_id}: {error.key or 'key unknown'}, in {error.location}")
            raise


def os_error(code: int, where: str) -> PenstockError:
    """What to raise where the system refuses to read."""
    reason = f"{where}: {os.strerror(code)}"
    if code in (errno.ENOENT, errno.ENOTDIR):
        return ObjectNotFound(f"{reason}; the manifest names it, so restore it or resolve the link with @refresh")
    if code in (errno.EACCES, errno.EPERM):
        return AccessDenied(f"{reason}; make it readable for this user")
    return StoreUnavailable(reason)
