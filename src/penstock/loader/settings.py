"""What a loader was asked for, checked: options, dicts and keywords in, one record of settings out. Pure."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from penstock.errors import ConfigError
from penstock.loader.arguments import LoaderArguments
from penstock.loader.faults import FaultPolicy
from penstock.loader.options import AnyOptions, LoaderOptions, checked_knob
from penstock.loader.plan import BatchLimits
from penstock.loader.transform import Transform, transform_of
from penstock.order.sampler import AnySampler, BlockSampler, DistributedSampler, RandomSampler, SequentialSampler
from penstock.order.split import Split
from penstock.sizes import Size, boolean, format_bytes, parse_bytes, whole_number

__all__ = ["DEFAULT_INFLIGHT_BYTES", "Settings", "defaults", "refuse_memory_format", "settle"]

DEFAULT_INFLIGHT_BYTES: Final = 128 << 20
_MOST_INFLIGHT_BYTES: Final = 1 << 42  # 4 TiB: the arena's address range is a multiple of it, and has 47 bits

_KNOBS: Final = frozenset(field.name for field in fields(LoaderOptions))
_IN_TORCH: Final = {  # arguments of its DataLoader
    "prefetch_factor": "prefetch",
    "collate_fn": "collate",
    "worker_init_fn": "sample.rng in a transform, which needs no seeding",
    "generator": "seed",
    "timeout": "timeout_seconds",
    "batch_sampler": "sampler",
}
_ALSO_CALLED: Final = {  # names of MX8 and of our own for knobs of LoaderOptions
    "batch_size_samples": "batch_size",
    "prefetch_batches": "prefetch",
    "tune": "auto_tune",
    "rank": "shard_rank",
    "world_size": "shard_world_size",
    "sampler": "sampler_type",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a loader does, as far as that can be known without its dataset.

    Attributes:
        options: the knobs, with the loader's own defaults where nobody gave any.
        cap_bytes: of the budget.
        limits: when a batch is full.
        split: how positions are cut into steps, and which are this loader's; None where batches are cut by bytes.
        says_rank: somebody said which of how many ranks this loader is for, were it the only one.
        sampler: what orders the samples.
        seed: of everything random.
        epoch: likewise.
        prefetch: batches built at once, where somebody said so.
        queue: the same of finished batches that may wait.
        profile: where tuning starts, or None.
        range: first sample and end, or None for all.
        group: samples that are sorted by length together; 0 = they aren't.
        transform: what becomes of samples before they are handed out, or None.
        resume: a state to go on from, or None.
        faults: what becomes of faulty samples.
        manifest_store_root: where manifests are kept, or None.
        dev_manifest_path: a table to use instead of indexing, or None.
        node_id: who we are, or None.
    """

    options: LoaderOptions
    cap_bytes: int
    limits: BatchLimits
    split: Split | None
    says_rank: bool
    sampler: AnySampler
    seed: int
    epoch: int
    prefetch: int | None
    queue: int | None
    profile: str | None
    range: tuple[int, int] | None
    group: int
    transform: Transform | None
    resume: Mapping[str, Any] | None
    faults: FaultPolicy
    manifest_store_root: str | None
    dev_manifest_path: str | None
    node_id: str | None

    @property
    def windows_bytes(self) -> int:
        """About what of the cap a block shuffle's windows take; 0 for other orders."""
        loaders = 1 if self.split is None else self.split.world_size * self.split.workers
        return self.sampler.held_bytes(loaders) if isinstance(self.sampler, BlockSampler) else 0


def defaults(batch_size: int) -> LoaderOptions:
    """The knobs of a loader that was given none: several parts of an object at once, and long plans."""
    return LoaderOptions(
        batch_size=batch_size, reader_mode="range", part_size=8 << 20, max_inflight_parts=8, collate_buffer_size=8192
    )


def settle(options: AnyOptions | None, arguments: LoaderArguments, otherwise: LoaderOptions) -> Settings:
    """Check everything that a loader was given.

    Args:
        options: a record, what has one, a dict of some of its fields, or nothing.
        arguments: keywords; they win over the record.
        otherwise: the knobs of this kind of loader where there is no record.

    Raises:
        TypeError: a keyword that no loader has.
        ConfigError: a value, or a combination of them, that can't work.
    """
    given: dict[str, Any] = {name: value for name, value in arguments.items() if value is not None}
    for name in given:
        if name not in LoaderArguments.__annotations__:
            raise TypeError(f"a loader has no argument {name!r}{_hint(name)}")
    knobs = _knobs(otherwise if options is None else LoaderOptions.of(options), given)
    cap_bytes = _whole_bytes(given, "max_inflight_bytes", DEFAULT_INFLIGHT_BYTES, most=_MOST_INFLIGHT_BYTES)
    limits = _limits(knobs.batch_size, cap_bytes, given)
    knobs = _one_world(knobs, given)
    transform = transform_of(given)
    _refuse_idle(knobs, transform)
    if options is not None and "enable_transforms" not in given:
        _require_no_doubt(knobs, transform)
    settings = Settings(
        options=knobs,
        cap_bytes=cap_bytes,
        limits=limits,
        split=_split(limits, knobs),
        says_rank=knobs.shard_world_size > 1 or _names_rank(given),
        sampler=_sampler(knobs),
        seed=_seed(knobs),
        epoch=whole_number("epoch", given.get("epoch", 0)),
        prefetch=_prefetch(knobs, given),
        queue=given.get("max_queue_batches"),
        profile=given.get("profile"),
        range=_range(given),
        group=knobs.collate_buffer_size if boolean("group_by_length", given.get("group_by_length", False)) else 0,
        transform=None if given.get("enable_transforms") is False else transform,
        resume=given.get("resume"),
        faults=FaultPolicy.checked(given.get("on_error", "raise"), given.get("max_errors")),
        manifest_store_root=given.get("manifest_store_root"),
        dev_manifest_path=given.get("dev_manifest_path"),
        node_id=given.get("node_id"),
    )
    _require_room(settings)
    _require_own_order(settings)
    return settings


def _require_own_order(settings: Settings) -> None:
    """Windows of a block shuffle hold neighbours of its own order."""
    if settings.group and isinstance(settings.sampler, BlockSampler):
        raise ConfigError("group_by_length sorts samples and a BlockSampler says where they are; leave one of them")


def _require_room(settings: Settings) -> None:
    """A block shuffle's windows leave something for batches."""
    windows_bytes, cap_bytes = settings.windows_bytes, settings.cap_bytes
    if windows_bytes >= cap_bytes:
        raise ConfigError(
            f"two windows of a BlockSampler take about {windows_bytes} bytes ({format_bytes(windows_bytes)}) of each "
            f"loader, which leaves nothing of max_inflight_bytes {cap_bytes} ({format_bytes(cap_bytes)}) for batches; "
            "lower window_bytes or raise the cap"
        )


def refuse_memory_format(knobs: LoaderOptions, gives: str) -> None:
    """For loaders whose samples have no channels.

    Raises:
        ConfigError: a memory format was asked for; the message says what the loader ``gives``.
    """
    if knobs.memory_format != "auto":
        raise ConfigError(
            f"memory_format is {knobs.memory_format!r}, and {gives}, which have no channels; leave it 'auto', or load "
            "images with ImageFolderLoader"
        )


def _hint(name: str) -> str:
    near = difflib.get_close_matches(name, LoaderArguments.__annotations__, n=1)
    meant = _IN_TORCH.get(name) or (near[0] if near else None)
    return "" if meant is None else f"; did you mean {meant}?"


def _knobs(options: LoaderOptions, given: Mapping[str, Any]) -> LoaderOptions:
    """The record with what keywords say instead."""
    changes: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, value in given.items():
        knob = _ALSO_CALLED.get(name, name)
        if knob not in _KNOBS:
            continue
        if knob in names:
            raise ConfigError(f"{names[knob]} and {name} are two names of one thing; give one of them")
        names[knob] = name
        changes[knob] = checked_knob(knob, value, called=name)
    return replace(options, **changes)


def _names_rank(given: Mapping[str, Any]) -> bool:
    return not {"rank", "shard_rank", "world_size", "shard_world_size"}.isdisjoint(given)


def _one_world(knobs: LoaderOptions, given: Mapping[str, Any]) -> LoaderOptions:
    """A DistributedSampler says rank and world size as well; both ways must mean the same."""
    sampler, ours = knobs.sampler_type, (knobs.shard_rank, knobs.shard_world_size)
    if not isinstance(sampler, DistributedSampler):
        return knobs
    theirs = (sampler.rank, sampler.world_size)
    if (ours != (0, 1) or _names_rank(given)) and ours != theirs:
        raise ConfigError(
            f"rank and world_size are {ours[0]} and {ours[1]}, those of the sampler {theirs[0]} and {theirs[1]}; "
            "give them once"
        )
    return knobs.replace(shard_rank=theirs[0], shard_world_size=theirs[1])


def _refuse_idle(knobs: LoaderOptions, transform: Transform | None) -> None:
    """What would have nothing to act on."""
    if knobs.enable_transforms and transform is None:
        raise ConfigError("enable_transforms is True, and there is no transform to enable; leave it False")
    in_processes = transform is not None and transform.workers == "processes"
    if knobs.multiprocessing_context != "spawn" and not in_processes:
        raise ConfigError(
            f"multiprocessing_context is {knobs.multiprocessing_context!r}, and there are no processes: this loader "
            "works in threads; leave it 'spawn', or give a transform with workers='processes'"
        )
    require_pinned_source(pin_memory=knobs.pin_memory, non_blocking=knobs.non_blocking)
    if knobs.pin_memory:
        raise ConfigError(
            "pin_memory is True, and batches of a loader lie in its budget, which isn't page-locked; loop over "
            "penstock.torch.EpochLoader, which takes the same arguments and gives tensors that are, or leave it False"
        )


def require_pinned_source(*, pin_memory: bool, non_blocking: bool) -> None:
    """A GPU copies on its own from page-locked memory alone.

    Raises:
        ConfigError: it is to do so from other memory.
    """
    if non_blocking and not pin_memory:
        raise ConfigError(
            "non_blocking is True and pin_memory False; a GPU copies on its own from page-locked memory alone: set "
            "pin_memory=True as well"
        )


def _require_no_doubt(knobs: LoaderOptions, transform: Transform | None) -> None:
    """In a record nobody can tell a False that was meant from the default."""
    if transform is not None and not knobs.enable_transforms:
        raise ConfigError(
            "there is a transform, and the options say enable_transforms=False, which is their default; set it True "
            "for the transform to act, or give the keyword enable_transforms=False to leave it out"
        )


def _split(limits: BatchLimits, knobs: LoaderOptions) -> Split | None:
    """None where batches are cut by bytes."""
    rank, world_size = knobs.shard_rank, knobs.shard_world_size
    worker, workers = knobs.worker_id, knobs.num_workers_pytorch
    if rank >= world_size:
        raise ConfigError(f"rank is {rank}; with world_size {world_size} it goes from 0 to {world_size - 1}")
    if worker >= workers:
        raise ConfigError(f"worker_id is {worker}; with num_workers_pytorch {workers} it goes from 0 to {workers - 1}")
    if limits.by_count:
        return Split(limits.samples, rank, world_size, knobs.drop_last, worker, workers)
    if world_size > 1 or workers > 1 or knobs.drop_last:
        raise ConfigError(
            "world_size, num_workers_pytorch and drop_last need batches that are cut by count: ranks can't agree on "
            "how many there are when they are cut by bytes or cost. Leave target_batch_bytes, max_batch_bytes and "
            "batch_cost unset"
        )
    return None


def _sampler(knobs: LoaderOptions) -> AnySampler:
    sampler = knobs.sampler_type
    return RandomSampler() if knobs.shuffle and isinstance(sampler, SequentialSampler) else sampler


def _seed(knobs: LoaderOptions) -> int:
    if knobs.generator_seed is None:
        return knobs.seed
    digest = hashlib.sha256(f"penstock seed {knobs.seed} {knobs.generator_seed}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


def _prefetch(knobs: LoaderOptions, given: Mapping[str, Any]) -> int | None:
    asked = max(1, knobs.prefetch) if knobs.prefetch or "prefetch_batches" in given else None
    pool = knobs.loading_mode
    return asked if pool == "sequential" else max(asked or 1, pool.readahead_batches)


def _limits(samples: int, cap_bytes: int, given: Mapping[str, Any]) -> BatchLimits:
    if "batch_cost" in given or "max_batch_cost" in given:
        return _cost_limits(samples, cap_bytes, given)
    if "target_batch_bytes" not in given and "max_batch_bytes" not in given:
        return BatchLimits(samples, None, cap_bytes)
    most_bytes = _whole_bytes(given, "max_batch_bytes", cap_bytes)
    if most_bytes > cap_bytes:
        raise ConfigError(
            f"max_batch_bytes {most_bytes} is more than max_inflight_bytes {cap_bytes}; lower it or raise the cap"
        )
    return BatchLimits(samples, _whole_bytes(given, "target_batch_bytes", most_bytes), most_bytes)


def _cost_limits(samples: int, cap_bytes: int, given: Mapping[str, Any]) -> BatchLimits:
    cost, most = given.get("batch_cost"), given.get("max_batch_cost")
    if not callable(cost) or isinstance(most, bool) or not isinstance(most, int | float) or not most > 0:
        raise ConfigError(
            f"batch_cost is {cost!r} and max_batch_cost {most!r}; give both: a function of lengths, such as "
            "penstock.padded_bytes, and a number above 0"
        )
    if "target_batch_bytes" in given or "max_batch_bytes" in given:
        raise ConfigError(
            "batches are cut by batch_cost or by bytes; leave target_batch_bytes and max_batch_bytes unset"
        )
    return BatchLimits(samples, None, cap_bytes, cost, float(most))


def _whole_bytes(given: Mapping[str, Any], name: str, default: int, *, most: int = (1 << 63) - 1) -> int:
    size: Size = given.get(name, default)
    return whole_number(name, parse_bytes(size, name=name), least=1, most=most)


def _range(given: Mapping[str, Any]) -> tuple[int, int] | None:
    start_id, end_id = given.get("start_id"), given.get("end_id")
    if (start_id is None) != (end_id is None):
        raise ConfigError("start_id and end_id must be set together")
    if start_id is None or end_id is None:
        return None
    start, end = whole_number("start_id", start_id), whole_number("end_id", end_id)
    if start > end:
        raise ConfigError(f"invalid range (start_id > end_id): {start} > {end}")
    return start, end
