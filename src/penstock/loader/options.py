"""``LoaderOptions``: every knob of a training loader in one record, which a YAML file can hold.

The names, the defaults and what is raised to its least value are s3dlio's. Every knob acts, or the loader that is
given it raises; ``docs/options.md`` says what each does, and what it costs.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Literal, Protocol, TypeAlias, runtime_checkable

from penstock.errors import ConfigError
from penstock.order.sampler import AnySampler, DistributedSampler, SequentialSampler, sampler_of, sampler_to_dict
from penstock.sizes import boolean, parse_bytes, whole_number

__all__ = [
    "AnyOptions",
    "AsyncPool",
    "HasOptions",
    "LoaderOptions",
    "LoadingMode",
    "MemoryFormat",
    "ProcessContext",
    "ReaderMode",
    "checked_knob",
]

_Check: TypeAlias = Callable[[str, Any], Any]
ReaderMode: TypeAlias = Literal["sequential", "range"]
MemoryFormat: TypeAlias = Literal["auto", "channels_first", "channels_last"]
ProcessContext: TypeAlias = Literal["spawn", "fork", "forkserver"]

_MOST_POOL: Final = 256
_LEAST_COLLATE: Final = 64


@dataclass(frozen=True, slots=True)
class AsyncPool:
    """A loading mode with much under way at once; batches still come in order.

    Attributes:
        pool_size: requests to an object store at once, 1 to 256.
        readahead_batches: batches that are built at once, at least 1.
    """

    pool_size: int = 64
    readahead_batches: int = 4

    def __post_init__(self) -> None:
        whole_number("pool_size", self.pool_size, least=1, most=_MOST_POOL)
        whole_number("readahead_batches", self.readahead_batches, least=1)


LoadingMode: TypeAlias = Literal["sequential"] | AsyncPool


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderOptions:
    """How a loader loads. Immutable; ``replace`` and the presets return another one.

    Attributes:
        batch_size: samples in a batch; below 1 is 1.
        drop_last: leave out what doesn't fill a step of all ranks.
        shuffle: visit samples in the order of a permutation.
        seed: of everything random.
        num_workers: threads or processes that read, decode and transform; 0 is as many as there are cores.
        prefetch: batches that are built at once; 0 leaves it to the loader.
        auto_tune: turn prefetch, queue and threads while the loader runs.
        loading_mode: ``"sequential"``, or an ``AsyncPool``.
        reader_mode: of object stores: ``"sequential"`` reads an object with one request at a time, ``"range"`` in
            parts, several at once.
        part_size: bytes, or text such as ``"8MiB"``, of a part; below 1 is 1.
        max_inflight_parts: of one object; below 1 is 1.
        shard_rank: which rank's samples, from 0.
        shard_world_size: how many ranks share the epoch; below 1 is 1.
        worker_id: which part of the rank's steps, from 0: of a loader inside of a torch DataLoader's worker.
        num_workers_pytorch: how many such workers there are; below 1 is 1.
        pin_memory: tensors in page-locked memory, from where a GPU copies on its own.
        persistent_workers: keep threads, processes and memory for ``set_epoch``.
        timeout_seconds: how long ``next()`` waits for a batch; None is ``PENSTOCK_STALL_TIMEOUT_S``.
        multiprocessing_context: how processes are started, where transforms run in processes.
        sampler_type: which samples, how often and in which order; the default leaves that to ``shuffle``.
        memory_format: of pixels: ``"channels_first"`` (NCHW), ``"channels_last"`` (NHWC), or as the loader has it.
        non_blocking: copies to a GPU run beside the computation.
        generator_seed: mixed into ``seed`` where it is given.
        enable_transforms: the transform that the loader is given may act.
        collate_buffer_size: samples that are planned together; below 64 is 64.

    Raises:
        ConfigError: a value that can't be; the message names the knob. A ``ValueError``.
    """

    batch_size: int = 32
    drop_last: bool = False
    shuffle: bool = False
    seed: int = 0
    num_workers: int = 0
    prefetch: int = 0
    auto_tune: bool = False
    loading_mode: LoadingMode = "sequential"
    reader_mode: ReaderMode = "sequential"
    part_size: int = 8 << 20
    max_inflight_parts: int = 4
    shard_rank: int = 0
    shard_world_size: int = 1
    worker_id: int = 0
    num_workers_pytorch: int = 1
    pin_memory: bool = False
    persistent_workers: bool = False
    timeout_seconds: float | None = None
    multiprocessing_context: ProcessContext = "spawn"
    sampler_type: AnySampler = field(default_factory=SequentialSampler)
    memory_format: MemoryFormat = "auto"
    non_blocking: bool = False
    generator_seed: int | None = None
    enable_transforms: bool = False
    collate_buffer_size: int = 1024

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))

    def replace(self, **changes: Any) -> LoaderOptions:
        """The same options with other values for some of them."""
        _refuse_unknown(changes)
        return replace(self, **changes)

    def gpu_optimized(self) -> LoaderOptions:
        """For training on a GPU: pinned, copied beside the computation, workers kept, NCHW, spawned processes."""
        return self.replace(
            pin_memory=True,
            persistent_workers=True,
            non_blocking=True,
            memory_format="channels_first",
            multiprocessing_context="spawn",
        )

    def distributed_optimized(self, rank: int, world_size: int) -> LoaderOptions:
        """``gpu_optimized`` for one of several ranks that share a permutation."""
        sampler = DistributedSampler(rank, world_size)
        return self.gpu_optimized().replace(
            sampler_type=sampler, shard_rank=sampler.rank, shard_world_size=sampler.world_size
        )

    def debug_mode(self) -> LoaderOptions:
        """No tuning, nothing kept, and an error after ten seconds without a batch."""
        return self.replace(num_workers=0, persistent_workers=False, timeout_seconds=10.0, auto_tune=False)

    def to_dict(self) -> dict[str, Any]:
        """Numbers, texts, lists and dicts alone, for JSON and YAML; ``from_dict`` takes them back."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["sampler_type"] = sampler_to_dict(self.sampler_type)
        if isinstance(self.loading_mode, AsyncPool):
            pool = self.loading_mode
            values["loading_mode"] = {"pool_size": pool.pool_size, "readahead_batches": pool.readahead_batches}
        return values

    @classmethod
    def of(cls, given: AnyOptions) -> LoaderOptions:
        """From anything that a loader takes as its options.

        Raises:
            ConfigError: as ``from_dict``.
        """
        if isinstance(given, LoaderOptions):
            return given
        return given.to_options() if isinstance(given, HasOptions) else cls.from_dict(given)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LoaderOptions:
        """From some or all of the fields; the others have their defaults.

        Raises:
            ConfigError: a name that isn't a field, or a value that can't be.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"options are {values!r}; give LoaderOptions, or a dict of some of its fields")
        _refuse_unknown(values)
        return cls(**values)


@runtime_checkable
class HasOptions(Protocol):
    """What isn't a ``LoaderOptions``, and says which ones it means: another system's own record."""

    def to_options(self) -> LoaderOptions:
        """The options that it means."""


AnyOptions: TypeAlias = LoaderOptions | HasOptions | Mapping[str, Any]
"""What a loader takes as its options; a mapping holds some of the fields."""


def checked_knob(knob: str, value: Any, *, called: str) -> Any:
    """The value of a knob as a record holds it.

    Raises:
        ConfigError: it can't be; the message has the name that the caller knows it by.
    """
    return _CHECKS[knob](called, value)


def _refuse_unknown(values: Mapping[str, Any]) -> None:
    for name in values:
        if name not in _CHECKS:
            raise ConfigError(f"{name!r} is no option of a loader; {_hint(str(name))}")


def _hint(name: str) -> str:
    from penstock.loader.arguments import LoaderArguments  # which is made of what stands here

    if name in LoaderArguments.__annotations__:
        return "it is an argument: give it to the loader as a keyword, beside the record"
    near = difflib.get_close_matches(name, _CHECKS, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(_CHECKS)}"


def _whole(name: str, value: Any) -> int:
    return whole_number(name, value)


def _at_least(least: int) -> _Check:
    """Raised to ``least``; below 0 is an error all the same."""
    return lambda name, value: max(least, whole_number(name, value, least=0))


def _bytes(name: str, value: Any) -> int:
    return max(1, parse_bytes(value, name=name))


def _choice(*choices: str, **synonyms: str) -> _Check:
    known = {**{choice: choice for choice in choices}, **synonyms}

    def check(name: str, value: Any) -> str:
        found = known.get(value.lower()) if isinstance(value, str) else None
        if found is None:
            raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
        return found

    return check


def _loading_mode(name: str, value: Any) -> LoadingMode:
    if isinstance(value, AsyncPool):
        return value
    if isinstance(value, str) and value.lower() in ("sequential", "async_pool"):
        return "sequential" if value.lower() == "sequential" else AsyncPool()
    try:
        return AsyncPool(**value)
    except TypeError as error:
        raise ConfigError(
            f"{name} is {value!r}; give sequential, async_pool, or a dict of pool_size and readahead_batches"
        ) from error


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{name} is {value!r}; give seconds, more than 0, or None")
    return float(value)


def _sampler(name: str, value: Any) -> AnySampler:
    del name
    return sampler_of(value)


def _optional(name: str, value: Any) -> int | None:
    return None if value is None else whole_number(name, value)


_CHECKS: Final[dict[str, _Check]] = {
    "batch_size": _at_least(1),
    "drop_last": boolean,
    "shuffle": boolean,
    "seed": _whole,
    "num_workers": _at_least(0),
    "prefetch": _at_least(0),
    "auto_tune": boolean,
    "loading_mode": _loading_mode,
    "reader_mode": _choice("sequential", "range"),
    "part_size": _bytes,
    "max_inflight_parts": _at_least(1),
    "shard_rank": _at_least(0),
    "shard_world_size": _at_least(1),
    "worker_id": _at_least(0),
    "num_workers_pytorch": _at_least(1),
    "pin_memory": boolean,
    "persistent_workers": boolean,
    "timeout_seconds": _seconds,
    "multiprocessing_context": _choice("spawn", "fork", "forkserver"),
    "sampler_type": _sampler,
    "memory_format": _choice("auto", "channels_first", "channels_last", nchw="channels_first", nhwc="channels_last"),
    "non_blocking": boolean,
    "generator_seed": _optional,
    "enable_transforms": boolean,
    "collate_buffer_size": _at_least(_LEAST_COLLATE),
}
