"""Penstock feeds accelerators from storage, inside a memory budget that you set.

``pack`` and ``pack_dir`` turn files into tar shards and a hashed manifest, ``load`` and ``vision.ImageFolderLoader``
bring them into a loop, ``resolve_manifest_hash`` pins what was loaded. Importing this package imports neither torch
nor any other optional library; names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock import errors, torch, vision
    from penstock.budget import Budget
    from penstock.dataset.manifest import Manifest
    from penstock.dataset.resolve import resolve_manifest_hash
    from penstock.distributed import DistributedDataLoader, DistributedLoader
    from penstock.distributed.job import run_job
    from penstock.errors import PenstockError
    from penstock.loader import Batch, DataLoader, LoaderOptions, Mixture, load, merge_states, mix, pad, padded_bytes
    from penstock.observe import metrics
    from penstock.packing import pack, pack_dir
    from penstock.workers.sample import Sample

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Budget",
    "DataLoader",
    "DistributedDataLoader",
    "DistributedLoader",
    "LoaderOptions",
    "Manifest",
    "Mixture",
    "PenstockError",
    "Sample",
    "__version__",
    "errors",
    "load",
    "merge_states",
    "metrics",
    "mix",
    "pack",
    "pack_dir",
    "pad",
    "padded_bytes",
    "resolve_manifest_hash",
    "run_job",
    "torch",
    "vision",
]

_HOMES = {
    "Batch": "penstock.loader",
    "Budget": "penstock.budget",
    "DataLoader": "penstock.loader",
    "DistributedDataLoader": "penstock.distributed",
    "DistributedLoader": "penstock.distributed",
    "LoaderOptions": "penstock.loader",
    "Manifest": "penstock.dataset.manifest",
    "Mixture": "penstock.loader",
    "PenstockError": "penstock.errors",
    "Sample": "penstock.workers.sample",
    "load": "penstock.loader",
    "merge_states": "penstock.loader",
    "mix": "penstock.loader",
    "pack": "penstock.packing",
    "pack_dir": "penstock.packing",
    "pad": "penstock.loader",
    "padded_bytes": "penstock.loader",
    "resolve_manifest_hash": "penstock.dataset.resolve",
    "run_job": "penstock.distributed.job",
}
_MODULES = {
    "errors": "penstock.errors",
    "metrics": "penstock.observe.metrics",
    "torch": "penstock.torch",
    "vision": "penstock.vision",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name not in _HOMES:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
