"""A batch: samples back to back in one region, and views of them that hold their charge."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from penstock.budget import Charge, Region
from penstock.errors import ClosedError, ConfigError, PenstockError
from penstock.loader.plan import Unit
from penstock.order.order import Int64Array

if TYPE_CHECKING:
    import torch

__all__ = ["Batch", "require_torch"]


class Batch:
    """Samples as raw bytes, back to back: sample i is ``payload[offsets[i]:offsets[i + 1]]``.

    The bytes live in the loader's budget. ``view``, ``array()``, ``sample()`` and DLPack show them without a copy; the
    charge returns to the budget when the batch and the last such view are gone, or at ``release()`` and when the last
    view is gone. ``payload``, ``to_torch()`` and ``to_torch_with_labels()`` copy: what they return is the caller's own
    and is not counted.
    """

    __slots__ = ("__weakref__", "_labels", "_offsets", "_region", "_rounding", "_sample_ids")

    def __init__(self, unit: Unit, region: Region, rounding: Charge) -> None:
        self._sample_ids = unit.sample_ids
        self._offsets = unit.dest_offsets()
        self._labels = unit.labels
        self._region: Region | None = region
        self._rounding = rounding  # what a tiny batch takes beyond its bytes

    def __len__(self) -> int:
        return len(self._sample_ids)

    def __repr__(self) -> str:
        return f"Batch(samples={len(self)}, payload_bytes={self.payload_bytes}, labelled={self._labels is not None})"

    def __iter__(self) -> Iterator[memoryview]:
        """The samples, each as a view without a copy."""
        view, offsets = self.view, self.offsets
        return (view[start:end] for start, end in pairwise(offsets))

    @property
    def payload_bytes(self) -> int:
        """Bytes of all samples together."""
        return int(self._offsets[-1])

    @property
    def sample_ids(self) -> list[int]:
        """Row of each sample in the manifest."""
        ids: list[int] = self._sample_ids.tolist()
        return ids

    @property
    def offsets(self) -> list[int]:
        """Where each sample starts in the payload, and the payload's end: n + 1 numbers, the first 0."""
        offsets: list[int] = self._offsets.tolist()
        return offsets

    @property
    def label_ids(self) -> list[int] | None:
        """Label of each sample, or None when they have none."""
        return None if self._labels is None else self._labels.tolist()

    @property
    def sample_ids_array(self) -> Int64Array:
        """``sample_ids`` as int64 ``[n]``."""
        return self._sample_ids

    @property
    def offsets_array(self) -> Int64Array:
        """``offsets`` as int64 ``[n + 1]``."""
        return self._offsets

    @property
    def label_ids_array(self) -> Int64Array | None:
        """``label_ids`` as int64 ``[n]``, or None."""
        return self._labels

    @property
    def payload(self) -> bytes:
        """All bytes, as a fresh copy that belongs to the caller."""
        return bytes(self.view)

    @property
    def view(self) -> memoryview:
        """All bytes without a copy; writable. The view holds the batch's charge.

        Raises:
            ClosedError: after ``release()``.
        """
        if self._region is None:
            raise ClosedError("this batch was released; take views before release(), they stay valid")
        return memoryview(self._region)[: self.payload_bytes]  # it is larger where samples were left out

    def sample(self, index: int) -> memoryview:
        """The bytes of one sample without a copy; holds the batch's charge.

        Args:
            index: of the sample in the batch; negative counts from its end.

        Raises:
            IndexError: there is no such sample.
        """
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"sample {index} of a batch of {count}; give 0 to {count - 1}")
        start, end = self._offsets[index % count : index % count + 2]
        return self.view[start:end]

    def array(self) -> npt.NDArray[np.uint8]:
        """All bytes as uint8 ``[payload_bytes]`` without a copy; holds the batch's charge."""
        return np.frombuffer(self.view, dtype=np.uint8)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        array = self.array()
        if copy or (dtype is not None and np.dtype(dtype) != array.dtype):
            return np.array(array, dtype=dtype)
        return array

    def __dlpack__(self, **kwargs: Any) -> Any:
        """The bytes as a DLPack capsule (uint8, CPU) without a copy; the consumer holds the batch's charge."""
        return self.array().__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # kDLCPU in dlpack.h

    def release(self) -> None:
        """Let go of the bytes before the batch itself goes; views taken before stay valid and keep the charge."""
        self._region = None
        self._rounding.release()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a batch can't be pickled or copied: its memory belongs to the loader; send batch.payload")

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def to_torch(self, *, copy: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As tensors: payload uint8 ``[bytes]``, offsets int64 ``[n + 1]``, sample ids int64 ``[n]``.

        Args:
            copy: True gives a private payload that the budget doesn't count; False one that shares the batch's memory
                and holds its charge until the tensor is gone.

        Raises:
            PenstockError: torch isn't installed.
        """
        torch = require_torch()
        payload = self.array().copy() if copy else self.array()
        return (
            torch.from_numpy(payload),
            torch.from_numpy(self._offsets.copy()),
            torch.from_numpy(self._sample_ids.copy()),
        )

    def to_torch_with_labels(
        self, *, copy: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """``to_torch()`` and the labels, int64 ``[n]``.

        Raises:
            ConfigError: the samples have no labels.
            PenstockError: torch isn't installed.
        """
        if self._labels is None:
            raise ConfigError(
                "these samples have no labels; pack with label_mode='imagefolder', or call to_torch() instead"
            )
        labels = require_torch().from_numpy(self._labels.copy())
        return (*self.to_torch(copy=copy), labels)


def require_torch() -> Any:
    """The torch module, imported when it is first needed.

    Raises:
        PenstockError: it isn't installed; the message names it.
    """
    try:
        import torch
    except ImportError as error:
        raise PenstockError("torch isn't installed; `pip install torch` to get tensors") from error
    return torch
