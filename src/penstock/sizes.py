"""Sizes as people write them: ``"512MiB"``, ``0.5``, ``1 << 30``."""

from __future__ import annotations

import operator
import re
from typing import SupportsIndex, TypeAlias

from penstock.errors import ConfigError

__all__ = ["Size", "available_memory_bytes", "boolean", "format_bytes", "parse_bytes", "whole_number"]

Size: TypeAlias = int | float | str
"""Bytes as an int, a share of this machine's memory as a float in (0, 1], or text such as ``"512MiB"``."""

_UNITS = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgtp", start=1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgtp", start=1)},
    **{letter: 1024**power for power, letter in enumerate("kmgtp", start=1)},
}
_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")
_ALLOWED = 'an int of bytes, text such as "512MiB", or a share of memory as a float in (0, 1]'


def parse_bytes(size: Size, *, name: str = "size") -> int:
    """Turn a size as a person writes it into bytes.

    ``KiB``, ``MiB``, … and the bare letters ``K``, ``M``, … are powers of 1024; ``KB``, ``MB``, … powers of 1000
    (IEC 80000-13). A float in (0, 1] is that share of the memory that this process may use: the machine's, or
    its memory cgroup's where that is less.

    Args:
        size: the size; case and white space don't matter.
        name: the argument's name, for the message.

    Returns:
        Bytes, at least 0.

    Raises:
        ConfigError: not a size.
    """
    if isinstance(size, bool):
        raise ConfigError(f"{name} is {size!r}; give {_ALLOWED}")
    if isinstance(size, int):
        if size < 0:
            raise ConfigError(f"{name} is {size}, which is negative; give {_ALLOWED}")
        return size
    if isinstance(size, float):
        if not 0 < size <= 1:
            raise ConfigError(f"{name} is {size!r}; a float is a share of memory in (0, 1]; give {_ALLOWED}")
        return int(size * available_memory_bytes())
    match = _TEXT.fullmatch(size) if isinstance(size, str) else None
    if match is None or match[2].lower() not in _UNITS:
        raise ConfigError(f"{name} is {size!r}, which is not a size; give {_ALLOWED}")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def whole_number(name: str, value: SupportsIndex, *, least: int = -(1 << 63), most: int = (1 << 63) - 1) -> int:
    """A whole number between two bounds, both allowed; NumPy's integers count as well, booleans don't.

    Raises:
        ConfigError: something else; the message names the argument.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not least <= number <= most:
        bounds = f"of at least {least}" if most == (1 << 63) - 1 else f"from {least} to {most}"
        raise ConfigError(f"{name} is {value!r}; give a whole number {bounds if least > -(1 << 63) else 'of 64 bits'}")
    return number


def available_memory_bytes() -> int:
    """Bytes of memory that this process may use: the machine's, or its cgroup's limit where that is less."""
    import psutil

    total = int(psutil.virtual_memory().total)
    return min([total, *_cgroup_limits()])


def _cgroup_limits() -> list[int]:
    limits = []
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path) as file:
                text = file.read().strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    return limits


def format_bytes(count: int | float) -> str:
    """Bytes as a person reads them, in powers of 1024: ``1536`` -> ``"1.5 KiB"``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} PiB"


def boolean(name: str, value: object) -> bool:
    """True or False, and nothing that is merely like them: ``"false"`` would be true.

    Raises:
        ConfigError: something else; the message names the argument.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; give True or False")
    return value
