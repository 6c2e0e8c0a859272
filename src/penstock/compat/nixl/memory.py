"""NIXL's names for kinds of memory and for what a transfer does."""

from __future__ import annotations

from enum import Enum

from penstock.transfer.operation import Operation
from penstock.transfer.table import Memory

__all__ = ["MEMORY_KINDS", "OPERATIONS", "memory_of", "nixl_mem_t"]


class nixl_mem_t(Enum):
    """A kind of memory; ``name`` is the long name that queries report."""

    DRAM_SEG = 0
    VRAM_SEG = 1
    BLK_SEG = 2
    OBJ_SEG = 3
    FILE_SEG = 4


MEMORY_KINDS: dict[str, nixl_mem_t] = {
    "DRAM": nixl_mem_t.DRAM_SEG,
    "VRAM": nixl_mem_t.VRAM_SEG,
    "BLOCK": nixl_mem_t.BLK_SEG,
    "OBJ": nixl_mem_t.OBJ_SEG,
    "FILE": nixl_mem_t.FILE_SEG,
    "cpu": nixl_mem_t.DRAM_SEG,  # these two are deprecated
    "cuda": nixl_mem_t.VRAM_SEG,
}

# The keys are what programs give; any other is a KeyError, before an argument is looked at.
OPERATIONS: dict[str, Operation] = {"WRITE": "WRITE", "READ": "READ"}

_MOVED: dict[nixl_mem_t, Memory] = {nixl_mem_t.DRAM_SEG: "DRAM", nixl_mem_t.VRAM_SEG: "VRAM"}


def memory_of(kind: nixl_mem_t) -> Memory | None:
    """Penstock's name of this memory; None = it isn't memory that an agent moves."""
    return _MOVED.get(kind)
