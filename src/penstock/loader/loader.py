"""The loader: a dataset link in, an iterator of batches out, never above the budget."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

from penstock import config
from penstock.budget import Budget, Charge, RssGuard
from penstock.dataset.resolve import Resolved, resolve
from penstock.errors import ConfigError, ResumeError
from penstock.loader.batch import Batch
from penstock.loader.fetch import Fetcher
from penstock.loader.order import Order, Remaining, Sequential, Shuffled
from penstock.loader.pipeline import Pipeline
from penstock.loader.plan import BatchLimits, Unit, plan_units
from penstock.loader.profiles import Threads, tuning
from penstock.loader.split import Split, Steps
from penstock.loader.state import Epoch, Intervals, LoaderState
from penstock.loader.statistics import LoaderStatistics
from penstock.loader.tune import Knobs
from penstock.loader.tuner import Tuner
from penstock.loader.work import PipelineStatistics, Work
from penstock.observe.live import LiveLoader
from penstock.observe.metrics import serve_as_configured
from penstock.observe.stages import StageClock
from penstock.observe.trace import Trace, trace_in
from penstock.proof import prove
from penstock.sizes import Size, parse_bytes, whole_number

__all__ = ["DEFAULT_INFLIGHT_BYTES", "DataLoader", "Loader", "load"]

T = TypeVar("T")

_log = logging.getLogger("penstock")

DEFAULT_INFLIGHT_BYTES = 128 << 20
_DEFAULT_STALL_TIMEOUT_S = 300
_MOST_INFLIGHT_BYTES = 1 << 42  # 4 TiB: the arena's address range is a multiple of it, and has to fit into 47 bits
_LEAST_CHARGE_BYTES = 64  # what the smallest region takes in the arena: charged, so that many of them stay in the cap


class Loader(Generic[T]):
    """What every loader shares: a link, a range, a budget, a pipeline and its statistics.

    Single pass: iterating returns the loader itself, and after the last batch every ``next()`` raises StopIteration;
    another epoch is another loader. Use it as a context manager, or call ``close()``, or just drop it.
    """

    def __init__(
        self,
        dataset_link: str,
        *,
        manifest_store_root: str | None = None,
        dev_manifest_path: str | None = None,
        batch_size_samples: int = 512,
        max_inflight_bytes: Size = DEFAULT_INFLIGHT_BYTES,
        max_queue_batches: int | None = None,
        prefetch_batches: int | None = None,
        target_batch_bytes: Size | None = None,
        max_batch_bytes: Size | None = None,
        start_id: int | None = None,
        end_id: int | None = None,
        node_id: str | None = None,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        profile: str | None = None,
        tune: bool = False,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        resume: Mapping[str, Any] | None = None,
    ) -> None:
        cap_bytes = parse_bytes(max_inflight_bytes, name="max_inflight_bytes")
        cap_bytes = whole_number("max_inflight_bytes", cap_bytes, least=1, most=_MOST_INFLIGHT_BYTES)
        limits = _batch_limits(batch_size_samples, cap_bytes, target_batch_bytes, max_batch_bytes)
        self._rss = RssGuard.from_environment()
        self._split = _split(limits, rank, world_size, drop_last)
        self._how = tuning(
            profile,
            tune=tune,
            prefetch=prefetch_batches,
            queue=max_queue_batches,
            threads=self._threads(),
            side_by_side=self._side_by_side(),
            cap_bytes=cap_bytes,
            rss_limit_bytes=self._rss.limit_bytes,
        )
        seed, epoch = whole_number("seed", seed), whole_number("epoch", epoch)
        _check_range_pair(start_id, end_id)

        resolved = resolve(
            dataset_link,
            manifest_store_root=manifest_store_root,
            dev_manifest_path=dev_manifest_path,
            node_id=node_id,
        )
        self._manifest = resolved.manifest
        self._base = resolved.base
        start, end = _range(start_id, end_id, self._manifest.row_count)
        prove("range_selected", start_id=start, end_id=end, manifest_hash=resolved.hash)
        self._resolved, self._limits, self._cap_bytes = resolved, limits, cap_bytes
        self._epoch = Epoch(resolved.hash, start, end, bool(shuffle), seed, epoch)
        self._rss.sample()
        serve_as_configured()
        self._leave(_begun_with(resume, self._epoch))
        self._start()

    def _leave(self, begun_with: Intervals) -> None:
        """Plan what is left of the epoch; where that can't be, nothing has changed."""
        order: Order = _order(self._epoch)
        if begun_with:
            order = Remaining(order, begun_with)
        steps = None if self._split is None else Steps(order.count, self._split)
        self._begun_with, self._order, self._steps = begun_with, order, steps

    def _start(self, trace: Trace | None = None) -> None:
        """Begin with what is left of the epoch; a trace that is being written goes on."""
        resolved = self._resolved
        self._budget = Budget(self._cap_bytes)
        self._open(resolved, trace)
        self._delivered = PipelineStatistics()
        subject = (type(self).__name__, resolved.hash, self._limits, self._cap_bytes, self._epoch.shuffle)
        self._tuner = Tuner(self._how, subject, self._clock, self._delivered, self._rss)
        self._pipeline = self._begin()
        self._statistics = LoaderStatistics(self._delivered, self._budget, self._rss, self._clock, self._tuner)
        shown = config.flag("TOP") is not False
        self._live = LiveLoader(resolved.base, resolved.hash, self._statistics.read, shown=shown)
        self._resources.callback(self._live.close)
        self._finalizer = weakref.finalize(self, self._pipeline.abandon)

    def _open(self, resolved: Resolved, trace: Trace | None) -> None:
        """What has to be closed again."""
        self._resources = ExitStack()  # closed with the loader, or by its producer when it was dropped
        self._clock = StageClock()
        self._resources.callback(self._clock.close)
        self._fetcher = Fetcher(resolved, self._clock)
        self._resources.callback(self._fetcher.close)
        self._title = f"{resolved.base}@sha256:{resolved.hash}"
        if trace is None and (folder := config.lookup("TRACE")) is not None:
            trace = trace_in(folder, self._title)
        if trace is not None:
            self._clock.write_to(trace)

    def _begin(self) -> Pipeline[T]:
        """Start the threads."""
        knobs, set_threads = self._tuner.knobs, self._thread_setter()
        set_threads(knobs.threads)
        pipeline = Pipeline(
            plan_units(self._manifest, self._order, self._limits, self._fetcher.size_of, self._steps),
            self._work(),
            self._budget,
            builders=knobs.prefetch,
            most_builders=self._tuner.most_prefetch,
            first_alone="://" not in self._base,  # requests to a store wait more than they compute
            depth=knobs.queue,
            cancel=self._fetcher.cancel,
            release=self._resources.close,
            stall_timeout_s=config.positive_int("STALL_TIMEOUT_S", _DEFAULT_STALL_TIMEOUT_S),
            clock=self._clock,
            statistics=self._delivered,
        )
        self._tuner.attach(partial(_turn, pipeline, set_threads), pipeline.recent_bytes)
        return pipeline

    def _work(self) -> Work[T]:
        """What this loader does with each unit; runs at the end of construction."""
        raise NotImplementedError

    def _side_by_side(self) -> bool:
        """Whether more than one unit can be built at once."""
        return True

    def _threads(self) -> Threads:
        """That decode."""
        return Threads()

    def _thread_setter(self) -> Callable[[int], None]:
        """What changes the number of threads that decode; it must not hold the loader."""
        return _nothing

    @property
    def manifest_hash(self) -> str:
        """SHA-256 of the manifest that is being loaded, 64 lower-case hex digits."""
        return self._manifest.hash

    def __iter__(self) -> Loader[T]:
        if self._pipeline.finished and self._pipeline.statistics.delivered_batches:
            _log.warning("this loader is at its end, so this loop gets nothing: make one for each epoch (epoch=n)")
        return self

    def __next__(self) -> T:
        """The next batch, in order.

        Raises:
            StopIteration: the range is at its end; stays so.
            BudgetHeld: the caller holds so much that the next batch can't be admitted; let go and call again.
            RssExceeded: the process outgrew ``PENSTOCK_MAX_PROCESS_RSS_BYTES``.
            DeadlineExceeded: no batch within ``PENSTOCK_STALL_TIMEOUT_S``.
            ClosedError: after ``close()``.
            StoreError, DataError, UnitTooLarge: the batch can't be read. Earlier batches were delivered before;
                the next call raises StopIteration.
        """
        self._rss.check()  # all that can raise comes before the batch is ours
        self._live.tick()
        self._tuner.tick()
        delivery = self._pipeline.peek()
        statistics, mine = self._delivered, self._pipeline.mine
        batch, samples, payload_bytes = delivery.result, delivery.samples, delivery.payload_bytes
        # From here on no calls: see Pipeline.peek.
        statistics.delivered_batches += 1
        statistics.delivered_samples += samples
        statistics.delivered_bytes += payload_bytes
        mine.undelivered = None
        return batch

    def __bool__(self) -> bool:
        return True  # also when nothing is left, or when nobody knows how much

    def __len__(self) -> int:
        """Batches of the whole pass.

        Raises:
            TypeError: batches are cut by bytes, so that their number isn't known before they are planned.
        """
        if self._steps is None:
            raise TypeError("the number of batches isn't known when they are cut by bytes")
        return self._steps.count

    def state_dict(self) -> dict[str, Any]:
        """What was handed out so far, as a small dict for JSON; ``resume=`` and ``load_state_dict`` go on from it.

        What was only read ahead doesn't count. With several ranks it says what all of them have done when each took as
        many steps as this one, so where they step together any rank's state will do; ``merge_states`` joins those of
        ranks that don't.
        """
        taken = self._delivered.delivered_samples if self._split is None else self._delivered.delivered_batches
        return LoaderState(self._epoch, self._begun_with, self._split, taken).to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another loader of the same epoch was, whatever its batches, ranks or prefetch.

        Before the first batch. The same as ``resume=state`` at construction, which doesn't read the beginning in vain.

        Where it raises, the loader is what it was.

        Raises:
            ResumeError: batches were handed out already, or the state is of other samples or another order.
            ConfigError: the ranks can't share what is left in equal steps.
            ClosedError: after ``close()``.
        """
        self._pipeline.check_usable()
        if self._delivered.delivered_batches:
            raise ResumeError(
                f"{self._delivered.delivered_batches} batches were handed out already; load a state before the first"
            )
        self._leave(_begun_with(state, self._epoch))
        trace = self._clock.take_trace()  # it ends with the loader, which goes on
        self.close()
        self._start(trace)

    def stats(self) -> dict[str, Any]:
        """Counters and gauges, all from the consumer's side; sizes in bytes.

        ``delivered_batches_total``, ``delivered_samples_total``, ``delivered_bytes_total``: what ``next()`` returned.
        ``inflight_bytes``: charged now: read ahead, queued, and held by the consumer. ``max_inflight_bytes``: the cap.
        ``ram_high_water_bytes``: the most that was ever charged, at most the cap. ``process_rss_bytes`` and
        ``process_rss_high_water_bytes``: the whole process, as sampled. ``arena_resident_bytes``: pages of the
        budget that are in memory, warm ones without a charge included. ``data_wait_s``: seconds in ``next()``.
        ``plan_s``, ``budget_wait_s``, ``fetch_s``, ``decode_s``, ``queue_wait_s``: seconds that batches were in each
        stage, added up over threads. ``prefetch_batches``, ``max_queue_batches``, ``decode_threads``: where these are
        now. ``tune_decisions_total``: how often tuning changed one; with ``tune=True``, ``tune_decisions`` is a list of
        the last 32: ``{"batch": 40, "knob": "prefetch", "from": 2, "to": 3, "reason": "..."}``.
        """
        decisions = self._tuner.decisions()
        return {**self._statistics.read(), **({} if decisions is None else {"tune_decisions": decisions})}

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Write what each batch goes through from now on to a file that Perfetto (ui.perfetto.dev) opens.

        Ends with the loader, or when another trace begins. The first batches are on their way when a loader is made;
        ``PENSTOCK_TRACE=folder`` sees those as well.

        Raises:
            ConfigError: the file can't be written.
        """
        self._clock.write_to(Trace(path, self._title))

    def close(self) -> None:
        """Stop reading, join the loader's threads and close its files. Safe twice.

        Batches, tensors and views that were handed out stay valid.
        """
        self._finalizer.detach()
        self._pipeline.close()
        self._resources.close()

    def __enter__(self) -> Loader[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DataLoader(Loader[Batch]):
    """Loads samples as raw bytes, in order, in batches, never above ``max_inflight_bytes``.

    Args:
        dataset_link: a folder or ``s3://``, ``gs://``, ``az://`` prefix: plain (the pinned manifest if there is one),
            with ``@refresh`` (index again) or ``@sha256:<hash>`` (exactly this manifest).
        manifest_store_root: where manifests are kept; default ``config.default_manifest_store_root()``.
        dev_manifest_path: a TSV to use instead of indexing, for development.
        batch_size_samples: most samples in a batch; 0 is 1. The last batch may be smaller.
        max_inflight_bytes: the cap, as bytes or text such as ``"512MiB"``: on everything that is read ahead, queued, or
            held through a batch or a view.
        max_queue_batches: finished batches that may wait for the consumer, at least 1; by default the profile's, or 64.
        prefetch_batches: batches built at once; 0 and 1 mean one after another; by default the profile's, or 1.
            Delivery is in order.
        target_batch_bytes: a batch with this many bytes takes no further sample; default ``max_batch_bytes``.
        max_batch_bytes: no batch is larger; at most, and by default, ``max_inflight_bytes``.
        start_id: first sample of a half-open range; together with ``end_id``.
        end_id: end of the range, exclusive.
        node_id: who we are, for locks and logs.
        shuffle: visit the range in the order of a permutation by (manifest hash, seed, epoch).
        seed: of the permutation.
        epoch: of the permutation.
        profile: ``safe``, ``balanced`` or ``throughput``: where prefetch, queue and decoding threads start, and how far
            tuning may turn them. What is given explicitly wins.
        rank: which of ``world_size`` ranks this loader is for, from 0. Each step has a batch for each rank; all take
            the same number of steps, and each sample is in one of their batches.
        world_size: how many ranks share the epoch.
        drop_last: leave out what doesn't fill a step; otherwise it is shared evenly.
        resume: what ``state_dict()`` of a loader of the same epoch returned: only what it hadn't handed out is loaded.
            Batch size, ranks, prefetch and cap may be others.
        tune: turn them while the loader runs, after how long ``next()`` waits and how much room there is; by default
            within the bounds of ``balanced``. What is given explicitly is then the most. It never changes what is
            delivered, nor the cap.

    Raises:
        ConfigError: an argument that can't work (LinkError: the link). A ``ValueError``.
        ResumeError: the state is of other samples or another order.
        ResolveError, StoreError, ManifestError: the link can't be resolved.
    """

    def _work(self) -> Work[Batch]:
        return _ReadBytes(self._fetcher, self._budget.total_bytes)


def load(
    dataset_link: str,
    *,
    manifest_store_root: str | None = None,
    dev_manifest_path: str | None = None,
    batch_size_samples: int = 512,
    max_inflight_bytes: Size = DEFAULT_INFLIGHT_BYTES,
    max_queue_batches: int | None = None,
    prefetch_batches: int | None = None,
    target_batch_bytes: Size | None = None,
    max_batch_bytes: Size | None = None,
    start_id: int | None = None,
    end_id: int | None = None,
    node_id: str | None = None,
    shuffle: bool = False,
    seed: int = 0,
    epoch: int = 0,
    profile: str | None = None,
    tune: bool = False,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool = False,
    resume: Mapping[str, Any] | None = None,
) -> DataLoader:
    """Load a dataset as batches of raw bytes; see ``DataLoader`` for the arguments and errors."""
    return DataLoader(
        dataset_link,
        manifest_store_root=manifest_store_root,
        dev_manifest_path=dev_manifest_path,
        batch_size_samples=batch_size_samples,
        max_inflight_bytes=max_inflight_bytes,
        max_queue_batches=max_queue_batches,
        prefetch_batches=prefetch_batches,
        target_batch_bytes=target_batch_bytes,
        max_batch_bytes=max_batch_bytes,
        start_id=start_id,
        end_id=end_id,
        node_id=node_id,
        shuffle=shuffle,
        seed=seed,
        epoch=epoch,
        profile=profile,
        tune=tune,
        rank=rank,
        world_size=world_size,
        drop_last=drop_last,
        resume=resume,
    )


def _split(limits: BatchLimits, rank: int, world_size: int, drop_last: bool) -> Split | None:
    """None where batches are cut by bytes."""
    world_size = whole_number("world_size", world_size, least=1)
    rank = whole_number("rank", rank, least=0)
    if rank >= world_size:
        raise ConfigError(f"rank is {rank}; with world_size {world_size} it goes from 0 to {world_size - 1}")
    if limits.target_bytes is None:
        return Split(limits.samples, rank, world_size, bool(drop_last))
    if world_size > 1 or drop_last:
        raise ConfigError(
            "world_size and drop_last need batches that are cut by count: ranks can't agree on how many there are when "
            "they are cut by bytes. Leave target_batch_bytes and max_batch_bytes unset"
        )
    return None


def _order(epoch: Epoch) -> Order:
    if not epoch.shuffle:
        return Sequential(epoch.start_id, epoch.count)
    return Shuffled(epoch.start_id, epoch.count, manifest_hash=epoch.manifest_hash, seed=epoch.seed, epoch=epoch.epoch)


def _begun_with(resume: Mapping[str, Any] | None, epoch: Epoch) -> Intervals:
    if resume is None:
        return ()
    state = LoaderState.from_dict(resume)
    state.require(epoch)
    return state.done()


def _nothing(_: object) -> None:
    """For knobs that aren't there."""


def _turn(pipeline: Pipeline[Any], set_threads: Callable[[int], None], knobs: Knobs) -> None:
    pipeline.resize(builders=knobs.prefetch, depth=knobs.queue)
    set_threads(knobs.threads)


class _ReadBytes:
    """The work of a DataLoader: the payload, as it lies in storage."""

    def __init__(self, fetcher: Fetcher, cap_bytes: int) -> None:
        self._fetcher = fetcher
        self._cap_bytes = cap_bytes

    def cost_bytes(self, unit: Unit) -> int:
        return min(self._cap_bytes, max(_LEAST_CHARGE_BYTES, unit.payload_bytes))

    def build(self, unit: Unit, charge: Charge) -> Batch:
        rounding = charge.split(charge.size_bytes - unit.payload_bytes)
        region = charge.region()
        self._fetcher.fetch(unit, memoryview(region))
        return Batch(unit, region, rounding)


def _batch_limits(samples: int, cap_bytes: int, target: Size | None, most: Size | None) -> BatchLimits:
    samples = max(1, whole_number("batch_size_samples", samples, least=0))
    if target is None and most is None:
        return BatchLimits(samples, None, cap_bytes)
    most_bytes = (
        cap_bytes
        if most is None
        else whole_number("max_batch_bytes", parse_bytes(most, name="max_batch_bytes"), least=1)
    )
    if most_bytes > cap_bytes:
        raise ConfigError(
            f"max_batch_bytes {most_bytes} is more than max_inflight_bytes {cap_bytes}; lower it or raise the cap"
        )
    target_bytes = most_bytes
    if target is not None:
        target_bytes = whole_number("target_batch_bytes", parse_bytes(target, name="target_batch_bytes"), least=1)
    return BatchLimits(samples, target_bytes, most_bytes)


def _check_range_pair(start_id: int | None, end_id: int | None) -> None:
    if (start_id is None) != (end_id is None):
        raise ConfigError("start_id and end_id must be set together")


def _range(start_id: int | None, end_id: int | None, count: int) -> tuple[int, int]:
    if start_id is None or end_id is None:
        return 0, count
    start, end = whole_number("start_id", start_id), whole_number("end_id", end_id)
    if start > end:
        raise ConfigError(f"invalid range (start_id > end_id): {start} > {end}")
    for name, value in (("start_id", start), ("end_id", end)):
        if not 0 <= value <= count:
            raise ConfigError(f"{name} out of range: {value}; the manifest has {count} samples")
    return start, end
