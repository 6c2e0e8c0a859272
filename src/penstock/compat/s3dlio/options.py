"""``PyLoaderOptions``: s3dlio's fluent form of ``LoaderOptions``."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Final, SupportsIndex

import numpy as np

from penstock.compat.s3dlio.values import Flag, FlagKnob, NumberKnob
from penstock.loader.options import (
    AnyOptions,
    HasOptions,
    LoaderOptions,
    LoadingMode,
    MemoryFormat,
    ProcessContext,
    ReaderMode,
)
from penstock.order.draws import Weights
from penstock.order.sampler import AnySampler, DistributedSampler, RandomSampler, WeightedSampler

__all__ = ["PyLoaderOptions", "options_of"]

_MOST: Final = (1 << 63) - 1


class PyLoaderOptions:
    """How a loader loads. Every setter returns new options and leaves these as they are; later calls win.

    What has a setter under its own name reads as a value and is called to set it: ``opts.pin_memory`` and
    ``opts.pin_memory(True)``. ``to_options()`` is the record that this stands for; every loader takes either.

    Raises:
        OverflowError: (by setters) a number below 0, or above 2**63 - 1.
        TypeError: (by setters) a value of another type.
        ConfigError: (by setters) a value that can't act, such as a time-out of 0. A ``ValueError``.
    """

    __slots__ = ("_record",)

    _record: LoaderOptions

    def __init__(self) -> None:
        self._record = LoaderOptions()

    @classmethod
    def from_options(cls, given: AnyOptions) -> PyLoaderOptions:
        """The fluent form of a record, or of a dict of some of its fields."""
        made = cls()
        made._record = LoaderOptions.of(given)
        return made

    def to_options(self) -> LoaderOptions:
        """The record that this stands for."""
        return self._record

    def to_dict(self) -> dict[str, Any]:
        """Every field as a plain value, for JSON and YAML."""
        return self._record.to_dict()

    def replace(self, **changes: Any) -> PyLoaderOptions:
        """Other values for some of the fields, also for those that s3dlio sets only in a dict.

        Raises:
            ConfigError: a name that is no field, or a value that can't be.
        """
        return self.from_options(self._record.replace(**changes))

    def __eq__(self, other: object) -> bool:
        return self._record == other._record if isinstance(other, PyLoaderOptions) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._record)

    def __repr__(self) -> str:
        plain = LoaderOptions().to_dict()
        told = ", ".join(f"{name}={value!r}" for name, value in self.to_dict().items() if value != plain[name])
        return f"PyLoaderOptions({told})"

    # Setters

    def with_batch_size(self, size: SupportsIndex) -> PyLoaderOptions:
        """Samples in a batch; below 1 is 1."""
        return self.replace(batch_size=_unsigned("batch_size", size))

    @FlagKnob
    def drop_last(self, on: bool) -> PyLoaderOptions:
        """Leave out what fills no batch."""
        return self.replace(drop_last=_flag("drop_last", on))

    @FlagKnob
    def shuffle(self, on: bool, seed: SupportsIndex) -> PyLoaderOptions:
        """Visit samples in the order of a permutation; the seed is kept only where it is switched on."""
        kept = _unsigned("seed", seed)
        return self.replace(shuffle=True, seed=kept) if _flag("shuffle", on) else self.replace(shuffle=False)

    @NumberKnob
    def num_workers(self, count: SupportsIndex) -> PyLoaderOptions:
        """Threads or processes that read, decode and transform; 0 is as many as there are cores."""
        return self.replace(num_workers=_unsigned("num_workers", count))

    @NumberKnob
    def prefetch(self, count: SupportsIndex) -> PyLoaderOptions:
        """Batches that are built at once."""
        return self.replace(prefetch=_unsigned("prefetch", count))

    @FlagKnob
    def auto_tune(self, on: bool) -> PyLoaderOptions:
        """Turn prefetch, queue and threads while the loader runs."""
        return self.replace(auto_tune=_flag("auto_tune", on))

    @NumberKnob
    def part_size(self, size: SupportsIndex) -> PyLoaderOptions:
        """Bytes of a part that one request reads."""
        return self.replace(part_size=_unsigned("part_size", size))

    @NumberKnob
    def max_inflight_parts(self, count: SupportsIndex) -> PyLoaderOptions:
        """Parts of one object that are read at once."""
        return self.replace(max_inflight_parts=_unsigned("max_inflight_parts", count))

    def shard(self, rank: SupportsIndex, world_size: SupportsIndex) -> PyLoaderOptions:
        """Which of how many ranks this is."""
        return self.replace(shard_rank=_unsigned("rank", rank), shard_world_size=_unsigned("world_size", world_size))

    def worker(self, worker_id: SupportsIndex, num_workers: SupportsIndex) -> PyLoaderOptions:
        """Which of how many workers of the rank this is."""
        return self.replace(
            worker_id=_unsigned("worker_id", worker_id), num_workers_pytorch=_unsigned("num_workers", num_workers)
        )

    @FlagKnob
    def pin_memory(self, on: bool) -> PyLoaderOptions:
        """Tensors in page-locked memory."""
        return self.replace(pin_memory=_flag("pin_memory", on))

    @FlagKnob
    def persistent_workers(self, on: bool) -> PyLoaderOptions:
        """Keep threads, processes and memory for the next epoch."""
        return self.replace(persistent_workers=_flag("persistent_workers", on))

    def with_timeout(self, seconds: float) -> PyLoaderOptions:
        """How long a batch may take."""
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise TypeError(f"timeout is {seconds!r}; give seconds as a number")
        return self.replace(timeout_seconds=float(seconds))

    def use_spawn(self) -> PyLoaderOptions:
        """Start processes afresh."""
        return self.replace(multiprocessing_context="spawn")

    def use_fork(self) -> PyLoaderOptions:
        """Start processes as copies of this one."""
        return self.replace(multiprocessing_context="fork")

    def use_forkserver(self) -> PyLoaderOptions:
        """Start processes as copies of a small one."""
        return self.replace(multiprocessing_context="forkserver")

    def random_sampling(self, replacement: bool) -> PyLoaderOptions:
        """A permutation, or with replacement as many independent draws."""
        return self.replace(sampler_type=RandomSampler(_flag("replacement", replacement)))

    def weighted_sampling(self, weights: Weights) -> PyLoaderOptions:
        """Independent draws, each sample in proportion to its weight."""
        return self.replace(sampler_type=WeightedSampler(weights))

    def distributed_sampling(self, rank: SupportsIndex, world_size: SupportsIndex) -> PyLoaderOptions:
        """A permutation that ranks share; the shard fields stay what they are."""
        sampler = DistributedSampler(_unsigned("rank", rank), _unsigned("world_size", world_size))
        return self.replace(sampler_type=sampler)

    def channels_last(self) -> PyLoaderOptions:
        """Pixels as NHWC."""
        return self.replace(memory_format="channels_last")

    def channels_first(self) -> PyLoaderOptions:
        """Pixels as NCHW."""
        return self.replace(memory_format="channels_first")

    @FlagKnob
    def non_blocking(self, on: bool) -> PyLoaderOptions:
        """Copy to a GPU beside the computation."""
        return self.replace(non_blocking=_flag("non_blocking", on))

    def with_generator_seed(self, seed: SupportsIndex) -> PyLoaderOptions:
        """Mixed into the seed."""
        return self.replace(generator_seed=_unsigned("generator_seed", seed))

    @FlagKnob
    def enable_transforms(self, on: bool) -> PyLoaderOptions:
        """The transform that the loader is given may act."""
        return self.replace(enable_transforms=_flag("enable_transforms", on))

    @NumberKnob
    def collate_buffer_size(self, count: SupportsIndex) -> PyLoaderOptions:
        """Samples that are planned together; below 64 is 64."""
        return self.replace(collate_buffer_size=_unsigned("collate_buffer_size", count))

    # Presets

    def gpu_optimized(self) -> PyLoaderOptions:
        """See ``LoaderOptions.gpu_optimized``."""
        return self.from_options(self._record.gpu_optimized())

    def distributed_optimized(self, rank: SupportsIndex, world_size: SupportsIndex) -> PyLoaderOptions:
        """See ``LoaderOptions.distributed_optimized``."""
        place = _unsigned("rank", rank), _unsigned("world_size", world_size)
        return self.from_options(self._record.distributed_optimized(*place))

    def debug_mode(self) -> PyLoaderOptions:
        """See ``LoaderOptions.debug_mode``."""
        return self.from_options(self._record.debug_mode())

    # What has no setter under its own name

    @property
    def batch_size(self) -> int:
        """Samples in a batch."""
        return self._record.batch_size

    @property
    def seed(self) -> int:
        """Of everything random."""
        return self._record.seed

    @property
    def timeout_seconds(self) -> float | None:
        """How long a batch may take."""
        return self._record.timeout_seconds

    @property
    def shard_rank(self) -> int:
        """Which rank this is."""
        return self._record.shard_rank

    @property
    def shard_world_size(self) -> int:
        """How many ranks there are."""
        return self._record.shard_world_size

    @property
    def worker_id(self) -> int:
        """Which worker of the rank this is."""
        return self._record.worker_id

    @property
    def num_workers_pytorch(self) -> int:
        """How many workers the rank has."""
        return self._record.num_workers_pytorch

    @property
    def loading_mode(self) -> LoadingMode:
        """``"sequential"``, or a pool."""
        return self._record.loading_mode

    @property
    def reader_mode(self) -> ReaderMode:
        """How objects are read."""
        return self._record.reader_mode

    @property
    def multiprocessing_context(self) -> ProcessContext:
        """How processes are started."""
        return self._record.multiprocessing_context

    @property
    def sampler_type(self) -> AnySampler:
        """Which samples, how often and in which order."""
        return self._record.sampler_type

    @property
    def memory_format(self) -> MemoryFormat:
        """Of pixels."""
        return self._record.memory_format

    @property
    def generator_seed(self) -> int | None:
        """Mixed into the seed."""
        return self._record.generator_seed


def options_of(opts: AnyOptions | None, **otherwise: Any) -> LoaderOptions:
    """What a loader of s3dlio was given, as a record.

    Args:
        opts: options of any form, or None.
        otherwise: fields that a dict, or nothing, leaves to this loader.

    Raises:
        TypeError: something else.
        ConfigError: a dict with a name that is no field, or a value that can't be.
    """
    if opts is None or isinstance(opts, Mapping):
        return LoaderOptions.from_dict({**otherwise, **(opts or {})})
    if not isinstance(opts, LoaderOptions | HasOptions):
        raise TypeError(f"options are {opts!r}; give PyLoaderOptions, or a dict of some of their fields")
    return LoaderOptions.of(opts)


def _unsigned(name: str, value: SupportsIndex) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; give a whole number")
    try:
        number = int(operator.index(value))
    except TypeError as error:
        raise TypeError(f"{name} is {value!r}; give a whole number") from error
    if not 0 <= number <= _MOST:
        raise OverflowError(f"{name} is {number}; give 0 to {_MOST}")
    return number


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool | Flag | np.bool_):
        raise TypeError(f"{name} is {value!r}; give True or False")
    return bool(value)
