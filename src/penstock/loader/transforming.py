"""A loader's transform from epoch to epoch: who runs it, for how long, and what is known of its results."""

from __future__ import annotations

from contextlib import ExitStack, closing
from functools import partial

from penstock.budget import Budget
from penstock.dataset.joined import Dataset
from penstock.loader.executors import Executor, executor
from penstock.loader.faults import FaultPolicy
from penstock.loader.options import LoaderOptions
from penstock.loader.plan import Unit
from penstock.loader.raw import Reader
from penstock.loader.transform import Transform
from penstock.loader.transform_work import LearnedSizes, TransformWork
from penstock.observe.stages import StageClock

__all__ = ["Transforming"]


class Transforming:
    """See the module.

    Args:
        transform: what to do.
        options: how many workers, how they are started, and whether they are kept.
        timeout_s: how long a worker process may take over a task.
        lasting: closed with the loader; where workers are kept they end with it.
    """

    def __init__(self, transform: Transform, options: LoaderOptions, timeout_s: float, lasting: ExitStack) -> None:
        self._transform = transform
        self._options = options
        self._timeout_s = timeout_s
        self._lasting = lasting
        self._sizes = LearnedSizes()
        self._executor: Executor | None = None

    def begin(self, budget: Budget, key: int, resources: ExitStack) -> None:
        """Begin an epoch with the random numbers of this key; workers that aren't kept end with ``resources``."""
        options, kept = self._options, self._options.persistent_workers
        if self._executor is None or not kept:
            made = executor(self._transform, options.num_workers, options.multiprocessing_context, self._timeout_s)
            self._executor = (self._lasting if kept else resources).enter_context(closing(made))
        self._executor.begin(budget, key)

    def work(self, dataset: Dataset, reader: Reader, policy: FaultPolicy, clock: StageClock) -> TransformWork:
        """What is done with the units of this epoch."""
        assert self._executor is not None
        return TransformWork(
            self._transform,
            self._executor,
            self._sizes,
            policy=policy,
            reader=reader,
            locate=partial(_located, dataset),
            clock=clock,
        )

    def cancel(self) -> None:
        """End what the epoch's builds wait for."""
        if self._executor is not None:
            self._executor.cancel()

    def restarts(self) -> int:
        """Workers that died in this epoch and were replaced."""
        return 0 if self._executor is None else self._executor.restarts


def _located(dataset: Dataset, unit: Unit, row: int) -> str:
    """Where a sample is, for people."""
    location, offset = dataset.location(int(unit.locations[row])), int(unit.offsets[row])
    return location if offset < 0 else f"{location} at offset {offset}"
