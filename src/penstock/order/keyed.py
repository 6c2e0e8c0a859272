"""Numbers out of numbers by a key: what a random order is made of, evaluable at any place by itself."""

from __future__ import annotations

import hashlib

import numpy as np

from penstock.order.order import Int64Array, UInt64Array, scramble

__all__ = ["Keyed", "scaled"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying by it loses nothing; the step of splitmix64
_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


class Keyed:
    """64 uniform bits for each whole number, by a text that names what they are for."""

    def __init__(self, text: str) -> None:
        self._first, self._second = np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], dtype="<u8")

    def bits(self, numbers: Int64Array) -> UInt64Array:
        """Of each number, whatever else is asked for with it."""
        values = numbers.astype(np.uint64)
        values *= _GOLDEN
        values += self._first
        values = scramble(values)
        values += self._second
        return scramble(values)


def scaled(bits: UInt64Array, size: UInt64Array | np.uint64) -> Int64Array:
    """Uniform 64 bits as whole numbers below ``size``: the upper half of their product (Lemire 2019).

    No number is likelier than another by more than ``size`` / 2^64.
    """
    high, low = bits >> _HALF, bits & _LOW
    size_high, size_low = size >> _HALF, size & _LOW
    middle = high * size_low + ((low * size_low) >> _HALF)  # fits: (2^32 - 1)^2 + 2^32 - 1 < 2^64
    found: Int64Array = (high * size_high + (middle >> _HALF)).astype(np.int64)
    if np.any(size_high):
        found += ((low * size_high + (middle & _LOW)) >> _HALF).astype(np.int64)
    return found
