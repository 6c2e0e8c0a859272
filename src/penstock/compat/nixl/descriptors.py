"""Descriptor lists: which memory, as rows of numbers that can be edited, compared, pickled and sent."""

from __future__ import annotations

import itertools
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from penstock.compat.nixl.errors import nixlInvalidParamError, nixlMismatchError, nixlNotFoundError
from penstock.compat.nixl.memory import nixl_mem_t
from penstock.errors import MetadataError
from penstock.transfer.wire import MOST_BYTES, Reader, UInt64s, Writer

__all__ = ["DescriptorList", "list_from_bytes", "nixlRegDList", "nixlRemoteDList", "nixlXferDList"]

_WHAT: Final = "NIXL descriptors"
_MAGIC: Final = b"PSnd"
_VERSION: Final = 1
_MOST_ROWS: Final = MOST_BYTES // 24
_MOST_META_BYTES: Final = 64 << 10


class DescriptorList:
    """Rows of (address, length, device) in one kind of memory.

    Args:
        memory: the kind.
        rows: tuples, or an array (N, 3) of whole numbers.

    Raises:
        nixlInvalidParamError: rows of another width, or numbers that no address, length or device can be.
    """

    __slots__ = ("_memory", "_numbers")
    _FORM: ClassVar[int]

    def __init__(self, memory: nixl_mem_t, rows: Iterable[Sequence[Any]] | npt.NDArray[Any] = ()) -> None:
        if not isinstance(memory, nixl_mem_t):
            raise nixlInvalidParamError(f"{memory!r} is no kind of memory; give a nixl_mem_t")
        self._memory = memory
        self._numbers = array("Q")
        if isinstance(rows, np.ndarray):
            self._numbers.frombytes(_checked(rows).tobytes())
        else:
            self._extend(rows)

    def getType(self) -> nixl_mem_t:
        """The kind of memory."""
        return self._memory

    def descCount(self) -> int:
        """How many rows there are."""
        return len(self._numbers) // 3

    __len__ = descCount

    def isEmpty(self) -> bool:
        """Whether there are none."""
        return not self._numbers

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        at = 3 * self._row(index)
        return tuple(self._numbers[at : at + 3])

    def __setitem__(self, index: int, row: Sequence[Any]) -> None:
        at = 3 * self._row(index)
        self._numbers[at : at + 3] = _numbers_of(row, 3)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return (self[index] for index in range(len(self)))

    def addDesc(self, row: Sequence[Any]) -> None:
        """Appends a row."""
        self._extend([row])

    append = addDesc

    def index(self, row: Sequence[Any]) -> int:
        """Where a row stands first.

        Raises:
            nixlNotFoundError: it isn't there.
        """
        wanted = self._normal(row)
        for at, found in enumerate(self):
            if found == wanted:
                return at
        raise nixlNotFoundError(f"{tuple(row)!r} isn't among these {len(self)} descriptors")

    def remDesc(self, index: int) -> None:
        """Takes a row out."""
        at = 3 * self._row(index)
        del self._numbers[at : at + 3]

    def clear(self) -> None:
        """Takes all rows out."""
        del self._numbers[:]

    def print(self) -> None:
        """Writes the list to the standard output."""
        sys.stdout.write(f"{self!r}\n")

    @property
    def table(self) -> UInt64s:
        """(N, 3) uint64: address, length in bytes, device. A copy."""
        return np.array(self._numbers, np.uint64).reshape(-1, 3)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DescriptorList):
            return NotImplemented
        return type(self) is type(other) and self.__getstate__() == other.__getstate__()

    __hash__ = None  # type: ignore[assignment]  # it can be changed

    def __repr__(self) -> str:
        rows = ", ".join(str(self[index]) for index in range(min(len(self), 4)))
        more = ", ..." if len(self) > 4 else ""
        return f"<{type(self).__name__} of {len(self)} in {self._memory.name}: {rows}{more}>"

    def __copy__(self) -> Self:
        return self._of(self.__getstate__())

    def __getstate__(self) -> dict[str, Any]:
        return {"memory": self._memory.name, "rows": self._numbers.tobytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._memory = nixl_mem_t[state["memory"]]
        self._numbers = array("Q")
        self._numbers.frombytes(state["rows"])

    @classmethod
    def _of(cls, state: dict[str, Any]) -> Self:
        made = cls.__new__(cls)
        made.__setstate__(state)
        return made

    def to_bytes(self) -> bytes:
        """The list in a form that ``list_from_bytes`` reads: versioned, bounded, never pickle."""
        writer = Writer(_WHAT, _MAGIC, _VERSION).u8(self._FORM).u8(self._memory.value)
        self._write(writer.u64s(self.table))
        return writer.done()

    def _write(self, writer: Writer) -> None:
        pass

    def _read(self, reader: Reader) -> None:
        pass

    def _extend(self, rows: Iterable[Sequence[Any]]) -> None:
        self._numbers.extend(_numbers_of_all(list(rows)))

    def _normal(self, row: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(_numbers_of(row, 3))

    def _row(self, index: int) -> int:
        row = index + len(self) * (index < 0)
        if not 0 <= row < len(self):
            raise IndexError(f"descriptor {index} of {len(self)}")
        return row


class nixlXferDList(DescriptorList):
    """What a transfer reads or writes: rows (address, length, device)."""

    __slots__ = ()
    _FORM = 1


class _DescriptorListWithMeta(DescriptorList):
    """Rows whose fourth field is a text that belongs to the row; it is given as bytes or str, and kept as bytes."""

    __slots__ = ("_metas",)

    def __init__(self, memory: nixl_mem_t, rows: Iterable[Sequence[Any]] | npt.NDArray[Any] = ()) -> None:
        self._metas: list[bytes] = []
        super().__init__(memory, rows)
        if isinstance(rows, np.ndarray):
            self._metas = [b""] * len(self)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return *super().__getitem__(index), self._metas[index]

    def __setitem__(self, index: int, row: Sequence[Any]) -> None:
        *numbers, meta = self._normal(row)
        super().__setitem__(index, numbers)
        self._metas[index] = meta

    def remDesc(self, index: int) -> None:
        """Takes a row out."""
        super().remDesc(index)
        del self._metas[index]

    def clear(self) -> None:
        """Takes all rows out."""
        super().clear()
        self._metas.clear()

    def trim(self) -> nixlXferDList:
        """The same rows without their fourth field, to transfer from and to."""
        return nixlXferDList._of(DescriptorList.__getstate__(self))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "metas": list(self._metas)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._metas = list(state["metas"])

    def _write(self, writer: Writer) -> None:
        for meta in self._metas:
            writer.sized(meta, most=_MOST_META_BYTES)

    def _read(self, reader: Reader) -> None:
        self._metas = [reader.sized(most=_MOST_META_BYTES) for _ in range(len(self))]

    def _extend(self, rows: Iterable[Sequence[Any]]) -> None:
        normal = [self._normal(row) for row in rows]
        super()._extend([row[:3] for row in normal])
        self._metas.extend(row[3] for row in normal)

    def _normal(self, row: Sequence[Any]) -> tuple[Any, ...]:
        if len(row) != 4 or not isinstance(row[3], (str, bytes)):
            raise nixlInvalidParamError(f"{row!r}; give (address, length, device, str or bytes)")
        return *row[:3], row[3].encode() if isinstance(row[3], str) else row[3]


class nixlRegDList(_DescriptorListWithMeta):
    """What is registered: rows (address, length, device, meta). Of a file: offset, length, its fd, its path."""

    __slots__ = ()
    _FORM = 2


class nixlRemoteDList(_DescriptorListWithMeta):
    """Memory of other agents: rows (address, length, device, the agent's name)."""

    __slots__ = ()
    _FORM = 3


_FORMS: dict[int, type[DescriptorList]] = {kind._FORM: kind for kind in (nixlXferDList, nixlRegDList, nixlRemoteDList)}


def list_from_bytes(blob: Buffer) -> DescriptorList:
    """The list that ``to_bytes`` wrote.

    Raises:
        nixlMismatchError: it isn't one, from the first byte to the last.
    """
    try:
        reader = Reader(_WHAT, blob, _MAGIC, _VERSION)
        form, memory = reader.u8(), reader.u8()
        if form not in _FORMS or memory >= len(nixl_mem_t):
            raise MetadataError(f"{_WHAT}: form {form} and memory {memory}, which this Penstock doesn't know")
        table = reader.u64s(most=3 * _MOST_ROWS, width=3)
        found = _FORMS[form](nixl_mem_t(memory), table)
        found._read(reader)
        reader.end()
    except MetadataError as error:
        raise nixlMismatchError(str(error)) from error
    return found


def _numbers_of_all(rows: list[Sequence[Any]]) -> array[int]:
    """Rows one after another; at once, for there may be 100,000, and one by one to say which is wrong."""
    try:
        if set(map(len, rows)) <= {3}:
            return array("Q", itertools.chain.from_iterable(rows))
    except (TypeError, OverflowError, ValueError):
        pass
    return array("Q", itertools.chain.from_iterable(_numbers_of(row, 3) for row in rows))


def _numbers_of(row: Sequence[Any], width: int) -> array[int]:
    try:
        numbers = array("Q", row)
    except (TypeError, OverflowError, ValueError) as error:
        raise nixlInvalidParamError(f"{row!r}: {error}; give whole numbers from 0 to 2**64 - 1") from error
    if len(numbers) != width:
        raise nixlInvalidParamError(f"{row!r} has {len(numbers)} numbers; give (address, length, device)")
    return numbers


def _checked(rows: npt.NDArray[Any]) -> UInt64s:
    if rows.ndim != 2 or rows.shape[1] != 3 or rows.dtype.kind not in "ui":
        raise nixlInvalidParamError(f"an array {rows.shape} of {rows.dtype}; give (N, 3) of uint64 or int64")
    if rows.dtype.kind == "i" and rows.size and rows.min() < 0:
        raise nixlInvalidParamError(f"an array with {rows.min()}; give whole numbers from 0 to 2**64 - 1")
    return np.ascontiguousarray(rows, np.uint64)
