"""The work of a loader with a transform: read, transform, collate; raw bytes and results under one charge."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from penstock.budget import Charge
from penstock.errors import PenstockError, TransformError
from penstock.loader.collate import collated
from penstock.loader.executors import Executor, Task
from penstock.loader.faults import FaultPolicy, Mended, rearrange
from penstock.loader.plan import Unit
from penstock.loader.raw import Reader
from penstock.loader.transform import Transform
from penstock.loader.work import CostChanged, Delivery
from penstock.observe.stages import StageClock
from penstock.workers.results import SLACK_BYTES, Column, Form, Layout, Outgrown, Sizes, columns, result_at

__all__ = ["LearnedSizes", "TransformWork"]

_LEAST_BYTES = 64  # of a region


class LearnedSizes:
    """How large results are, as far as that was seen; kept from epoch to epoch. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = Sizes()

    def saw(self, sizes: tuple[int, ...]) -> Sizes:
        """A result didn't fit into its cells: all that is known now."""
        with self._lock:
            self.now = self.now.grown(sizes)
            return self.now


class TransformWork:
    """See the module.

    Where it was said how many bytes a result takes, a batch costs its payload and that for each sample, and batches can
    be built side by side. Where it wasn't, a batch costs what its results are thought to take; one that takes more is
    charged anew and done again, and cells grow by doubling, so that this ends soon.

    Args:
        transform: what to do.
        executor: who does it.
        sizes: what is known of results.
        policy: says what becomes of faulty samples.
        reader: brings payload.
        locate: names the file or object of a unit's row.
        clock: is told how long it took.
    """

    def __init__(
        self,
        transform: Transform,
        executor: Executor,
        sizes: LearnedSizes,
        *,
        policy: FaultPolicy,
        reader: Reader,
        locate: Callable[[Unit, int], str],
        clock: StageClock,
    ) -> None:
        self._transform = transform
        self._executor = executor
        self._sizes = sizes
        self._policy = policy
        self._reader = reader
        self._locate = locate
        self._clock = clock
        self._form: Form | None = None  # of some result: what a batch looks like that has none

    def cost_bytes(self, unit: Unit) -> int:
        """See ``Work``."""
        return _raw_bytes(unit) + max(_LEAST_BYTES, self._result_bytes(unit))

    def _result_bytes(self, unit: Unit) -> int:
        most = self._most_bytes(unit)
        if most is not None:
            return most * self._count(unit) + SLACK_BYTES
        return self._layout(self._sizes.now, unit).total_bytes

    def _count(self, unit: Unit) -> int:
        """Results of a unit."""
        return 1 if self._transform.per_batch else len(unit.sample_ids)

    def _most_bytes(self, unit: Unit) -> int | None:
        """Of one result."""
        each = self._transform.most_bytes
        return each * len(unit.sample_ids) if each is not None and self._transform.per_batch else each

    def _layout(self, sizes: Sizes, unit: Unit) -> Layout:
        return Layout(sizes.cells(self._most_bytes(unit)), self._count(unit))

    def build(self, unit: Unit, charge: Charge) -> Delivery[Any]:
        """See ``Work``."""
        # What lives longer is placed first: the gaps that raw bytes leave between results then fit the next raw bytes.
        results = charge.split(charge.size_bytes - _raw_bytes(unit)).region()
        raw = charge.region()
        faults = self._policy.faults()
        self._reader.fetch(unit, memoryview(raw)[: unit.payload_bytes], faults)
        started = time.monotonic()
        sizes = self._sizes.now
        while True:
            layout = self._layout(sizes, unit)
            if layout.total_bytes > results.size_bytes:
                raise CostChanged(self.cost_bytes(unit))
            task = Task(unit, raw, results, layout, [], faults, partial(self._locate, unit))
            try:
                delivery = self._delivery(task)
            except Outgrown as outgrown:
                found = outgrown.sizes
            else:
                self._clock.record("transform", unit.index, started)
                return delivery
            sizes = self._learn(task, found)

    def _delivery(self, task: Task) -> Delivery[Any]:
        """The batch of the samples that are sound."""
        unit, per_batch = task.unit, self._transform.per_batch
        everything = list(range(len(unit.sample_ids)))
        mended = None
        if per_batch:
            mended = self._mend(task)
            task.rows = everything if mended is None else mended.rows.tolist()
            forms = self._executor.run(task) if task.rows else []
        else:
            task.rows = [row for row in everything if row not in task.faults]
            forms = self._executor.run(task)
            mended = self._mend(task)
        memory = np.frombuffer(memoryview(task.results), dtype=np.uint8)
        found = columns(task.layout, memory)
        if per_batch:
            return Delivery.of(unit, result_at(forms[0], 0, iter(found)) if forms else [], mended)
        if mended is not None:
            by_row = dict(zip(task.rows, forms, strict=True))
            forms = [by_row[row] for row in mended.rows.tolist()]
            _rearrange(found, mended, len(everything))
        return Delivery.of(unit, self._collated(unit, forms, found), mended)

    def _mend(self, task: Task) -> Mended | None:
        """What becomes of the unit's faulty samples; None where there are none."""
        if not len(task.faults):
            return None
        self._reader.name(task.unit, task.faults)
        return self._policy.mend(task.unit, task.faults, np.zeros(len(task.unit.sample_ids), dtype=np.int64))

    def _collated(self, unit: Unit, forms: list[Form], found: list[Column]) -> Any:
        if forms:
            self._form = forms[0]
        try:
            return collated(forms, found, self._transform.collate, self._form)
        except (Outgrown, PenstockError):
            raise
        except Exception as error:
            ids = unit.sample_ids
            raise TransformError(
                f"collate failed on batch {unit.index} ({len(ids)} samples from id {ids[0]}): "
                f"{type(error).__name__}: {error}"
            ) from error

    def _learn(self, task: Task, sizes: tuple[int, ...]) -> Sizes:
        most = self._most_bytes(task.unit)
        known = self._sizes.saw(sizes)
        if most is not None and known.total_bytes > most:
            raise TransformError(_too_large(sizes, known, most, self._transform.per_batch))
        return known


def _too_large(sizes: tuple[int, ...], known: Sizes, most_bytes: int, per_batch: bool) -> str:
    what = "the result of a batch" if per_batch else "the result of a sample"
    limit = f"{most_bytes} bytes are what transform_bytes allows" + (" for so many samples" if per_batch else "")
    if sum(sizes) > most_bytes:
        return f"{what} takes {sum(sizes)} bytes, and {limit}; raise it"
    return (
        f"the arrays of {what[4:]}, each at its largest so far, take {known.total_bytes} bytes, and {limit}; raise it"
    )


def _rearrange(found: list[Column], mended: Mended, count: int) -> None:
    """Bring each column's cells to the places that their rows have now."""
    for column in found:
        cells = column.memory[column.base : column.base + count * column.cell].reshape(count, column.cell)
        rearrange(cells, mended.rows, np.arange(count), np.ones(count, dtype=np.int64))


def _raw_bytes(unit: Unit) -> int:
    return max(_LEAST_BYTES, unit.payload_bytes)
