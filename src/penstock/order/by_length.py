"""Samples of like length side by side: an order over another one, and what batches of different lengths cost. Pure.

Positions are cut into groups; the samples of a group are sorted by length and cut into runs of neighbours, and the runs
are put into an order of their own. Batches inside of a run hold samples of like length, and yet short ones don't
always come before long ones. It is a permutation within each group, so any position can be evaluated by itself: ranks,
states and batches of any size see one order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from penstock.dataset.joined import Column
from penstock.errors import ConfigError, ManifestError
from penstock.order.order import Int64Array, Order, scramble

__all__ = ["BatchCost", "ByLength", "padded_bytes", "prefix_costs"]

BatchCost: TypeAlias = Callable[[Int64Array], npt.ArrayLike]
"""From the lengths of n samples (bytes, int64 ``[n]``) to what the first, the first two, ... all n of them cost as a
batch: n numbers. A pure function, and one call for many samples."""

_RUNS: Final = 16  # of a group


class ByLength:
    """An order in which samples of like length are neighbours.

    Args:
        order: the samples to visit; each stays within its group.
        lengths: bytes of each sample of the dataset, by id.
        group: positions that are looked at together.
        key: names what the order of runs depends on.
    """

    def __init__(self, order: Order, lengths: Column, group: int, key: str) -> None:
        self.count = order.count
        self._order = order
        self._lengths = lengths
        self._group = group
        digest = hashlib.sha256(f"penstock runs {key}".encode()).digest()
        self._key = np.frombuffer(digest[:8], dtype="<u8")[0]

    def at(self, positions: Int64Array) -> Int64Array:
        """The sample ids at these positions."""
        groups, inverse = np.unique(positions // self._group, return_inverse=True)
        found = np.empty(len(positions), dtype=np.int64)
        for number, group in enumerate(groups.tolist()):
            here = np.flatnonzero(inverse == number)
            found[here] = self._sorted(group)[positions[here] - group * self._group]
        return found

    def _sorted(self, group: int) -> Int64Array:
        """The ids of one group, in order."""
        start = group * self._group
        ids = self._order.at(np.arange(start, min(start + self._group, self.count), dtype=np.int64))
        lengths = np.asarray(self._lengths[ids], dtype=np.int64)
        if (lengths < 0).any():
            raise ManifestError(
                f"group_by_length needs byte_length for every sample; sample {ids[int(np.argmax(lengths < 0))]} has "
                "none. Pack the dataset, or leave it False"
            )
        ids = ids[np.argsort(lengths, kind="stable")]
        runs = np.array_split(ids, min(_RUNS, len(ids)))
        with np.errstate(over="ignore"):
            keys = scramble(self._key + np.uint64(group * _RUNS) + np.arange(len(runs), dtype=np.uint64))
        return np.concatenate([runs[run] for run in np.argsort(keys, kind="stable").tolist()])


def padded_bytes(lengths: Int64Array) -> Int64Array:
    """A ``batch_cost``: the bytes of a batch whose samples are all filled up to its longest."""
    counts = np.arange(1, len(lengths) + 1, dtype=np.int64)
    costs: Int64Array = np.maximum.accumulate(lengths) * counts
    return costs


def prefix_costs(cost: BatchCost, lengths: Int64Array) -> npt.NDArray[np.float64]:
    """What a user's function says, checked.

    Raises:
        ConfigError: it isn't one number for each sample.
    """
    costs = np.asarray(cost(lengths.copy()))
    if costs.shape != lengths.shape or costs.dtype.kind not in "iuf" or np.isnan(costs).any():
        raise ConfigError(
            f"batch_cost returned {costs.dtype} {list(costs.shape)} for {len(lengths)} lengths; return a number for "
            "each: what the samples up to it cost as one batch"
        )
    return costs.astype(np.float64)
