"""MX8 v0's names: ``from penstock.compat import mx8`` instead of ``import mx8``.

Arguments, results and errors are those of MX8, with the decisions that ``docs/design.md`` lists: what MX8 raised as
``ValueError`` or ``RuntimeError`` is one of ``penstock.errors``, which derive from them.
"""

from __future__ import annotations

from penstock import vision
from penstock.dataset.resolve import resolve_manifest_hash
from penstock.distributed import DistributedDataLoader
from penstock.loader import Batch as PyBatch
from penstock.loader import DataLoader, load
from penstock.packing import pack, pack_dir

__all__ = [
    "DataLoader",
    "DistributedDataLoader",
    "PyBatch",
    "load",
    "pack",
    "pack_dir",
    "resolve_manifest_hash",
    "vision",
]
