"""The keywords of every loader, in one place; each is described at ``DataLoader`` or ``LoaderOptions``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from penstock.loader.collate import Collate
from penstock.loader.faults import OnError
from penstock.loader.options import LoadingMode, MemoryFormat, ProcessContext, ReaderMode
from penstock.loader.transform import OnWorkerDeath, Workers
from penstock.order.by_length import BatchCost
from penstock.order.sampler import AnySampler
from penstock.sizes import Size

__all__ = ["LoaderArguments"]


class LoaderArguments(TypedDict, total=False):
    """What may be given as a keyword. Where two names mean one thing, the first is MX8's, the second s3dlio's."""

    # the dataset
    manifest_store_root: str | None
    dev_manifest_path: str | None
    node_id: str | None
    start_id: int | None
    end_id: int | None
    # memory
    max_inflight_bytes: Size
    max_queue_batches: int | None
    profile: str | None
    target_batch_bytes: Size | None
    max_batch_bytes: Size | None
    batch_cost: BatchCost
    max_batch_cost: float
    # the epoch
    epoch: int
    resume: Mapping[str, Any] | None
    group_by_length: bool
    # faulty samples
    on_error: OnError
    max_errors: int | None
    # what becomes of samples
    transform: Callable[[Any], Any]
    batch_transform: Callable[[Any], Any]
    collate: Collate
    transform_bytes: Size
    workers: Workers
    on_worker_death: OnWorkerDeath
    # knobs of LoaderOptions
    batch_size_samples: int
    batch_size: int
    drop_last: bool
    shuffle: bool
    seed: int
    num_workers: int
    prefetch_batches: int | None
    prefetch: int
    tune: bool
    auto_tune: bool
    loading_mode: LoadingMode
    reader_mode: ReaderMode
    part_size: Size
    max_inflight_parts: int
    rank: int
    shard_rank: int
    world_size: int
    shard_world_size: int
    worker_id: int
    num_workers_pytorch: int
    pin_memory: bool
    persistent_workers: bool
    timeout_seconds: float | None
    multiprocessing_context: ProcessContext
    sampler: AnySampler
    sampler_type: AnySampler
    memory_format: MemoryFormat
    non_blocking: bool
    generator_seed: int | None
    enable_transforms: bool
    collate_buffer_size: int
