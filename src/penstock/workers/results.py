"""What transforms return: a tree of arrays, as bytes in memory that was charged and a form that JSON can hold.

A result is an array, tensor, bytes, text, number, None, or a tuple, list or dict of results. Its *form* says all but
the bytes. The bytes of each of its arrays lie in a *column* of their own, one cell for each sample of the batch, so
that arrays of one size lie back to back: stacking them is looking at them. How large cells must be is learned from
what has been seen.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import gt
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from penstock.workers.sample import UInt8Array

__all__ = [
    "SLACK_BYTES",
    "Column",
    "Form",
    "Layout",
    "Outgrown",
    "Sizes",
    "Unsendable",
    "columns",
    "result_at",
    "typed",
    "write",
]

Form: TypeAlias = list[Any]
"""``["array", dtype, shape]``, ``["number", dtype, []]``, ``["tensor", dtype, shape]``, ``["bytes", size]``,
``["text", size]``, ``["none"]``, ``["tuple", [forms]]``, ``["list", [forms]]``, ``["dict", [[key, form], ...]]``."""

_ARRAYS = (np.ndarray, np.generic)
_NUMBERS = (int, float)  # and so bool
_ROWS = (tuple, list)
_ALIGNED_BYTES = 64  # a cache line, as regions are
_MOST_ALIGNED = 16  # columns that are
SLACK_BYTES = _ALIGNED_BYTES * _MOST_ALIGNED
"""What aligning columns may cost a batch."""


class Outgrown(Exception):
    """A result doesn't fit into its cells; ``sizes`` are the bytes of its arrays."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__(sizes)
        self.sizes = tuple(sizes)


class Unsendable(TypeError):
    """A result with a part, at ``path``, that isn't made of arrays, bytes, text and numbers."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what
        self.path = ""

    def __str__(self) -> str:
        return (
            f"the result{self.path} is {self.what}; return arrays, tensors, bytes, text, numbers or None, or tuples, "
            "lists and dicts of them (np.asarray(image) for a picture)"
        )


@dataclass(frozen=True, slots=True)
class Sizes:
    """The most bytes that each array of a result has taken so far, and whether that has changed."""

    most: tuple[int, ...] = ()
    varying: tuple[bool, ...] = ()

    def grown(self, sizes: Sequence[int]) -> Sizes:
        """With a result of these sizes seen as well."""
        count = max(len(sizes), len(self.most))
        old = [*self.most, *[-1] * (count - len(self.most))]
        new = [*sizes, *[0] * (count - len(sizes))]
        varying = [*self.varying, *[False] * (count - len(self.varying))]
        return Sizes(
            tuple(max(0, before, now) for before, now in zip(old, new, strict=True)),
            tuple(was or 0 <= before < now for was, before, now in zip(varying, old, new, strict=True)),
        )

    @property
    def total_bytes(self) -> int:
        """Of a result whose arrays are all at their largest."""
        return sum(self.most)

    def cells(self, most_bytes: int | None) -> tuple[int, ...]:
        """Bytes of a cell of each column: what was seen, and room where that changes, so that it seldom has to grow.

        Args:
            most_bytes: of all cells of a sample together, at least ``total_bytes``: those that change share what is
                left of it. None = no limit: they get twice what was seen.
        """
        share = None if most_bytes is None else (most_bytes - self.total_bytes) // max(1, sum(self.varying))
        cells = []
        for size, varying in zip(self.most, self.varying, strict=True):
            wanted = size + (size if share is None else share) if varying else size
            # Whole numbers of anything that is 16 bytes or less; never more than is allowed.
            cells.append(wanted - wanted % 16 if varying and wanted - wanted % 16 >= size else wanted)
        return tuple(cells)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the results of a batch lie: cell i of column k begins at ``bases[k] + i * cells[k]``.

    Attributes:
        cells: bytes of a cell of each column.
        count: results.
        bases: where each column begins.
        total_bytes: end of the last one.
    """

    cells: tuple[int, ...]
    count: int
    bases: tuple[int, ...] = field(init=False)
    total_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        step = _ALIGNED_BYTES if len(self.cells) <= _MOST_ALIGNED else 1
        bases, end = [], 0
        for cell in self.cells:
            bases.append(end)
            end += -(-cell * self.count // step) * step
        object.__setattr__(self, "bases", tuple(bases))
        object.__setattr__(self, "total_bytes", end)


def write(result: Any, index: int, layout: Layout, memory: UInt8Array) -> Form:
    """Put the result of sample ``index`` into its cells, and return its form.

    Raises:
        Outgrown: it doesn't fit; nothing was written.
        Unsendable: it has a part that can't be.
    """
    arrays: list[npt.NDArray[Any]] = []
    form = _form(result, arrays)
    sizes = [array.nbytes for array in arrays]
    if len(sizes) > len(layout.cells) or any(map(gt, sizes, layout.cells)):
        raise Outgrown(sizes)
    for array, base, cell in zip(arrays, layout.bases, layout.cells, strict=False):
        place = np.ndarray(array.shape, array.dtype, memory.data, base + index * cell)
        place[...] = array
    return form


def _form(value: Any, arrays: list[npt.NDArray[Any]]) -> Form:
    if isinstance(value, _ARRAYS):
        array = np.asarray(value)
        kind = array.dtype
        if kind.hasobject or kind.kind == "V":
            raise Unsendable(f"an array of {kind}")
        arrays.append(array)
        return ["array", kind.str, list(array.shape)]
    if isinstance(value, _NUMBERS):
        return _number_form(value, arrays)
    if isinstance(value, _ROWS):
        return ["tuple" if isinstance(value, tuple) else "list", _item_forms(enumerate(value), arrays)]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise Unsendable("a dict with a key that is no text")
        return ["dict", [[key, form] for key, form in zip(value, _item_forms(value.items(), arrays), strict=True)]]
    return _leaf_form(value, arrays)


def _item_forms(items: Iterable[tuple[Any, Any]], arrays: list[npt.NDArray[Any]]) -> list[Form]:
    forms = []
    key: Any = None
    try:
        for key, item in items:  # noqa: B007 - the last one is where it failed
            forms.append(_form(item, arrays))
    except Unsendable as error:
        error.path = f"[{key!r}]{error.path}"
        raise
    return forms


def _leaf_form(value: Any, arrays: list[npt.NDArray[Any]]) -> Form:
    if value is None:
        return ["none"]
    if isinstance(value, str):
        arrays.append(_uint8(value.encode("utf-8", "surrogatepass")))
        return ["text", arrays[-1].nbytes]
    if isinstance(value, bytes | bytearray | memoryview):
        arrays.append(_uint8(value))
        return ["bytes", arrays[-1].nbytes]
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        arrays.append(tensor.reshape(-1).view(torch.uint8).numpy())
        return ["tensor", str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
    raise Unsendable(f"a {type(value).__module__}.{type(value).__qualname__}")


def _number_form(value: float, arrays: list[npt.NDArray[Any]]) -> Form:
    kind = np.bool_ if isinstance(value, bool) else np.int64 if isinstance(value, int) else np.float64
    try:
        array = np.array(value, dtype=kind)
    except OverflowError as error:
        raise Unsendable("a number of more than 64 bits") from error
    arrays.append(array)
    return ["number", array.dtype.str, []]


def _uint8(data: bytes | bytearray | memoryview) -> UInt8Array:
    return np.frombuffer(data, dtype=np.uint8) if len(data) else np.empty(0, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Column:
    """One array of each result of a batch: cell i of ``memory`` begins at ``base + i * cell``."""

    memory: UInt8Array
    number: int
    base: int
    cell: int

    def place(self, index: int) -> int:
        """Where a cell begins."""
        return self.base + index * self.cell


def columns(layout: Layout, memory: UInt8Array) -> list[Column]:
    """All columns of a batch."""
    pairs = enumerate(zip(layout.bases, layout.cells, strict=True))
    return [Column(memory, number, base, cell) for number, (base, cell) in pairs]


def result_at(form: Form, index: int, found: Iterator[Column]) -> Any:
    """The result of sample ``index`` as ``write`` was given it, arrays as views without a copy."""
    kind = form[0]
    if kind in ("tuple", "list"):
        items = [result_at(item, index, found) for item in form[1]]
        return tuple(items) if kind == "tuple" else items
    if kind == "dict":
        return {key: result_at(item, index, found) for key, item in form[1]}
    if kind == "none":
        return None
    column = next(found)
    start = column.place(index)
    if kind in ("text", "bytes"):
        piece = column.memory[start : start + form[1]]
        return piece.tobytes().decode("utf-8", "surrogatepass") if kind == "text" else piece.data
    array = typed(column.memory, kind, form[1], form[2], start)
    return array.item() if kind == "number" else array


def typed(memory: UInt8Array, kind: str, dtype: str, shape: Sequence[int], start: int) -> Any:
    """An array or, where ``kind`` is ``tensor``, a tensor, over the bytes of ``memory`` from ``start`` on."""
    if kind != "tensor":
        return np.ndarray(shape, np.dtype(dtype), memory.data, start)
    import torch

    kind_of = getattr(torch, dtype)
    if not math.prod(shape):
        return torch.empty(list(shape), dtype=kind_of)
    return torch.frombuffer(memory.data, dtype=kind_of, count=math.prod(shape), offset=start).reshape(list(shape))
