"""The order of samples: pure functions of (manifest hash, seed, epoch), in O(1) memory.

A shuffled epoch is a keyed permutation of ``[0, count)`` that can be evaluated at any position, so no rank ever holds
a list of ids and the order depends on neither workers nor prefetch. The permutation is a balanced Feistel network
over the smallest even-bit domain that holds ``count``, walked until it lands inside (cycle walking; Black and
Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Its round function is the finaliser of splitmix64 (Steele,
Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
"""

from __future__ import annotations

import hashlib
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Int64Array", "Order", "Sequential", "Shuffled", "UInt64Array", "mix"]

Int64Array: TypeAlias = npt.NDArray[np.int64]
UInt64Array: TypeAlias = npt.NDArray[np.uint64]

_ROUNDS = 8  # four are enough for a pseudo-random permutation (Luby and Rackoff 1988); tiny domains want more


class Order(Protocol):
    """Which sample stands at which position of an epoch."""

    count: int

    def sample_ids(self, start: int, end: int) -> Int64Array:
        """The ids at positions ``[start, end)``."""


class Sequential:
    """Ascending sample ids from ``first``."""

    def __init__(self, first: int, count: int) -> None:
        self.count = count
        self._first = first

    def sample_ids(self, start: int, end: int) -> Int64Array:
        """The ids at positions ``[start, end)``."""
        return np.arange(self._first + start, self._first + end, dtype=np.int64)


class Shuffled:
    """A permutation of ``[first, first + count)`` by (manifest hash, seed, epoch)."""

    def __init__(self, first: int, count: int, *, manifest_hash: str, seed: int, epoch: int) -> None:
        self.count = count
        self._first = first
        self._half_bits = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
        self._half_mask = np.uint64((1 << int(self._half_bits)) - 1)
        digest = hashlib.shake_256(f"penstock order {manifest_hash} {seed} {epoch}".encode())
        self._keys = np.frombuffer(digest.digest(8 * _ROUNDS), dtype="<u8").astype(np.uint64)

    def sample_ids(self, start: int, end: int) -> Int64Array:
        """The ids at positions ``[start, end)``."""
        ids = self._permute(np.arange(start, end, dtype=np.uint64))
        outside = np.flatnonzero(ids >= self.count)
        while outside.size:  # at most three steps a sample on average: the domain is less than 4 x count
            ids[outside] = self._permute(ids[outside])
            outside = outside[ids[outside] >= self.count]
        return ids.astype(np.int64) + self._first

    def _permute(self, values: UInt64Array) -> UInt64Array:
        left, right = values >> self._half_bits, values & self._half_mask
        for key in self._keys:
            mixed = mix(right ^ key)
            mixed &= self._half_mask
            mixed ^= left
            left, right = right, mixed
        return (left << self._half_bits) | right


def mix(values: UInt64Array) -> UInt64Array:
    """Scramble in place: three multiply-and-shift steps, the value itself is returned."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
