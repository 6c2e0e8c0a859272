"""s3dlio's datasets for ``torch.utils.data.DataLoader``. Needs torch."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
from torch import distributed
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from penstock.compat.s3dlio.dataset import Samples
from penstock.compat.s3dlio.options import options_of
from penstock.compat.s3dlio.prefix import Prefix
from penstock.errors import ConfigError
from penstock.loader import LoaderOptions
from penstock.loader.options import AnyOptions

__all__ = [
    "ObjectStoreIterableDataset",
    "ObjectStoreMapDataset",
    "S3IterableDataset",
    "S3MapDataset",
    "SampleReader",
]

_NOT_WRITABLE = "The given buffer is not writable"
_PLACES = ("shard_rank", "shard_world_size", "worker_id", "num_workers_pytorch")


class SampleReader(io.BytesIO):
    """One sample as an open file."""

    def readall(self) -> bytes:
        """From here to the end."""
        return self.read()

    read_all = readall

    def __len__(self) -> int:
        return self.getbuffer().nbytes


class _Form:
    """What becomes of a sample's bytes; picklable."""

    def __init__(self, return_type: str, *, writable: bool, suppress_nonwritable_warning: bool) -> None:
        kind = str(return_type).lower()
        makers: dict[str, Callable[[bytes], Any]] = {"tensor": self._tensor, "bytes": bytes, "reader": SampleReader}
        if kind not in makers:
            raise ConfigError(f"return_type is {return_type!r}; choose one of {', '.join(makers)}")
        self._make = makers[kind]
        self._writable = writable
        self._quiet = suppress_nonwritable_warning

    def __call__(self, sample: bytes) -> Any:
        return self._make(sample)

    def _tensor(self, sample: bytes) -> torch.Tensor:
        if not sample:
            return torch.empty(0, dtype=torch.uint8)
        if self._writable:
            return torch.frombuffer(bytearray(sample), dtype=torch.uint8)
        if not self._quiet:
            return torch.frombuffer(sample, dtype=torch.uint8)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_NOT_WRITABLE, category=UserWarning)
            return torch.frombuffer(sample, dtype=torch.uint8)


class ObjectStoreIterableDataset(IterableDataset[Any]):
    """The samples below a URI, one at a time, as many as there are, in order or shuffled.

    It is listed once, where it is made: each pass, in each process, is over the same list. An error of a pass is raised
    where its next sample is asked for.

    Args:
        uri: as in ``PyDataset``.
        loader_opts: how to load; ``batch_size`` says how many samples are read together.
        enable_sharding: each rank of ``torch.distributed``, and each worker of torch's DataLoader, has a part of its
            own: together they have everything, and nothing twice. Without it each has everything.
        writable: tensors have memory that may be written to, at the cost of a copy. Others must not be written to.
        suppress_nonwritable_warning: keep torch from saying so.
        return_type: ``"tensor"`` (uint8 ``[n]``), ``"bytes"`` or ``"reader"`` (an open file).

    Raises:
        ConfigError: an argument that can't be.
    """

    def __init__(
        self,
        uri: str,
        *,
        loader_opts: AnyOptions | None = None,
        writable: bool = False,
        suppress_nonwritable_warning: bool = True,
        enable_sharding: bool = False,
        return_type: str = "tensor",
    ) -> None:
        self._form = _Form(return_type, writable=writable, suppress_nonwritable_warning=suppress_nonwritable_warning)
        self._options = options_of(loader_opts, batch_size=1, prefetch=8)
        self._sharded = enable_sharding
        places = {name: getattr(self._options, name) for name in _PLACES}
        if enable_sharding and places != {name: getattr(LoaderOptions(), name) for name in _PLACES}:
            raise ConfigError(f"enable_sharding finds out by itself what the options say as well: {places}; give one")
        self._prefix = Prefix.find(uri)

    @classmethod
    def from_prefix(
        cls,
        uri: str,
        *,
        enable_sharding: bool = False,
        writable: bool = False,
        suppress_nonwritable_warning: bool = True,
        return_type: str = "tensor",
        **loader_opts: Any,
    ) -> Self:
        """The same, with fields of ``LoaderOptions`` as keywords: ``batch_size`` is 1 and ``prefetch`` 8 by default."""
        return cls(
            uri,
            loader_opts=loader_opts,
            writable=writable,
            suppress_nonwritable_warning=suppress_nonwritable_warning,
            enable_sharding=enable_sharding,
            return_type=return_type,
        )

    def __iter__(self) -> Iterator[Any]:
        options = _own_part(self._options) if self._sharded else self._options
        return map(self._form, self._prefix.samples(options))


class ObjectStoreMapDataset(Dataset[Any]):
    """The samples below a URI by their numbers, for torch's samplers. Goes through pickle and ``fork()``.

    Args:
        uri: as in ``PyDataset``.
        reader_mode: ``"sequential"``, or ``"range"``: in parts, several at once.
        part_size: bytes of a part.
        max_inflight_parts: parts of one sample that are read at once.
        writable: as in ``ObjectStoreIterableDataset``.
        suppress_nonwritable_warning: the same.
        return_type: the same.

    Raises:
        ConfigError: an argument that can't be.
    """

    def __init__(
        self,
        uri: str,
        *,
        reader_mode: str = "sequential",
        part_size: int = 8 << 20,
        max_inflight_parts: int = 4,
        writable: bool = False,
        suppress_nonwritable_warning: bool = True,
        return_type: str = "tensor",
    ) -> None:
        self._form = _Form(return_type, writable=writable, suppress_nonwritable_warning=suppress_nonwritable_warning)
        reading = {"reader_mode": reader_mode, "part_size": part_size, "max_inflight_parts": max_inflight_parts}
        self._samples = Samples(Prefix.find(uri), options_of(reading))

    @classmethod
    def from_prefix(cls, uri: str, **arguments: Any) -> Self:
        """The same as the constructor."""
        return cls(uri, **arguments)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Any:
        return self._form(self._samples.read(index))


class S3IterableDataset(ObjectStoreIterableDataset):
    """Deprecated: ``ObjectStoreIterableDataset``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        warnings.warn(
            "S3IterableDataset is deprecated; use ObjectStoreIterableDataset", DeprecationWarning, stacklevel=2
        )
        super().__init__(*args, **kwargs)


class S3MapDataset(ObjectStoreMapDataset):
    """Deprecated: ``ObjectStoreMapDataset``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        warnings.warn("S3MapDataset is deprecated; use ObjectStoreMapDataset", DeprecationWarning, stacklevel=2)
        super().__init__(*args, **kwargs)


def _own_part(options: LoaderOptions) -> LoaderOptions:
    """The options for this rank and worker. What is read together is cut finer at the end, which takes two."""
    joined = distributed.is_available() and distributed.is_initialized()
    worker = get_worker_info()
    return options.replace(
        batch_size=max(2, options.batch_size),
        shard_rank=distributed.get_rank() if joined else 0,
        shard_world_size=distributed.get_world_size() if joined else 1,
        worker_id=0 if worker is None else worker.id,
        num_workers_pytorch=1 if worker is None else worker.num_workers,
    )
