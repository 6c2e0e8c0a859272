"""Who runs a transform over the samples of a unit: threads of this process, or processes of their own.

Both take the samples where they lie, put each result into its cell, and return the results' forms in order. Whichever
sample fails first in order is the one whose error is raised, however many fail side by side.
"""

from __future__ import annotations

import itertools
import math
import os
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from penstock.budget import Budget, Region
from penstock.errors import ClosedError, TransformError, WorkerDied
from penstock.loader.crew import Crew
from penstock.loader.faults import Faults
from penstock.loader.plan import Unit
from penstock.loader.transform import Transform
from penstock.workers.pool import Context, Died, Pool, Setting
from penstock.workers.results import Form, Layout, Outgrown, Unsendable, write
from penstock.workers.sample import Sample, UInt8Array
from penstock.workers.wire import Message

__all__ = ["Executor", "Processes", "Task", "Threads", "executor", "part_size"]

_MOST_DEATHS: Final = 3  # over one sample, alone in its process
_MOST_PARTS: Final = 4  # of a batch for each worker: the last ones are then short,
_LEAST_PART_S: Final = 0.004  # and yet worth asking for;
_MOST_PART_S: Final = 1.0  # a deadline is for one part, so none may be long because it is large
_FIRST_SAMPLE_S: Final = 0.1  # what a sample is thought to take before one was seen
_JOIN_S: Final = 10.0


@dataclass(slots=True)
class Task:
    """A unit whose samples are to be transformed.

    Attributes:
        unit: which.
        raw: its payload.
        results: where results go; as large as the layout.
        layout: of the results.
        rows: of the unit, that are to be transformed, in order.
        faults: of the unit; those that are found are added.
        where: names a sample's file or object, by its row in the unit.
    """

    unit: Unit
    raw: Region
    results: Region
    layout: Layout
    rows: list[int]
    faults: Faults
    where: Callable[[int], str]

    def failed(self, row: int | None, reason: str, details: str = "") -> TransformError:
        """What to raise for one sample, or with None for all."""
        ids = self.unit.sample_ids
        if row is None:
            message = f"the transform failed on batch {self.unit.index} ({len(ids)} samples from id {ids[0]}): {reason}"
            return TransformError(message, details=details)
        message = f"the transform failed on sample {ids[row]} ({self.where(row)}): {reason}"
        return self.named(TransformError(message, details=details), row)

    def named(self, error: TransformError, row: int) -> TransformError:
        """An error that says which sample it was."""
        error.sample_id, error.offset = int(self.unit.sample_ids[row]), int(self.unit.offsets[row])
        error.location = self.where(row)
        return error


class Executor(Protocol):
    """Runs one function, over as many units at once as there are builders."""

    def begin(self, budget: Budget, key: int) -> None:
        """Units from now on lie in this budget's memory, and are of the epoch with this key."""

    def run(self, task: Task) -> list[Form]:
        """The form of each row's result, in the row's cells; empty for one that is a fault now.

        Where the function takes a batch it is one form, in the first cells.

        Raises:
            Outgrown: a result doesn't fit into its cells.
            TransformError: a sample failed, and faults are to be raised; or it wasn't one sample alone.
            ClosedError: after ``cancel`` or ``close``.
        """

    def cancel(self) -> None:
        """Begin nothing more until the next ``begin``, and end what can be ended."""

    def close(self) -> None:
        """For good. Safe twice."""

    @property
    def restarts(self) -> int:
        """Workers that died and were replaced."""


def executor(transform: Transform, count: int, context: Context, timeout_s: float) -> Executor:
    """Who runs this transform: ``count`` workers, 0 = as many as this process has cores."""
    count = count or len(os.sched_getaffinity(0))
    if transform.workers == "threads":
        return Threads(transform, count)
    return Processes(transform, count, context=context, timeout_s=timeout_s)


class Threads:
    """Transforms of one unit side by side on ``count`` threads, of which its builder's is one."""

    restarts = 0

    def __init__(self, transform: Transform, count: int) -> None:
        self._transform = transform
        self._sharing = _Sharing(1 if transform.per_batch else count)
        self._key = 0

    def begin(self, budget: Budget, key: int) -> None:
        """See ``Executor``."""
        del budget
        self._key = key
        self._sharing.begin()

    def run(self, task: Task) -> list[Form]:
        """See ``Executor``."""
        memory = _bytes_of(task.results)
        samples = _Samples(task, self._key)
        if self._transform.per_batch:
            return [self._one(task, None, [samples[row] for row in task.rows], memory)]
        forms: list[Form] = [[]] * len(task.rows)

        def do(number: int) -> None:
            row = task.rows[number]
            try:
                forms[number] = self._one(task, row, samples[row], memory)
            except TransformError as error:
                task.faults.add(row, error)

        self._sharing.share(len(task.rows), do)
        return forms

    def _one(self, task: Task, row: int | None, given: Any, memory: UInt8Array) -> Form:
        try:
            return write(self._transform.function(given), row or 0, task.layout, memory)
        except Unsendable as error:
            raise task.failed(row, str(error)) from None
        except Outgrown:
            raise
        except Exception as error:
            raise task.failed(row, _one_line(error), traceback.format_exc()) from error

    def cancel(self) -> None:
        """See ``Executor``."""
        self._sharing.cancel()

    def close(self) -> None:
        """See ``Executor``."""
        self._sharing.close()


class Processes:
    """Transforms in worker processes, which see the budget's memory; some samples at a time to each."""

    def __init__(self, transform: Transform, count: int, *, context: Context, timeout_s: float) -> None:
        self._transform = transform
        self._count = count
        self._sharing = _Sharing(count)
        self._sample_s = _FIRST_SAMPLE_S  # what one has taken of late
        self._budget: Budget | None = None  # whose memory they see; it lives as long as they may
        self._pool = Pool(
            transform.function, per_batch=transform.per_batch, count=count, context=context, timeout_s=timeout_s
        )

    @property
    def restarts(self) -> int:
        """See ``Executor``."""
        return self._pool.restarts

    def begin(self, budget: Budget, key: int) -> None:
        """See ``Executor``."""
        self._pool.begin(Setting(budget.arena, key))
        self._budget = budget
        self._sharing.begin()

    def run(self, task: Task) -> list[Form]:
        """See ``Executor``."""
        count = len(task.rows)
        if self._transform.per_batch:
            return self._as_one(task, task.rows)
        size = part_size(count, self._count, self._sample_s)
        parts = [task.rows[start : start + size] for start in range(0, count, size)]
        forms: list[list[Form]] = [[]] * len(parts)

        def do(number: int) -> None:
            forms[number] = self._part(task, parts[number])

        self._sharing.share(len(parts), do)
        return [form for part in forms for form in part]

    def _part(self, task: Task, rows: list[int]) -> list[Form]:
        """Some rows' forms. When a worker dies over many of them they are done again one by one."""
        forms: list[Form] = []
        while left := rows[len(forms) :]:
            try:
                forms += self._as_one(task, left)
            except WorkerDied as death:
                if not self._transform.replace_dead:
                    raise
                if len(left) == 1:
                    task.faults.add(left[0], death)
                    forms.append([])
                    continue
                return forms + [form for row in left for form in self._part(task, [row])]
        return forms

    def _as_one(self, task: Task, rows: list[int]) -> list[Form]:
        """What one worker answers: the forms of these rows, or of the first of them, up to one that failed."""
        alone = len(rows) == 1 or self._transform.per_batch
        for _ in range(_MOST_DEATHS if alone and self._transform.replace_dead else 1):
            started = time.monotonic()
            try:
                answer = self._pool.ask(self._message(task, rows))
            except Died as died:
                how = died.how
                continue
            self._sample_s += ((time.monotonic() - started) / len(rows) - self._sample_s) / 8
            return self._forms(task, rows, answer)
        if not self._transform.replace_dead:
            raise _dead(task, rows, f"{how}, and on_worker_death is 'raise'")
        raise _dead(task, rows, f"{how}, as {_MOST_DEATHS} of them did over the same samples")

    def _message(self, task: Task, rows: list[int]) -> Message:
        unit = task.unit
        starts = unit.dest_offsets()[rows] + task.raw.arena_offset
        labels = [None] * len(rows) if unit.labels is None else unit.labels[rows].tolist()
        ids, lengths = unit.sample_ids[rows].tolist(), unit.lengths[rows].tolist()
        chances = unit.chances[rows].tolist()
        return {
            "samples": list(zip(ids, starts.tolist(), lengths, labels, chances, strict=True)),
            "places": rows,
            "count": task.layout.count,
            "cells": task.layout.cells,
            "out": task.results.arena_offset,
        }

    def _forms(self, task: Task, rows: list[int], answer: Message) -> list[Form]:
        forms: list[Form] = answer["forms"] * int(answer["times"])
        if "outgrown" in answer:
            raise Outgrown(answer["outgrown"])
        if "error" not in answer:
            return forms
        row = None if self._transform.per_batch else rows[len(forms)]
        details = answer["details"]
        reason = answer["error"] + (f"\n\nin the worker process:\n{details}" if details else "")
        error = task.failed(row, reason, details)
        if row is None:
            raise error
        task.faults.add(row, error)
        return [*forms, []]

    def cancel(self) -> None:
        """See ``Executor``."""
        self._sharing.cancel()
        self._pool.cancel()

    def close(self) -> None:
        """See ``Executor``."""
        self._sharing.cancel()
        self._pool.close()
        self._sharing.close()
        self._budget = None


def part_size(count: int, workers: int, sample_s: float) -> int:
    """How many samples of a batch one worker is asked for at a time: as few as are worth it, so that all end together.

    Args:
        count: samples of the batch.
        workers: that share it.
        sample_s: what one takes.
    """
    sample_s = max(sample_s, 1e-6)
    wanted = max(math.ceil(_LEAST_PART_S / sample_s), -(-count // (workers * _MOST_PARTS)))
    return max(1, min(wanted, -(-count // workers), int(_MOST_PART_S / sample_s)))


def _dead(task: Task, rows: list[int], how: str) -> WorkerDied:
    ids, where = task.unit.sample_ids[rows], task.where(rows[0])
    if len(rows) > 1:
        return WorkerDied(
            f"a worker process {how}: at samples {ids[0]} to {ids[-1]} of batch {task.unit.index} ({where})"
        )
    error = WorkerDied(
        f"a worker process {how}: at sample {ids[0]} ({where}). Run the transform on it alone to see why"
    )
    task.named(error, rows[0])
    return error


class _Samples(Sequence[Sample]):
    """The samples of a task, made one by one when they are asked for."""

    def __init__(self, task: Task, key: int) -> None:
        unit = task.unit
        self._data = _bytes_of(task.raw)
        self._offsets: list[int] = unit.dest_offsets().tolist()
        self._ids: list[int] = unit.sample_ids.tolist()
        self._chances: list[int] = unit.chances.tolist()
        self._labels: list[int] | None = None if unit.labels is None else unit.labels.tolist()
        self._key = key

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, row: Any) -> Any:
        data = self._data[self._offsets[row] : self._offsets[row + 1]]
        label = None if self._labels is None else self._labels[row]
        return Sample(data, self._ids[row], label, key=self._key, chance=self._chances[row])


class _Sharing:
    """Does numbered tasks side by side: the caller and ``count - 1`` threads take one after another, in order."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._crew = Crew(count - 1, "penstock-transform") if count > 1 else None
        self._cancelled = False

    def begin(self) -> None:
        self._cancelled = False

    def share(self, count: int, do: Callable[[int], None]) -> None:
        """Do tasks 0 to ``count - 1``; raises what the lowest one raised."""
        numbers = itertools.count()
        failures: list[tuple[int, BaseException]] = []
        work = [do]  # emptied at the end: a thread that is about to rest must not hold the batch's memory

        def take() -> None:
            while not failures and not self._cancelled and (number := next(numbers)) < count:
                try:
                    work[0](number)
                except BaseException as error:
                    failures.append((number, error))

        helpers = [] if self._crew is None else [self._crew.submit(take) for _ in range(min(self._count, count) - 1)]
        take()
        try:
            for helper in helpers:
                helper.result()
            if failures:
                raise min(failures, key=_number)[1]
            if self._cancelled:
                raise ClosedError("the loader was closed while it was transforming a batch")
        except CancelledError:
            raise ClosedError("the loader was closed while it was transforming a batch") from None
        finally:
            failures.clear()  # else an error's frames hold the error, and with it that memory
            helpers.clear()
            work.clear()

    def cancel(self) -> None:
        self._cancelled = True

    def close(self) -> None:
        self._cancelled = True
        if self._crew is not None:
            self._crew.stop()
            self._crew.join(_JOIN_S)


def _number(failure: tuple[int, BaseException]) -> int:
    return failure[0]


def _one_line(error: Exception) -> str:
    """What it is and says; some can't say anything."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return f"{type(error).__name__}, whose message can't be made"


def _bytes_of(region: Region) -> UInt8Array:
    return np.frombuffer(memoryview(region), dtype=np.uint8)
