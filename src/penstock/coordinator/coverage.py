"""How much of each stretch of the samples is done, leased or queued: bars of bounded length. Pure.

Nothing is done for each sample, and nothing in Python for each block: ten million of either cost the same few arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from penstock.coordinator.state import State
from penstock.order.order import Int64Array

__all__ = ["MAX_CELLS", "NOBODY", "SEVERAL", "Coverage", "coverage_of"]

MAX_CELLS: Final = 1000
NOBODY: Final = -1
"""Rank of a cell of which nothing is leased."""

SEVERAL: Final = -2
"""Rank of a cell that several nodes have leases in."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """Samples of the running epoch, by cell.

    Attributes:
        width: samples in a cell; the last may have fewer. 0 = there are none.
        done: samples that are done, by cell.
        leased: that somebody has, and hasn't done.
        queued: that nobody has yet.
        rank: whose the leased ones are; ``NOBODY``, ``SEVERAL``.
    """

    width: int
    done: Int64Array
    leased: Int64Array
    queued: Int64Array
    rank: Int64Array


def coverage_of(state: State, most_cells: int = MAX_CELLS) -> Coverage:
    """The bars of a state.

    Args:
        state: of the job.
        most_cells: into which its samples are divided.
    """
    samples = state.job.samples
    width = -(-samples // most_cells)
    count = -(-samples // width) if samples else 0
    sizes = np.full(count, width, np.int64)
    if count:
        sizes[-1] = samples - width * (count - 1)
    leased = _by_cell(*state.leased(), width, count)
    queued = _by_cell(*state.queued(), width, count)
    return Coverage(width, sizes - leased - queued, leased, queued, _ranks(state, width, count))


def _by_cell(starts: Int64Array, ends: Int64Array, width: int, count: int) -> Int64Array:
    """How many samples of ranges that don't overlap lie in each cell.

    With ``before(x)`` = samples of the ranges before ``x`` = sum of max(x - start, 0) - sum of max(x - end, 0), a cell
    has the difference between its two edges; so no range is cut, however many cells it crosses.
    """
    before = _reach(starts, width, count) - _reach(ends, width, count)
    return np.diff(before)


def _reach(points: Int64Array, width: int, count: int) -> Int64Array:
    """For each edge of a cell: the sum of max(edge - point, 0) over all points."""
    if not count:
        return np.zeros(1, np.int64)
    cells = points // width
    passed = np.concatenate([[0], np.bincount(cells, minlength=count)[:count].cumsum()])
    # Offsets within a cell, as their sum in floats is exact and that of the points themselves may not be.
    offsets = np.bincount(cells, weights=points - cells * width, minlength=count)[:count].astype(np.int64)
    edges = np.arange(count + 1, dtype=np.int64) * width
    sums = np.concatenate([[0], (np.diff(passed) * edges[:-1] + offsets).cumsum()])
    reach: Int64Array = passed * edges - sums
    return reach


def _ranks(state: State, width: int, count: int) -> Int64Array:
    ranks = np.full(count, NOBODY, np.int64)
    for lease in state.leases.values():
        if lease.cursor < lease.end:
            rank = state.nodes[lease.node_id].rank
            its = ranks[lease.cursor // width : (lease.end - 1) // width + 1]
            its[:] = np.where((its == NOBODY) | (its == rank), rank, SEVERAL)
    return ranks
