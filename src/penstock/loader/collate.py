"""Collation: the results of a batch's samples into one, in the memory that they lie in.

Columns hold arrays of one size back to back, so stacking them is a view. What is not back to back (arrays that are to
be padded, bytes of different lengths) is moved together in place: cell i never begins before the place that its bytes
go to, and the first is moved first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from penstock.errors import ConfigError
from penstock.order.order import Int64Array
from penstock.sizes import whole_number
from penstock.workers.results import Column, Form, Outgrown, result_at, typed
from penstock.workers.sample import UInt8Array

__all__ = ["Collate", "Pad", "Ragged", "Stack", "collated", "pad"]


class Ragged(NamedTuple):
    """Bytes of different lengths back to back: those of sample i are ``payload[offsets[i]:offsets[i + 1]]``.

    Attributes:
        payload: uint8 ``[bytes]``.
        offsets: int64 ``[n + 1]``.
    """

    payload: UInt8Array
    offsets: Int64Array


@dataclass(frozen=True, slots=True)
class Stack:
    """The default: arrays of one shape become one array ``[n, ...]``, numbers an array ``[n]``, bytes a ``Ragged``.

    Text becomes a list; tuples, lists and dicts go by field.
    """


@dataclass(frozen=True, slots=True)
class Pad:
    """As ``Stack``, and arrays of different shapes are filled up to the largest; see ``pad``."""

    value: float | Mapping[str, float]
    multiple_of: int

    def filled(self, column: Column, forms: Sequence[Form], path: str) -> Any:
        """Arrays of different shapes as one.

        Raises:
            Outgrown: it needs larger cells.
            ConfigError: they differ in more than shape.
        """
        kind, dtype, first = forms[0]
        if any(form[0] != kind or form[1] != dtype or len(form[2]) != len(first) for form in forms):
            raise ConfigError(
                f"the results{path} differ in type or number of dimensions, {_text(forms[0])} and "
                f"{_text(_other(forms))} among them, so they can't be padded; make them alike in the transform"
            )
        shape = [max(sizes) for sizes in zip(*(form[2] for form in forms), strict=True)]
        if shape:
            shape[0] = -(-shape[0] // self.multiple_of) * self.multiple_of
        size = math.prod(shape) * _item_bytes(kind, dtype)
        if size > column.cell:
            raise Outgrown([*[0] * column.number, size])
        for index, form in enumerate(forms):
            source = typed(column.memory, kind, dtype, form[2], column.place(index))
            source = source.clone() if kind == "tensor" else source.copy()
            place = typed(column.memory, kind, dtype, shape, column.base + index * size)
            place[...] = self._value(path)
            place[tuple(slice(length) for length in form[2])] = source
        return typed(column.memory, kind, dtype, [len(forms), *shape], column.base)

    def _value(self, path: str) -> float:
        if not isinstance(self.value, Mapping):
            return self.value
        return self.value.get(path.removeprefix("['").removesuffix("']"), 0)


def pad(value: float | Mapping[str, float] = 0, *, multiple_of: int = 1) -> Pad:
    """A ``collate`` that fills arrays of different shapes up to the largest of their batch; the rest as by default.

    Args:
        value: what to fill with; or a dict of values by field, 0 for those that it doesn't name.
        multiple_of: the first dimension of arrays, their length, is filled up to a multiple of this.

    Raises:
        ConfigError: ``multiple_of`` is below 1.
    """
    return Pad(value, whole_number("multiple_of", multiple_of, least=1))


Collate: TypeAlias = Stack | Pad | Callable[[list[Any]], Any]
"""``Stack``, ``Pad``, or a function from the list of a batch's results to what ``next()`` returns."""


def collated(forms: Sequence[Form], columns: Sequence[Column], collate: Collate, usual: Form | None = None) -> Any:
    """What ``next()`` returns for a batch of these results; without any, a batch of none as ``usual`` as can be.

    Raises:
        Outgrown: padding needs larger cells.
        ConfigError: results that can't be joined; or whatever the user's own function raises.
    """
    if isinstance(collate, Stack | Pad):
        if not forms:
            return _none_of(usual)
        return _joined(forms, iter(columns), collate, "")
    return collate([result_at(form, index, iter(columns)) for index, form in enumerate(forms)])


def _none_of(form: Form | None) -> Any:
    """A batch of no results of this form; an empty list where nobody knows it."""
    kind = "list" if form is None else form[0]
    if form is None or kind == "text":
        return []
    if kind in ("tuple", "list"):
        items = [_none_of(item) for item in form[1]]
        return tuple(items) if kind == "tuple" else items
    if kind == "dict":
        return {key: _none_of(item) for key, item in form[1]}
    if kind == "bytes":
        return Ragged(np.empty(0, dtype=np.uint8), np.zeros(1, dtype=np.int64))
    return None if kind == "none" else typed(np.empty(0, dtype=np.uint8), kind, form[1], [0, *form[2]], 0)


def _joined(forms: Sequence[Form], found: Iterator[Column], how: Stack | Pad, path: str) -> Any:
    kind = forms[0][0]
    if any(form[0] != kind for form in forms) and not all(_is_number(form) for form in forms):
        raise _unlike(forms, path)
    if kind in ("tuple", "list"):
        if any(len(form[1]) != len(forms[0][1]) for form in forms):
            raise _unlike(forms, path)
        fields = zip(*(form[1] for form in forms), strict=True)
        items = [_joined(items, found, how, f"{path}[{i}]") for i, items in enumerate(fields)]
        return tuple(items) if kind == "tuple" else items
    if kind == "dict":
        return _joined_dicts(forms, found, how, path)
    if kind == "none":
        return None
    column = next(found)
    if kind == "text":
        return [result_at(form, index, iter([column])) for index, form in enumerate(forms)]
    return _joined_bytes(forms, column) if kind == "bytes" else _joined_arrays(forms, column, how, path)


def _joined_dicts(forms: Sequence[Form], found: Iterator[Column], how: Stack | Pad, path: str) -> dict[str, Any]:
    keys = [key for key, _ in forms[0][1]]
    if any([key for key, _ in form[1]] != keys for form in forms):
        raise _unlike(forms, path)
    return {
        key: _joined([form[1][field][1] for form in forms], found, how, f"{path}[{key!r}]")
        for field, key in enumerate(keys)
    }


def _joined_arrays(forms: Sequence[Form], column: Column, how: Stack | Pad, path: str) -> Any:
    kind, dtype, shape = forms[0]
    alike = all(form[1] == dtype and form[2] == shape for form in forms)
    if not alike and all(_is_number(form) for form in forms):
        numbers = [result_at(form, index, iter([column])) for index, form in enumerate(forms)]
        return np.array(numbers, dtype=np.result_type(*(form[1] for form in forms)))
    if isinstance(how, Pad) and (not alike or (shape and shape[0] % how.multiple_of)):
        return how.filled(column, forms, path)
    if not alike:
        raise ConfigError(
            f"the results{path} have different shapes or types, {_text(forms[0])} and {_text(_other(forms))} among "
            "them, which can't be stacked; give collate=penstock.pad() or one of your own, or make them alike in the "
            "transform"
        )
    size = math.prod(shape) * _item_bytes(kind, dtype)
    if size != column.cell:
        _move_together(column, [size] * len(forms))
    return typed(column.memory, kind, dtype, [len(forms), *shape], column.base)


def _joined_bytes(forms: Sequence[Form], column: Column) -> Ragged:
    sizes = [form[1] for form in forms]
    end = _move_together(column, sizes)
    offsets = np.zeros(len(forms) + 1, dtype=np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return Ragged(column.memory[column.base : end], offsets)


def _move_together(column: Column, sizes: Sequence[int]) -> int:
    """Move what cells hold to the beginning of their column, back to back; returns its end."""
    end = column.base
    for index, size in enumerate(sizes):
        start = column.place(index)
        if start != end:
            column.memory[end : end + size] = column.memory[start : start + size]
        end += size
    return end


def _is_number(form: Form) -> bool:
    return form[0] == "number" or (form[0] == "array" and not form[2])


def _item_bytes(kind: str, dtype: str) -> int:
    if kind != "tensor":
        return np.dtype(dtype).itemsize
    import torch

    size: int = getattr(torch, dtype).itemsize
    return size


def _other(forms: Sequence[Form]) -> Form:
    """The first that isn't like the first."""
    return next((form for form in forms if form != forms[0]), forms[0])


def _text(form: Form) -> str:
    return " ".join(str(part) for part in form)


def _unlike(forms: Sequence[Form], path: str) -> ConfigError:
    other = next((form for form in forms if form[0] != forms[0][0]), _other(forms))
    return ConfigError(
        f"the results{path} differ in form, {_text(forms[0])} and {_text(other)} among them, so they make no batch; "
        "return the same fields for every sample, or give a collate of your own"
    )
