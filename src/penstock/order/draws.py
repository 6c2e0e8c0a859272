"""Orders that draw: each position has a sample of its own, whatever stands at the others.

Like the orders of ``order`` they are pure functions of (manifest hash, seed, epoch) and can be evaluated at any
position, so ranks, resuming and prefetch know nothing of them. A sample may come several times, or never.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from penstock.errors import ConfigError
from penstock.order.keyed import Keyed, scaled
from penstock.order.order import Int64Array, UInt64Array

__all__ = ["AliasTable", "Weighted", "Weights", "WithReplacement", "checked_weights"]

_UNIT_BITS = 32
_UNIT = 1 << _UNIT_BITS  # shares of one bucket of an alias table
_MOST_WEIGHTS = 1 << 30  # rounding all of them to shares then stays below one bucket

Weights: TypeAlias = Sequence[float] | npt.NDArray[np.floating] | npt.NDArray[np.integer]


class WithReplacement:
    """Each position draws from ``[first, first + size)``, all alike, by (manifest hash, seed, epoch).

    Args:
        first: lowest sample id.
        size: how many samples there are to draw from, at least 1 if anything is drawn.
        count: how many are drawn; None = as many as there are.
        manifest_hash: of the dataset.
        seed: of the draws.
        epoch: of the draws.
    """

    def __init__(
        self, first: int, size: int, count: int | None = None, *, manifest_hash: str, seed: int, epoch: int
    ) -> None:
        self.count = _draws(count, size)
        self._first, self._size = first, np.uint64(size)
        self._keyed = Keyed(f"penstock replacement {manifest_hash} {seed} {epoch}")

    def at(self, positions: Int64Array) -> Int64Array:
        """The sample ids at these positions; no id is likelier than another by more than ``size`` / 2^64."""
        return scaled(self._keyed.bits(positions), self._size) + self._first


class Weighted:
    """Each position draws a sample id with a probability in proportion to its weight, with replacement.

    Args:
        first: the sample id that the table's 0 stands for.
        table: what the weights come to.
        count: how many are drawn; None = as many as there are weights.
        manifest_hash: of the dataset.
        seed: of the draws.
        epoch: of the draws.
    """

    def __init__(
        self, first: int, table: AliasTable, count: int | None = None, *, manifest_hash: str, seed: int, epoch: int
    ) -> None:
        self.count = _draws(count, len(table))
        self._first, self._table = first, table
        self._keyed = Keyed(f"penstock weighted {manifest_hash} {seed} {epoch}")

    def at(self, positions: Int64Array) -> Int64Array:
        """The sample ids at these positions."""
        return self._table.draw(self._keyed.bits(positions)) + self._first


class AliasTable:
    """Weights, ready to be drawn by in constant time (Walker 1977); 8 bytes for each.

    A weight is held in 2^32nds of the average weight, and one above 0 never becomes 0; what rounding leaves over goes
    to the largest, so no probability is off by more than 2^-32. The table is made without a loop over weights: light
    and heavy ones are paired by their prefix sums (Hübschle-Schneider and Sanders, "Parallel Weighted Random Sampling",
    2019, section 4.2), in whole numbers, so that it is the same on any machine.

    Args:
        weights: one for each sample, finite, none below 0, at least one above.

    Attributes:
        hash: of the rounded weights, 16 hex digits.

    Raises:
        ConfigError: weights that can't be drawn by.
    """

    def __init__(self, weights: Weights) -> None:
        shares = _shares(checked_weights(weights))
        self.hash = hashlib.sha256(shares.astype("<i8", copy=False).data).hexdigest()[:16]
        self._size = np.uint64(len(shares))
        self._keep, self._alias = _paired(shares)

    def __len__(self) -> int:
        return int(self._size)

    def draw(self, bits: UInt64Array) -> Int64Array:
        """A number below ``len(self)`` for each 64 uniform bits: their upper part picks a bucket, the rest in it."""
        bucket = scaled(bits, self._size)
        rest = (bits * self._size) >> np.uint64(64 - _UNIT_BITS)  # what the upper half of the product leaves
        found: Int64Array = np.where(rest < self._keep[bucket], bucket, self._alias[bucket])
        return found

    def probabilities(self) -> npt.NDArray[np.float64]:
        """Of each number, as the table draws it."""
        found = self._keep.astype(np.float64)
        np.add.at(found, self._alias, _UNIT - self._keep.astype(np.float64))
        return found / (_UNIT * len(self))


def checked_weights(weights: Weights) -> npt.NDArray[np.float64]:
    """Weights as float64 ``[n]``, read-only.

    Raises:
        ConfigError: they aren't one number in a row for each sample, or can't be drawn by.
    """
    try:
        found = np.array(weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"weights aren't numbers ({error}); give one for each sample") from error
    if found.ndim != 1 or not 1 <= len(found) <= _MOST_WEIGHTS:
        raise ConfigError(f"weights have shape {found.shape}; give one for each sample, 1 to {_MOST_WEIGHTS} in a row")
    bad = np.flatnonzero(~(np.isfinite(found) & (found >= 0)))
    if bad.size:
        raise ConfigError(
            f"weights[{bad[0]}] is {found[bad[0]]}, one of {bad.size} that are negative or not finite; give 0 or more"
        )
    if not found.any():
        raise ConfigError(f"all {len(found)} weights are 0, so there is nothing to draw; give one above 0")
    found.flags.writeable = False
    return found


def _draws(count: int | None, size: int) -> int:
    count = size if count is None else count
    if count < 0 or (count and not size):
        raise ConfigError(f"{count} samples can't be drawn from {size}; give 0 or more, of a dataset that has some")
    return count


def _shares(weights: npt.NDArray[np.float64]) -> Int64Array:
    """The weights in whole numbers that add up to one bucket each; above 0 stays above 0."""
    size = len(weights)
    relative = weights / weights.max()  # so that no sum overflows
    shares: Int64Array = np.rint(relative * (size * float(_UNIT) / float(relative.sum()))).astype(np.int64)
    shares[(shares == 0) & (weights > 0)] = 1
    # What rounding left over is less than a bucket (see _MOST_WEIGHTS), and the largest weight has at least one.
    shares[np.argmax(shares)] += size * _UNIT - int(shares.sum())
    return shares


def _paired(shares: Int64Array) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """What each bucket keeps of its own, up to 2^32 - 1, and whom the rest of it belongs to.

    Light buckets take what they lack from the first heavy one that has something left when all light ones before
    them are full; a heavy one that has given so much that it lacks something itself takes that from the next.
    """
    keep = np.full(len(shares), _UNIT - 1, dtype=np.uint32)
    alias = np.arange(len(shares), dtype=np.uint32)
    light, heavy = np.flatnonzero(shares < _UNIT), np.flatnonzero(shares > _UNIT)
    if not light.size:
        return keep, alias
    lacking = np.concatenate([[0], np.cumsum(_UNIT - shares[light])])  # of the first so many light ones
    spare = np.cumsum(shares[heavy] - _UNIT)  # of the heavy ones up to each
    keep[light] = shares[light]
    alias[light] = heavy[np.searchsorted(spare, lacking[:-1], side="right")]
    taken = lacking[np.searchsorted(lacking, spare)] - spare  # from each heavy one, beyond what it can spare
    short = np.flatnonzero(taken)  # the last one comes out even
    keep[heavy[short]] = _UNIT - taken[short]
    alias[heavy[short]] = heavy[short + 1]
    return keep, alias
