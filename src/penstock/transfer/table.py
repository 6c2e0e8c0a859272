"""Where memory lies, as a *table*: (N, 3) uint64 with the columns address, length in bytes, device.

A row is a half-open range; none is empty, and none goes beyond 2**64 - 1. Everything here is pure and works on whole
columns, for tables have 100,000 rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from penstock.errors import ConfigError
from penstock.transfer.wire import UInt64s

__all__ = ["MEMORIES", "Memory", "checked_memory", "checked_table", "coalesced", "table_of", "whole_numbers"]

Memory: TypeAlias = Literal["DRAM", "VRAM"]
"""The kind of memory: the host's, or a GPU's."""

MEMORIES: Final[tuple[Memory, ...]] = get_args(Memory)

_TOP: Final = (1 << 64) - 1


def checked_memory(memory: object) -> Memory:
    """``memory`` if it is a kind of memory.

    Raises:
        ConfigError: it isn't.
    """
    if memory not in MEMORIES:
        raise ConfigError(f'memory is {memory!r}; give "DRAM" or "VRAM"')
    return memory


def table_of(rows: npt.ArrayLike | Sequence[Any]) -> UInt64s:
    """The table of rows ``(address, length)``, whose device is 0, or ``(address, length, device)``.

    Args:
        rows: one row, a list of rows, or an array (N, 2) or (N, 3) of whole numbers.

    Returns:
        (N, 3) uint64, C-contiguous; a copy unless ``rows`` is such an array already.

    Raises:
        ConfigError: anything else, such as a negative number, an empty range, or one beyond 2**64 - 1.
    """
    table = whole_numbers(rows, "ranges")
    if table.ndim == 1 and table.size in (2, 3):
        table = table.reshape(1, -1)
    if table.ndim == 1 and table.size == 0:
        table = table.reshape(0, 3)
    if table.ndim != 2 or table.shape[1] not in (2, 3):
        raise ConfigError(f"ranges of shape {table.shape}; give rows of (address, length) or (address, length, device)")
    if table.shape[1] == 2:
        table = np.column_stack([table, np.zeros(len(table), np.uint64)])
    return checked_table(np.ascontiguousarray(table))


def checked_table(table: UInt64s) -> UInt64s:
    """``table`` if all of its rows are ranges.

    Raises:
        ConfigError: a row is empty, or ends beyond 2**64 - 1; the message names the first.
    """
    address, length = table[:, 0], table[:, 1]
    # Unsigned sums wrap, so the room above the address is compared instead.
    wrong = (length == 0) | (length > np.uint64(_TOP) - address)
    if wrong.any():
        row = int(wrong.argmax())
        raise ConfigError(
            f"range {row} has address {int(address[row]):#x} and length {int(length[row])}; "
            "a length is at least 1, and address + length at most 2**64 - 1"
        )
    return table


def coalesced(table: UInt64s) -> UInt64s:
    """The same memory in the fewest rows: sorted by device and address; no two overlap or touch.

    Args:
        table: (N, 3) uint64: address, length, device.

    Returns:
        (M, 3) uint64 with M <= N.
    """
    if len(table) < 2:
        return table.copy()
    table = table[np.lexsort((table[:, 0], table[:, 2]))]
    devices, firsts = np.unique(table[:, 2], return_index=True)
    if len(devices) == 1:
        return _merged(table)
    return np.concatenate([_merged(part) for part in np.split(table, firsts[1:])])


def _merged(table: UInt64s) -> UInt64s:
    """Sorted rows of one device, merged."""
    starts = table[:, 0]
    ends = np.maximum.accumulate(starts + table[:, 1])
    first = np.flatnonzero(np.concatenate([[True], starts[1:] > ends[:-1]]))
    last = np.append(first[1:], len(table)) - 1
    return np.column_stack([starts[first], ends[last] - starts[first], table[first, 2]])


def whole_numbers(values: npt.ArrayLike | Sequence[Any], name: str) -> UInt64s:
    """Whole numbers from 0 to 2**64 - 1, exactly; of any shape. No copy is made of an array of uint64.

    Raises:
        ConfigError: anything else; the message says ``name``.
    """
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"{name} that aren't rows of equal length: {error}") from error
    if array.dtype.kind == "u":
        return array.astype(np.uint64, copy=False)
    if array.dtype.kind == "i":
        if (array < 0).any():
            raise ConfigError(f"{name} with the negative number {int(array.min())}; give numbers from 0 to 2**64 - 1")
        return array.astype(np.uint64)
    if array.size == 0:
        return array.astype(np.uint64)
    if isinstance(values, np.ndarray) and array.dtype != object:
        raise ConfigError(f"{name} of dtype {array.dtype}; give whole numbers, best as uint64")
    # A list that mixes numbers below and above 2**63: NumPy would make floats of them.
    exact = np.asarray(values, dtype=object)
    for number in exact.flat:
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or not 0 <= number <= _TOP:
            raise ConfigError(f"{number!r} in {name}; give whole numbers from 0 to 2**64 - 1")
    return exact.astype(np.uint64)
