"""What a transfer reads or writes: *descriptors*, an immutable list of ranges in one agent's memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from penstock.errors import ConfigError, MetadataError
from penstock.transfer.table import MEMORIES, Memory, checked_memory, table_of, whole_numbers
from penstock.transfer.wire import MOST_BYTES, Reader, UInt32s, UInt64s, Writer

__all__ = ["MOST_NAME_BYTES", "Descriptors"]

MOST_NAME_BYTES: Final = 255
"""Bytes of UTF-8 that an agent's name may have."""

_WHAT: Final = "descriptors"
_MAGIC: Final = b"PSds"
_VERSION: Final = 1
_ROW_BYTES: Final = 3 * 8
_MOST_ROWS: Final = MOST_BYTES // _ROW_BYTES


class Descriptors:
    """An immutable list of ranges in the memory of one agent; a value that may be sent to others.

    ``descriptors[i]`` is again a list, of one row, and so is every slice, list or array of indices or mask: rows keep
    their slot and generation wherever they go. ``a + b`` joins two lists of the same owner and memory.

    Attributes:
        owner: the name of the agent whose memory this is; empty = unknown.
        memory: ``"DRAM"`` or ``"VRAM"``.
        table: (N, 3) uint64, read-only: address, length in bytes, device.
        slots: (N,) uint32, read-only: which registration each row lies in. None = rows without registration, which are
            looked up where they are used.
        generations: (N,) uint64, read-only: the generation of that registration; None with ``slots``.

    Args:
        owner: the agent's name.
        memory: the kind of memory.
        table: rows of (address, length) or (address, length, device); copied if it is an array that can be written to.
        slots: one number a row.
        generations: one number a row, none of them 0.

    Raises:
        ConfigError: no such memory, rows that are no ranges, or columns that don't fit together.
    """

    __slots__ = ("generations", "memory", "owner", "slots", "table")

    owner: str
    memory: Memory
    table: UInt64s
    slots: UInt32s | None
    generations: UInt64s | None

    def __init__(
        self,
        owner: str,
        memory: str,
        table: npt.ArrayLike,
        slots: npt.ArrayLike | None = None,
        generations: npt.ArrayLike | None = None,
    ) -> None:
        rows = table_of(table)
        if (slots is None) != (generations is None):
            raise ConfigError("slots and generations come together, or neither does")
        self._set(
            owner,
            checked_memory(memory),
            _frozen(rows if rows is not table and rows.base is None else rows.copy()),
            None if slots is None else _frozen(_column("slots", slots, np.uint32, len(rows))),
            None if generations is None else _frozen(_column("generations", generations, np.uint64, len(rows))),
        )
        if self.generations is not None and not self.generations.all():
            raise ConfigError("a generation of 0, which says that nothing is registered; generations begin at 1")

    @property
    def registered(self) -> bool:
        """Whether the rows say which registration they lie in."""
        return self.slots is not None

    @property
    def total_bytes(self) -> int:
        """The sum of the lengths."""
        return int(self.table[:, 1].sum(dtype=object)) if len(self) else 0

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Descriptors:
        """Rows by number, slice, list or array of numbers, or mask.

        Raises:
            IndexError: there is no such row.
        """
        if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
            row = int(index) + len(self) * (index < 0)
            if not 0 <= row < len(self):
                raise IndexError(f"row {index} of {len(self)} descriptors")
            index = slice(row, row + 1)
        return _value(
            self.owner,
            self.memory,
            _frozen(self.table[index]),
            None if self.slots is None else _frozen(self.slots[index]),
            None if self.generations is None else _frozen(self.generations[index]),
        )

    def __add__(self, other: object) -> Descriptors:
        return Descriptors.joined([self, other]) if isinstance(other, Descriptors) else NotImplemented

    @staticmethod
    def joined(parts: Iterable[Descriptors]) -> Descriptors:
        """Several lists of the same owner and memory as one, in order.

        Raises:
            ConfigError: there are none, their owners or memories differ, or only some say their registration.
        """
        parts = list(parts)
        kinds = {(part.owner, part.memory, part.registered) for part in parts}
        if len(kinds) != 1:
            given = ", ".join(f"{owner!r}'s {memory}" for owner, memory, _ in sorted(kinds)) or "nothing"
            raise ConfigError(f"descriptors of {given} can't be joined; owner, memory and registration must be one")
        slots = [part.slots for part in parts if part.slots is not None]
        generations = [part.generations for part in parts if part.generations is not None]
        return _value(
            parts[0].owner,
            parts[0].memory,
            _frozen(np.concatenate([part.table for part in parts])),
            _frozen(np.concatenate(slots)) if slots else None,
            _frozen(np.concatenate(generations)) if generations else None,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Descriptors):
            return NotImplemented
        return (
            (self.owner, self.memory, self.registered) == (other.owner, other.memory, other.registered)
            and np.array_equal(self.table, other.table)
            and (self.slots is None or np.array_equal(self.slots, other.slots))  # type: ignore[arg-type]
            and (self.generations is None or np.array_equal(self.generations, other.generations))  # type: ignore[arg-type]
        )

    def __hash__(self) -> int:
        return hash((self.owner, self.memory, self.table.tobytes()))

    def __repr__(self) -> str:
        rows = ", ".join(f"{address:#x}+{length}@{device}" for address, length, device in self.table[:3].tolist())
        more = ", ..." if len(self) > 3 else ""
        return f"<Descriptors of {self.owner!r}: {len(self)} in {self.memory}, {self.total_bytes} bytes: {rows}{more}>"

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"descriptors are immutable; {name} can't be set")

    def __reduce__(self) -> tuple[Any, ...]:
        return Descriptors.from_bytes, (self.to_bytes(),)

    def to_bytes(self) -> bytes:
        """The list in a form that ``from_bytes`` reads, anywhere.

        Raises:
            MetadataError: longer than 64 MiB, or an owner's name of more than 255 bytes.
        """
        writer = Writer(_WHAT, _MAGIC, _VERSION).text(self.owner, most=MOST_NAME_BYTES)
        writer.u8(MEMORIES.index(self.memory)).u8(self.registered).u64s(self.table)
        if self.slots is not None and self.generations is not None:
            writer.u32s(self.slots).u64s(self.generations)
        return writer.done()

    @staticmethod
    def from_bytes(blob: Buffer) -> Descriptors:
        """The list that ``to_bytes`` wrote.

        Raises:
            MetadataError: it isn't one, from the first byte to the last.
        """
        reader = Reader(_WHAT, blob, _MAGIC, _VERSION)
        owner = reader.text(most=MOST_NAME_BYTES)
        memory, registered = reader.u8(), reader.u8()
        if memory >= len(MEMORIES) or registered > 1:
            raise MetadataError(f"{_WHAT}: memory {memory} and registered {registered}; each is 0 or 1")
        table = reader.u64s(most=3 * _MOST_ROWS, width=3)
        slots = reader.u32s(most=len(table)) if registered else None
        generations = reader.u64s(most=len(table)) if registered else None
        reader.end()
        try:
            return Descriptors(owner, MEMORIES[memory], table, slots, generations)
        except ConfigError as error:
            raise MetadataError(f"{_WHAT}: {error}") from error

    def _set(
        self, owner: str, memory: Memory, table: UInt64s, slots: UInt32s | None, generations: UInt64s | None
    ) -> None:
        for name, value in zip(
            ("owner", "memory", "table", "slots", "generations"),
            (owner, memory, table, slots, generations),
            strict=True,
        ):
            object.__setattr__(self, name, value)


def _value(
    owner: str, memory: Memory, table: UInt64s, slots: UInt32s | None, generations: UInt64s | None
) -> Descriptors:
    """A list whose columns were checked before."""
    value = object.__new__(Descriptors)
    value._set(owner, memory, table, slots, generations)
    return value


def _column(name: str, column: npt.ArrayLike, dtype: Any, count: int) -> Any:
    array = whole_numbers(column, name)
    top = np.iinfo(dtype).max
    if array.shape != (count,):
        raise ConfigError(f"{name} of shape {array.shape}; give {count} numbers, one for each row")
    if count and array.max() > top:
        raise ConfigError(f"{name} up to {array.max()}; give numbers from 0 to {top}")
    return array.astype(dtype)


def _frozen(array: Any) -> Any:
    array.flags.writeable = False
    return array
