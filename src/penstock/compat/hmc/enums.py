"""HMC's enumerations, with its own numbers, and how an argument becomes one of them."""

from __future__ import annotations

import operator
from enum import IntEnum
from typing import TypeVar

from penstock.errors import ConfigError

__all__ = ["ConnType", "CtrlTransport", "MemoryType", "Status", "status_t"]


class Status(IntEnum):
    """How an operation ended."""

    SUCCESS = 0
    ERROR = 1
    UNSUPPORT = 2
    INVALID_CONFIG = 3
    TIMEOUT = 4
    NOT_FOUND = 5


class MemoryType(IntEnum):
    """Where a buffer lies. ``DEFAULT`` is the accelerator that is here, else the CPU."""

    DEFAULT = 0
    CPU = 1
    NVIDIA_GPU = 2
    AMD_GPU = 3
    CAMBRICON_MLU = 4
    MOORE_GPU = 5


class ConnType(IntEnum):
    """Which way bytes go. ``UCX`` takes the fastest way that there is, shared memory on one host included."""

    RDMA = 0
    UCX = 1


class CtrlTransport(IntEnum):
    """Which socket carries control tags."""

    TCP = 0
    UDS = 1


status_t = Status

_Kind = TypeVar("_Kind", bound=IntEnum)


def member(kind: type[_Kind], value: object, name: str) -> _Kind:
    """The member of ``kind`` that ``value`` is, or is the number of.

    Raises:
        TypeError: nothing like a whole number.
        ConfigError: a number that no member has.
    """
    if isinstance(value, kind):
        return value
    choices = ", ".join(f"{each.name} ({each.value})" for each in kind)
    try:
        if isinstance(value, bool | IntEnum):
            raise TypeError  # another enumeration's member: a mistake, not a number
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} is {value!r}; give a {kind.__name__}: {choices}") from None
    try:
        return kind(number)
    except ValueError:
        raise ConfigError(f"{name} is {number}; {kind.__name__} has {choices}") from None
