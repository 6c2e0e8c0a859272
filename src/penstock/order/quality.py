"""How random an order is, as a number: 1 like a true permutation, 0 like ascending ids. Pure.

Two things can be wrong with a shuffle. What follows one another may lie close together; that is **neighbours**. And a
batch may hold a lump of the dataset instead of a sample of it, so that its gradient is noisier than its size says; that
is **batches**.

- neighbours: the mean distance of the ids at positions i and i + 1. Of two different numbers that are drawn from n in a
  row it is (n + 1) / 3; in ascending order it is 1. The figure is (mean - 1) / ((n + 1) / 3 - 1).
- batches: the inverse of the *design effect* of cluster sampling (Kish, "Survey Sampling", 1965, chapter 5): how many
  times larger the variance of what a batch holds is than that of as many samples drawn at random. It is taken over
  classes, as Pearson's statistic X = sum over classes of (found - expected)**2 / expected. A batch of b out of n drawn
  without replacement (multivariate hypergeometric) has E X = (K - 1) (n - b) / (n - 1) with K classes, whatever their
  sizes; the figure is that over the mean of X. A batch of 256 at 0.25 is worth 64 samples drawn at random. In ascending
  order it is about 1 / b, where a batch is one class.

Where there are no labels, or labels aren't what matters, classes are equal parts of the ids, a hundred at most: what
lies together in a dataset tends to be alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from penstock.order.order import Int64Array, Order

__all__ = ["ShuffleQuality", "shuffle_quality"]

_BATCHES: Final = 64  # that are looked at, evenly spread over the epoch
_MOST_CLASSES: Final = 100


@dataclass(frozen=True, slots=True)
class ShuffleQuality:
    """How random an order is; each figure is 1 for a true permutation, give or take a few percent of chance.

    Attributes:
        neighbours: how far apart the ids are that follow one another.
        batches: how much a batch resembles samples drawn at random; the share of it that they would have to be.
    """

    neighbours: float
    batches: float

    @property
    def value(self) -> float:
        """The lower of both, from 0 to 1: as random as its weaker side."""
        return max(0.0, min(1.0, self.neighbours, self.batches))


def shuffle_quality(
    order: Order, batch_samples: int, *, first: int = 0, labels: npt.NDArray[np.integer] | None = None
) -> ShuffleQuality:
    """Measure an order on 64 batches evenly spread over it: milliseconds, whatever its length.

    Args:
        order: of the ids from ``first`` on, each once.
        batch_samples: samples that are used together, over all ranks; at least 1.
        first: the lowest id.
        labels: of the samples from ``first`` on, each at least 0: the classes that a batch should mix. By default the
            ids themselves, cut into equal parts.
    """
    count, size = order.count, min(batch_samples, order.count)
    if size < 2 or size == count:
        return ShuffleQuality(1.0, 1.0)  # there is nothing to mix
    starts = np.unique(np.linspace(0, count - size, _BATCHES).astype(np.int64))
    ids = order.at((starts[:, None] + np.arange(size)).ravel()).reshape(-1, size) - first
    if labels is None:
        parts = max(2, min(_MOST_CLASSES, count // size))
        classes: Int64Array = ids * parts // count
        samples = np.diff(-(-np.arange(parts + 1) * count // parts))
    else:
        classes, samples = labels[ids].astype(np.int64), np.bincount(labels)
    return ShuffleQuality(_neighbours(ids, count), _batches(classes, samples / count, count))


def _neighbours(ids: Int64Array, count: int) -> float:
    return float((np.abs(np.diff(ids)).mean() - 1) / ((count + 1) / 3 - 1))


def _batches(classes: Int64Array, shares: npt.NDArray[np.float64], count: int) -> float:
    there = shares > 0
    if there.sum() < 2:
        return 1.0
    size = classes.shape[1]
    found = np.array([np.bincount(batch, minlength=len(shares)) for batch in classes])[:, there]
    expected = size * shares[there]
    observed = ((found - expected) ** 2 / expected).sum(axis=1).mean()
    return float((there.sum() - 1) * (count - size) / (count - 1) / max(observed, 1e-12))
