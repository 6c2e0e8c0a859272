"""From leases to units of work: several leases side by side, each in its own order."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol, TypeAlias

import numpy as np

from penstock.coordinator.events import GrantedLease
from penstock.dataset.joined import Samples
from penstock.loader.plan import SizeOf, Unit, plan_units
from penstock.loader.settings import Settings
from penstock.order.order import Sequential
from penstock.order.split import Steps

__all__ = ["Leases", "lease_units", "units_of"]

Plan: TypeAlias = Callable[[GrantedLease], Iterator[Unit]]


class Leases(Protocol):
    """Where leases come from."""

    def fresh(self, *, wait: bool) -> list[tuple[int, GrantedLease]]:
        """Those that nobody has begun, by number; none after a ``wait`` is the end."""


def lease_units(leases: Leases, plan: Plan) -> Iterator[Unit]:
    """The units of all leases that come, one of each in turn."""
    running: deque[tuple[int, Iterator[Unit]]] = deque()
    index = itertools.count()
    while True:
        running.extend((number, plan(lease)) for number, lease in leases.fresh(wait=not running))
        if not running:
            return
        number, planned = running.popleft()
        unit = next(planned, None)
        if unit is not None:
            running.append((number, planned))
            yield replace(unit, index=next(index), lease=number)


def units_of(lease: GrantedLease, samples: Samples, settings: Settings, size_of: SizeOf) -> Iterator[Unit]:
    """What is left of a lease, cut into batches; none goes beyond it.

    A sample that comes again in another epoch is another visit of it.
    """
    order = Sequential(lease.cursor, lease.end - lease.cursor)
    steps = None if settings.split is None else Steps(order.count, settings.split)
    together = settings.options.collate_buffer_size
    before = np.int64(lease.epoch * samples.row_count)
    for unit in plan_units(samples, order, settings.limits, size_of, steps, together=together):
        yield replace(unit, visits=before + unit.sample_ids) if lease.epoch else unit
