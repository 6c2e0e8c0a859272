"""Batches as tensors, whatever their form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from penstock.errors import ConfigError
from penstock.loader import Batch

__all__ = ["map_tensors", "pinned", "require_pinning", "tensors_of"]


def tensors_of(batch: Any) -> Any:
    """A batch of raw bytes as the tensors of ``to_torch_with_labels()``, or of ``to_torch()``; arrays as tensors.

    Nothing is copied: tensors hold the batch's charge. What torch has no tensor for, such as text, stays.
    """
    if not isinstance(batch, Batch):
        return _map_leaves(batch, _tensor_of)
    if batch.label_ids_array is None:
        return batch.to_torch(copy=False)
    return batch.to_torch_with_labels(copy=False)


def map_tensors(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same tuples, lists and dicts with every tensor in them changed; what is no tensor stays."""
    return _map_leaves(batch, lambda leaf: change(leaf) if isinstance(leaf, torch.Tensor) else leaf)


def _map_leaves(batch: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(batch, Mapping):
        return {key: _map_leaves(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        changed = [_map_leaves(value, change) for value in batch]
        return type(batch)(*changed) if hasattr(batch, "_fields") else type(batch)(changed)
    return change(batch)


def _tensor_of(leaf: Any) -> Any:
    if not isinstance(leaf, np.ndarray):
        return leaf
    try:
        return torch.from_numpy(leaf if leaf.flags.writeable else leaf.copy())
    except TypeError:  # of text, or of objects
        return leaf


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in page-locked memory: a copy, unless it lies there. torch keeps and reuses that memory."""
    return tensor if tensor.is_pinned() else tensor.pin_memory()


def require_pinning() -> None:
    """Say whether there is anything that page-locked memory is for.

    Raises:
        ConfigError: there isn't.
    """
    if not torch.cuda.is_available():
        why = "this build of torch has no CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        raise ConfigError(f"pin_memory is True, and {why}, so there is nothing to copy to; leave it False")
