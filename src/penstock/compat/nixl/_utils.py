"""NIXL's helpers for examples and tests: memory by address."""

from __future__ import annotations

import ctypes

from penstock import _core
from penstock.errors import ConfigError, NotRegistered

__all__ = ["ba_buf", "free_passthru", "malloc_passthru", "verify_transfer"]

# Memory that other processes can map: peers on this host reach it by load and store.
_blocks: dict[int, _core.Segment] = {}


def malloc_passthru(size: int) -> int:
    """The address of ``size`` new bytes, zeros, at a multiple of 4096; they stay until ``free_passthru``."""
    if size < 1:
        raise ConfigError(f"malloc_passthru of {size} bytes; give at least 1")
    block = _core.Segment.create(size)
    _blocks[block.address] = block
    return int(block.address)


def free_passthru(address: int) -> None:
    """Gives memory back that ``malloc_passthru`` returned; deregister it first."""
    if _blocks.pop(address, None) is None:
        raise NotRegistered(f"{address:#x} isn't an address that malloc_passthru returned, or it was freed before")


def ba_buf(address: int, size: int) -> None:
    """Fills memory with the byte 0xBA."""
    ctypes.memset(address, 0xBA, size)


def verify_transfer(first: int, second: int, size: int) -> bool:
    """Whether two ranges of memory hold the same bytes."""
    return ctypes.string_at(first, size) == ctypes.string_at(second, size)
