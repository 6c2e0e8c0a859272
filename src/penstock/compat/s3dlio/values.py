"""Values that are read as what they are and called to set them: ``opts.prefetch == 4`` and ``opts.prefetch(8)``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

if TYPE_CHECKING:
    from penstock.compat.s3dlio.options import PyLoaderOptions

__all__ = ["Flag", "FlagKnob", "Knob", "Number", "NumberKnob"]

V = TypeVar("V", bound="Number")


class Number(int):
    """A whole number in every respect; calling it gives options with another one."""

    _set: Callable[..., PyLoaderOptions]

    def __new__(cls, value: int, set_: Callable[..., PyLoaderOptions]) -> Self:
        """A value, and what a call of it does."""
        number = super().__new__(cls, value)
        number._set = set_
        return number

    def __call__(self, *args: Any, **kwargs: Any) -> PyLoaderOptions:
        """Options with another value."""
        return self._set(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)  # a copy, pickled or not, is a plain value: its options stayed behind


class Flag(Number):
    """True or False, in every respect but ``is`` and ``isinstance(..., bool)``, as ``bool`` can't have subclasses."""

    def __repr__(self) -> str:
        return repr(bool(self))

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(bool(self), spec)

    def __reduce__(self) -> tuple[Any, ...]:
        return bool, (bool(self),)


class Knob(Generic[V]):
    """Decorates a setter: as an attribute it is the value that it sets, and calling that value calls the setter."""

    _kind: type[V]

    def __init__(self, setter: Callable[..., PyLoaderOptions]) -> None:
        self._setter = setter
        self.__doc__ = setter.__doc__

    @overload
    def __get__(self, options: None, owner: type) -> Self: ...
    @overload
    def __get__(self, options: PyLoaderOptions, owner: type) -> V: ...
    def __get__(self, options: PyLoaderOptions | None, owner: type) -> Self | V:
        """The value, or from the class this."""
        if options is None:
            return self
        return self._kind(getattr(options.to_options(), self._setter.__name__), partial(self._setter, options))


class FlagKnob(Knob[Flag]):
    """Of a knob that is on or off."""

    _kind = Flag


class NumberKnob(Knob[Number]):
    """Of a knob that is a whole number."""

    _kind = Number
