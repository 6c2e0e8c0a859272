"""Whole numbers that callers hand over: Python's, NumPy's, but neither text nor fractions nor truth values."""

from __future__ import annotations

import operator
import reprlib
from typing import Any

__all__ = ["whole"]


def whole(value: Any, name: str) -> int:
    """The number.

    Raises:
        TypeError: it is none.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {reprlib.repr(value)}; give a whole number") from None
