"""Which blocks of samples a job is made of, in which order, and whose each is. Pure.

Blocks are dealt like cards: the one at place ``i`` goes to rank ``i mod world_size``. So what a rank has left is two
numbers, and the state of a job doesn't grow with its samples.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np

from penstock.order.order import Int64Array, scramble

__all__ = [
    "BlockPlan",
    "Intervals",
    "SampleRange",
    "block_at",
    "block_bounds",
    "block_count",
    "bounds_of",
    "dealt_bounds",
    "dealt_count",
    "join_bounds",
    "join_intervals",
    "too_few_to_shuffle",
]

Intervals: TypeAlias = tuple[tuple[int, int], ...]
"""Half-open ranges of sample ids, ascending and apart from one another."""

_FEW_BLOCKS = 8  # below that, "shuffled" is mostly the order of the dataset
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class SampleRange(NamedTuple):
    """Sample ids ``[start, end)``."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """What the blocks of an epoch follow from.

    Attributes:
        samples: how many the manifest has.
        block_samples: most in a block.
        shuffle: whether blocks come in a random order; samples within a block never do.
        seed: of that order.
        epoch: of that order.
        done: what is in no block, as an earlier run had it.
    """

    samples: int
    block_samples: int
    shuffle: bool
    seed: int
    epoch: int
    done: Intervals = field(default=(), hash=False)  # may be long, and a plan is looked up for each block


def block_count(plan: BlockPlan) -> int:
    """How many there are."""
    return len(_blocks(plan)[0])


def too_few_to_shuffle(plan: BlockPlan, option: str) -> str | None:
    """A warning where a shuffle does next to nothing; ``option`` is who makes blocks smaller."""
    if not plan.shuffle or plan.samples < 2 or (blocks := block_count(plan)) >= _FEW_BLOCKS:
        return None
    return (
        f"shuffle deals blocks in random order, and there are {blocks} of at most {plan.block_samples} samples, each "
        f"in the dataset's order: give a smaller {option}"
    )


def block_at(plan: BlockPlan, place: int) -> SampleRange:
    """The block at a place of the order, from 0."""
    starts, ends = _blocks(plan)
    return SampleRange(int(starts[place]), int(ends[place]))


def block_bounds(plan: BlockPlan) -> tuple[Int64Array, Int64Array]:
    """First samples of all blocks, and what is behind their last, in order; shared, so never to be written to."""
    return _blocks(plan)


def dealt_bounds(plan: BlockPlan, cards: Sequence[tuple[int, int]]) -> tuple[Int64Array, Int64Array]:
    """``block_bounds`` of some of the cards: of those of each rank from the first of its pair up to the second."""
    starts, ends = _blocks(plan)
    first, end = bounds_of(cards)
    rows = np.arange(-(-len(starts) // len(cards)), dtype=np.int64)[:, np.newaxis]  # card i // n of rank i mod n
    dealt = ((rows >= first) & (rows < end)).ravel()[: len(starts)]
    return starts[dealt], ends[dealt]


def bounds_of(ranges: Sequence[tuple[int, int]]) -> tuple[Int64Array, Int64Array]:
    """First samples of ranges, and what is behind their last."""
    pairs = np.array(ranges, dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def dealt_count(count: int, rank: int, world_size: int) -> int:
    """How many of ``count`` blocks are dealt to a rank."""
    return max(0, -(-(count - rank) // world_size))


@lru_cache(maxsize=8)
def _blocks(plan: BlockPlan) -> tuple[Int64Array, Int64Array]:
    starts = np.arange(0, plan.samples, plan.block_samples, dtype=np.int64)
    if plan.shuffle:
        starts = starts[np.argsort(_keys(starts, plan.seed, plan.epoch), kind="stable")]
    ends = np.minimum(starts + plan.block_samples, plan.samples)
    if not plan.done:
        return starts, ends
    left = [part for start, end in zip(starts.tolist(), ends.tolist(), strict=True) for part in _less(start, end, plan)]
    pairs = np.array(left, dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _keys(starts: Int64Array, seed: int, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """MX8's: splitmix64 of seed, epoch and start, by which blocks are sorted."""
    mixed = starts.astype(np.uint64) ^ np.uint64((seed ^ (epoch * _GOLDEN)) & _MASK)
    return scramble(mixed + np.uint64(_GOLDEN))


def _less(start: int, end: int, plan: BlockPlan) -> list[tuple[int, int]]:
    """What is left of a block without what is done."""
    left = []
    first = bisect.bisect_right(plan.done, start, key=lambda interval: interval[1])
    for done_start, done_end in plan.done[first:]:
        if done_start >= end:
            break
        if start < done_start:
            left.append((start, done_start))
        start = max(start, done_end)
    if start < end:
        left.append((start, end))
    return left


def join_intervals(ranges: Sequence[tuple[int, int]]) -> Intervals:
    """The same sample ids as intervals: ascending, neighbours joined, empty ones left out.

    Raises:
        ValueError: two of them overlap, or one is of numbers that no sample has.
    """
    try:
        return join_bounds(*bounds_of(ranges))
    except OverflowError as error:
        raise ValueError(str(error)) from None


def join_bounds(starts: Int64Array, ends: Int64Array) -> Intervals:
    """``join_intervals`` of what ``bounds_of`` gives; a million of them take a fraction of a second.

    Raises:
        ValueError: two of them overlap.
    """
    some = np.flatnonzero(starts < ends)
    if not len(some):
        return ()
    some = some[np.argsort(starts[some])]
    starts, ends = starts[some], ends[some]
    for at in np.flatnonzero(starts[1:] < ends[:-1])[:1]:
        raise ValueError(f"[{starts[at + 1]}, {ends[at + 1]}) overlaps [{starts[at]}, {ends[at]})")
    apart = starts[1:] > ends[:-1]
    firsts, lasts = starts[np.append(True, apart)], ends[np.append(apart, True)]
    return tuple(zip(firsts.tolist(), lasts.tolist(), strict=True))
