"""The order of samples: pure functions of (manifest hash, seed, epoch), in O(1) memory.

A shuffled epoch is a keyed permutation of ``[0, count)`` that can be evaluated at any position, so no rank ever holds
a list of ids and the order depends on neither workers nor prefetch. The permutation is a generalised Feistel network
over the smallest near-square a x b that holds ``count``, walked until it lands inside, which it nearly always does at
once (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Its round function is the finaliser of
splitmix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014), brought into its range by a
multiplication.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "Int64Array",
    "Order",
    "Permutation",
    "Remaining",
    "Sequential",
    "Shuffled",
    "UInt64Array",
    "keys_of",
    "scramble",
]

Int64Array: TypeAlias = npt.NDArray[np.int64]
UInt64Array: TypeAlias = npt.NDArray[np.uint64]

_HALF = np.uint64(32)
_ROUNDS = 8  # even; four are enough for a pseudo-random permutation (Luby and Rackoff 1988); tiny domains want more


class Order(Protocol):
    """Which sample stands at which position of an epoch."""

    count: int

    def at(self, positions: Int64Array) -> Int64Array:
        """The sample ids at these positions, each from 0 to ``count`` - 1."""


class Sequential:
    """Ascending sample ids from ``first``."""

    def __init__(self, first: int, count: int) -> None:
        self.count = count
        self._first = first

    def at(self, positions: Int64Array) -> Int64Array:
        """The sample ids at these positions."""
        return positions + self._first


class Shuffled:
    """A permutation of ``[first, first + count)`` by (manifest hash, seed, epoch)."""

    def __init__(self, first: int, count: int, *, manifest_hash: str, seed: int, epoch: int) -> None:
        self.count = count
        self._first = first
        self._permutation = Permutation(count, keys_of(f"penstock order {manifest_hash} {seed} {epoch}"))

    def at(self, positions: Int64Array) -> Int64Array:
        """The sample ids at these positions."""
        return self._permutation.at(positions.astype(np.uint64)).astype(np.int64) + self._first


class Permutation:
    """A keyed permutation of ``[0, count)``; of another key for each tweak.

    Args:
        count: of the numbers that are permuted.
        keys: what ``keys_of`` gives.
    """

    def __init__(self, count: int, keys: UInt64Array) -> None:
        self._count = count
        rows = max(1, math.isqrt(max(0, count - 1)) + 1)
        self._rows, self._columns = np.uint64(rows), np.uint64(max(1, -(-count // rows)))
        self._keys = keys

    def at(self, places: UInt64Array, tweaks: UInt64Array | None = None) -> UInt64Array:
        """The numbers at these places; with tweaks, each place's is of the permutation that its tweak picks."""
        found = self._once(places, tweaks)
        outside = np.flatnonzero(found >= self._count)
        while outside.size:  # less than one in the square root of the count
            found[outside] = self._once(found[outside], None if tweaks is None else tweaks[outside])
            outside = outside[found[outside] >= self._count]
        return found

    def _once(self, values: UInt64Array, tweaks: UInt64Array | None) -> UInt64Array:
        right, left = np.divmod(values, self._rows)
        size, other = self._rows, self._columns
        for key in self._keys:
            mixed = scramble(right ^ key if tweaks is None else right ^ key ^ tweaks)
            mixed >>= _HALF  # 32 bits are enough to be uniform over what is at most the root of the count
            mixed *= size
            mixed >>= _HALF
            mixed += left
            mixed -= size * (mixed >= size)
            left, right = right, mixed
            size, other = other, size
        return right * self._rows + left


class Remaining:
    """What is left of an order when some of its positions are done.

    Args:
        order: the whole.
        done: half-open intervals of its positions, ascending and apart from one another.
    """

    def __init__(self, order: Order, done: Sequence[tuple[int, int]]) -> None:
        self.order = order
        starts = np.array([0, *(end for _, end in done)], dtype=np.int64)
        ends = np.array([*(start for start, _ in done), order.count], dtype=np.int64)
        self._starts = starts
        self._before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(ends - starts)])  # left below each
        self.count = int(self._before[-1])

    def at(self, positions: Int64Array) -> Int64Array:
        """The sample ids at these positions of what is left."""
        return self.order.at(self.whole(positions))

    def whole(self, positions: Int64Array) -> Int64Array:
        """Where these positions of what is left are in the whole."""
        gaps = np.searchsorted(self._before, positions, side="right") - 1
        found: Int64Array = positions - self._before[gaps] + self._starts[gaps]
        return found

    def intervals(self, start: int, end: int) -> list[tuple[int, int]]:
        """The positions ``[start, end)`` of what is left, as intervals of the whole, ascending."""
        first = max(0, int(np.searchsorted(self._before, start, side="right")) - 1)
        last = int(np.searchsorted(self._before, end))
        gaps, before = self._starts[first:last].tolist(), self._before[first : last + 1].tolist()
        found = []
        for offset, below, above in zip(gaps, before, before[1:], strict=False):
            low, high = max(start, below), min(end, above)
            if low < high:
                found.append((low + offset - below, high + offset - below))
        return found


def scramble(values: UInt64Array) -> UInt64Array:
    """Scramble in place: three multiply-and-shift steps, the value itself is returned."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def keys_of(what: str) -> UInt64Array:
    """The keys of a permutation, as many as it has rounds, out of a text that names it."""
    digest = hashlib.shake_256(what.encode()).digest(8 * _ROUNDS)
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)
