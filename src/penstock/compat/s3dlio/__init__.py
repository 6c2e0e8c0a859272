"""s3dlio's names for loading: ``from penstock.compat import s3dlio`` instead of ``import s3dlio``.

``PyLoaderOptions`` and the loaders and datasets of s3dlio 0.8, over ``penstock.loader``: one budget, one order, one
error tree. ``docs/options.md`` says what each knob does, and ``docs/s3dlio.md`` where Penstock decides otherwise. The
datasets for torch are in ``penstock.compat.s3dlio.torch`` as well, those for JAX and TensorFlow in
``penstock.compat.s3dlio.jax_tf``; neither library is imported before one of them is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from penstock.compat.s3dlio.asynchronous import (
    PyAsyncDataLoader,
    PyBytesAsyncDataLoader,
    PyS3AsyncDataLoader,
    create_async_loader,
)
from penstock.compat.s3dlio.dataset import PyDataset, PyS3Dataset, PyVecDataset, create_dataset
from penstock.compat.s3dlio.options import PyLoaderOptions
from penstock.loader.batch import require_torch

if TYPE_CHECKING:
    from penstock.compat.s3dlio.jax_tf import JaxIterable, S3JaxIterable, make_tf_dataset
    from penstock.compat.s3dlio.torch import (
        ObjectStoreIterableDataset,
        ObjectStoreMapDataset,
        S3IterableDataset,
        S3MapDataset,
    )

__all__ = [
    "JaxIterable",
    "ObjectStoreIterableDataset",
    "ObjectStoreMapDataset",
    "PyAsyncDataLoader",
    "PyBytesAsyncDataLoader",
    "PyDataset",
    "PyLoaderOptions",
    "PyS3AsyncDataLoader",
    "PyS3Dataset",
    "PyVecDataset",
    "S3IterableDataset",
    "S3JaxIterable",
    "S3MapDataset",
    "create_async_loader",
    "create_dataset",
    "make_tf_dataset",
]

_HOMES = {
    "jax_tf": ("JaxIterable", "S3JaxIterable", "make_tf_dataset"),
    "torch": ("ObjectStoreIterableDataset", "ObjectStoreMapDataset", "S3IterableDataset", "S3MapDataset"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name == home or name in names:
            if home == "torch":
                require_torch()
            module = importlib.import_module(f"{__name__}.{home}")
            return module if name == home else getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
