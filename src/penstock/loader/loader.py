"""What every loader is: a dataset link in, an iterator of batches out, never above the budget."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from functools import cache, partial
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from penstock import config
from penstock.budget import Budget, RssGuard
from penstock.dataset.joined import Dataset, Joined, Source, join, sources_of
from penstock.dataset.resolve import Resolved, resolve
from penstock.errors import ResumeError, TooManyFaults
from penstock.loader.blame import Naming
from penstock.loader.course import Course, begin, check_mixable, quality_of
from penstock.loader.faults import Fault, Tally, log_faults
from penstock.loader.fetch import Fetcher
from penstock.loader.options import LoaderOptions
from penstock.loader.pipeline import Pipeline
from penstock.loader.plan import Unit, plan_units
from penstock.loader.profiles import Threads, tuning
from penstock.loader.reading import Reading
from penstock.loader.settings import Settings
from penstock.loader.statistics import LoaderStatistics
from penstock.loader.tune import Knobs
from penstock.loader.tuner import Tuner
from penstock.loader.window_plan import share_windows
from penstock.loader.windows import Windows
from penstock.loader.work import Delivery, PipelineStatistics, Work
from penstock.observe.live import LiveLoader
from penstock.observe.metrics import serve_as_configured
from penstock.observe.stages import StageClock
from penstock.observe.trace import Trace, trace_in
from penstock.order.block_order import windows_of
from penstock.order.mixture import Mixture
from penstock.order.order import Int64Array
from penstock.order.quality import ShuffleQuality
from penstock.order.state import LoaderState
from penstock.proof import prove
from penstock.sizes import whole_number

__all__ = ["Loader", "call_each"]

T = TypeVar("T")

_log = logging.getLogger("penstock")

_DEFAULT_STALL_TIMEOUT_S = 300


class Loader(Generic[T]):
    """What every loader shares: a link, a range, a budget, a pipeline and its statistics.

    Single pass: iterating returns the loader itself, and after the last batch every ``next()`` raises StopIteration,
    until ``set_epoch`` begins another epoch. Use it as a context manager, or call ``close()``, or just drop it.
    """

    def __init__(self, dataset_link: str | Mixture, settings: Settings) -> None:
        self._settings = settings
        self._lasting = ExitStack()  # what is kept from epoch to epoch
        self._rss = RssGuard.from_environment()
        self._how = tuning(
            settings.profile,
            tune=settings.options.auto_tune,
            prefetch=settings.prefetch,
            queue=settings.queue,
            threads=self._threads(),
            side_by_side=self._side_by_side(),
            cap_bytes=settings.cap_bytes - settings.windows_bytes,
            rss_limit_bytes=self._rss.limit_bytes,
        )
        self._mixture = dataset_link if isinstance(dataset_link, Mixture) else None
        self._dataset = self._open(dataset_link)
        self._course = self._plan(settings.epoch, settings.resume)
        epoch = self._course.epoch
        prove("range_selected", start_id=epoch.start_id, end_id=epoch.end_id, manifest_hash=epoch.manifest_hash)
        self._rss.sample()
        serve_as_configured()
        self._budget = Budget(settings.cap_bytes)
        self._resources = ExitStack()
        try:
            self._start()
        except BaseException:
            _close(self._resources, self._lasting)
            raise

    def _open(self, link: str | Mixture) -> Dataset:
        """What is to be loaded; all arguments were checked."""
        if not self._settings.says_rank:
            _warn_of_ranks(config.lookup("WORLD_SIZE") or "1")
        return _dataset(link, self._settings)

    def _plan(self, number: int, state: Mapping[str, Any] | None = None) -> Course:
        return begin(self._dataset, self._mixture, self._settings, number, state)

    def _start(self, trace: Trace | None = None) -> None:
        """Begin with what is planned; a trace that is being written goes on."""
        self._resources = ExitStack()  # closed with the loader, or by its producer when it was dropped
        self._clock = self._resources.enter_context(closing(StageClock()))
        reading = Reading.of(self._settings.options)
        self._fetcher = self._resources.enter_context(closing(Fetcher(self._dataset, self._clock, reading)))
        self._windows = None
        if windows_of(self._course.left) is not None:
            self._windows = self._resources.enter_context(closing(Windows(self._fetcher)))
        self._write_trace(trace)
        self._delivered = PipelineStatistics()
        subject = (type(self).__name__, self.manifest_hash, self._settings.limits, self._settings.cap_bytes)
        self._tuner = Tuner(self._how, (*subject, self._course.epoch.order), self._clock, self._delivered, self._rss)
        self._pipeline = self._start_threads()
        self._statistics = LoaderStatistics(
            self._delivered, self._budget, self._rss, self._clock, self._tuner, self._restarts()
        )
        shown = config.flag("TOP") is not False
        live = LiveLoader(self._dataset.base, self.manifest_hash, self._statistics.read, shown=shown)
        self._live = self._resources.enter_context(closing(live))
        self._finalizer = weakref.finalize(self, self._pipeline.abandon)

    def _write_trace(self, trace: Trace | None) -> None:
        if trace is None and (folder := config.lookup("TRACE")) is not None:
            trace = trace_in(folder, self._title)
        if trace is not None:
            self._clock.write_to(trace)

    def _start_threads(self) -> Pipeline[T]:
        knobs, set_threads = self._tuner.knobs, self._thread_setter()
        set_threads(knobs.threads)
        pipeline = Pipeline(
            self._units(),
            Naming(self._work(), self._fetcher.name),
            self._budget,
            builders=knobs.prefetch,
            most_builders=self._tuner.most_prefetch,
            first_alone="://" not in self._dataset.base,  # requests to a store wait more than they compute
            depth=knobs.queue,
            cancel=self._canceller(),
            release=partial(_close, self._resources, self._lasting),
            stall_timeout_s=self._timeout_s,
            clock=self._clock,
            statistics=self._delivered,
            shared=self._windows,
            waits=self._waits(),
        )
        self._tuner.attach(partial(_turn, pipeline, set_threads), pipeline.recent_bytes)
        return pipeline

    def _units(self) -> Iterator[Unit]:
        """What is to be built, in the order of delivery; it must not hold the loader."""
        units = plan_units(
            self._dataset.manifest,
            self._course.left,
            self._settings.limits,
            self._fetcher.size_of,
            self._course.steps,
            first_step=self._course.begun.steps,
            together=self._settings.options.collate_buffer_size,
            repeats=self._course.repeats,
        )
        windows_at = windows_of(self._course.left)
        return units if windows_at is None else share_windows(units, windows_at)

    def _waits(self) -> Callable[[], bool]:
        """Whether units themselves are waited for, with a deadline of their own; it must not hold the loader."""
        return bool

    def _peek(self) -> Delivery[T]:
        """The next result, as the pipeline's ``peek()`` gives it."""
        return self._pipeline.peek()

    def _work(self) -> Work[T]:
        """What this loader does with each unit; runs at the end of construction."""
        raise NotImplementedError

    def _canceller(self) -> Callable[[], None]:
        """What ends all that builds wait for; it must not hold the loader."""
        return self._fetcher.cancel if self._windows is None else self._windows.cancel

    def _restarts(self) -> Callable[[], int]:
        """What counts workers that died and were replaced; it must not hold the loader."""
        return int

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
        return self._dataset.hash

    @property
    def sources(self) -> tuple[Source, ...]:
        """The datasets that are mixed; without a mixture, the one that is loaded."""
        return sources_of(self._dataset)

    def source_of(self, sample_ids: npt.ArrayLike) -> Int64Array:
        """Which source each sample is of, as its place among ``sources``: int64, of the shape of ``sample_ids``."""
        ids = np.asarray(sample_ids, dtype=np.int64)
        return self._dataset.source_of(ids) if isinstance(self._dataset, Joined) else np.zeros_like(ids)

    @property
    def options(self) -> LoaderOptions:
        """The knobs that this loader goes by, its own defaults included."""
        return self._settings.options

    @property
    def epoch(self) -> int:
        """Which epoch this is."""
        return self._course.epoch.epoch

    @property
    def _timeout_s(self) -> float:
        """How long any wait may take."""
        chosen = self._settings.options.timeout_seconds
        return chosen or config.positive_int("STALL_TIMEOUT_S", _DEFAULT_STALL_TIMEOUT_S)

    @property
    def delivered_batches(self) -> int:
        """How many batches of this epoch ``next()`` has returned, since the loader began or went on."""
        return self._delivered.delivered_batches

    @property
    def _once_more(self) -> str:
        """What to do for another pass."""
        return "call set_epoch(n), or make another one"

    @property
    def _title(self) -> str:
        return f"{self._dataset.base}@sha256:{self._dataset.hash}"

    def __iter__(self) -> Loader[T]:
        if self._pipeline.finished and self._delivered.delivered_batches:
            _log.warning("this loader is at its end, so this loop gets nothing: %s", self._once_more)
        return self

    def __next__(self) -> T:
        """The next batch, in order.

        Raises:
            StopIteration: the range is at its end; stays so.
            BudgetHeld: the caller holds so much that the next batch can't be admitted; let go and call again.
            RssExceeded: the process outgrew ``PENSTOCK_MAX_PROCESS_RSS_BYTES``.
            DeadlineExceeded: no batch within ``PENSTOCK_STALL_TIMEOUT_S``.
            ClosedError: after ``close()``.
            SampleError: a sample is faulty, and ``on_error`` says so. TooManyFaults: more are than ``max_errors``.
            StoreError, DataError, UnitTooLarge: the batch can't be read. Earlier batches were delivered before;
                the next call raises StopIteration.
        """
        self._rss.check()  # all that can raise comes before the batch is ours
        self._live.tick()
        self._tuner.tick()
        delivery = self._peek()
        statistics, mine = self._delivered, self._pipeline.mine
        batch, samples, payload_bytes = delivery.result, delivery.samples, delivery.payload_bytes
        positions, faults = delivery.positions, statistics.faults
        if delivery.faults:
            faults = self._told(delivery.faults)
        # From here on no calls: see Pipeline.peek.
        statistics.delivered_batches += 1
        statistics.delivered_samples += samples
        statistics.delivered_bytes += payload_bytes
        statistics.delivered_positions += positions
        statistics.faults = faults
        mine.undelivered = None
        return batch

    def _told(self, faults: tuple[Fault, ...]) -> Tally:
        """Log the faults of a batch that is about to be handed out; what is counted with them."""
        log_faults(faults, self.manifest_hash)
        try:
            return self._delivered.faults.plus(faults, self._settings.faults.max_errors)
        except TooManyFaults as error:
            self._pipeline.give_up(error)

    def __bool__(self) -> bool:
        return True  # also when nothing is left, or when nobody knows how much

    def __len__(self) -> int:
        """Batches of the whole pass.

        Raises:
            TypeError: batches are cut by bytes, so that their number isn't known before they are planned.
        """
        if self._course.steps is None:
            raise TypeError("the number of batches isn't known when they are cut by bytes")
        return self._course.steps.count - self._course.begun.steps

    def state_dict(self) -> dict[str, Any]:
        """What was handed out so far, as a small dict for JSON; ``resume=`` and ``load_state_dict`` go on from it.

        What was only read ahead doesn't count. With several ranks it says what all of them have done when each took as
        many steps as this one, so where they step together any rank's state will do; ``merge_states`` joins those of
        ranks that don't.
        """
        return self._state().to_dict()

    def _state(self) -> LoaderState:
        split, begun, delivered = self._settings.split, self._course.begun, self._delivered
        taken = delivered.delivered_positions if split is None else begun.steps + delivered.delivered_batches
        return LoaderState(self._course.epoch, begun.done, split, taken)

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
        self._restart(self._plan(self.epoch, state))

    def set_epoch(self, epoch: int) -> None:
        """Begin another epoch from its first batch, wherever this one is; counters begin anew as well.

        A loader that was given a state of this very epoch, and has handed out nothing since, goes on there: a loop that
        says which epoch each of its rounds is of loses no state.

        Batches that were handed out stay valid, and charged.

        Raises:
            ConfigError: that is no epoch.
            ClosedError: after ``close()``.
        """
        self._pipeline.check_usable()
        wanted = whole_number("epoch", epoch)
        resumed = bool(self._course.begun.done) and not self._delivered.delivered_batches
        if not (resumed and wanted == self.epoch):
            self._restart(self._plan(wanted))

    def _restart(self, course: Course) -> None:
        self._course = course
        trace = self._clock.take_trace()  # it ends with the loader, which goes on
        self._stop()
        self._budget.reopen()  # the same one: batches that the caller still holds count as before
        self._start(trace)

    def _stop(self) -> None:
        """End what belongs to this epoch."""
        self._finalizer.detach()
        self._pipeline.close()
        self._resources.close()

    def stats(self) -> dict[str, Any]:
        """Counters and gauges, all from the consumer's side; sizes in bytes.

        ``delivered_batches_total``, ``delivered_samples_total``, ``delivered_bytes_total``: what ``next()`` returned.
        ``faulty_samples_total``: samples that were to be in those batches and were faulty, of which
        ``replaced_samples_total`` have another one in their place and ``skipped_samples_total`` have none;
        ``faulty_samples_by_kind``, where there are any: a dict, by class of error.
        ``inflight_bytes``: charged now: read ahead, queued, and held by the consumer. ``max_inflight_bytes``: the cap.
        ``ram_high_water_bytes``: the most that was ever charged, at most the cap. ``process_rss_bytes`` and
        ``process_rss_high_water_bytes``: the whole process, as sampled. ``arena_resident_bytes``: pages of the
        budget that are in memory, warm ones without a charge included. ``data_wait_s``: seconds in ``next()``.
        ``plan_s``, ``budget_wait_s``, ``fetch_s``, ``decode_s``, ``queue_wait_s``: seconds that batches were in each
        stage, added up over threads; ``transform_s`` is one more. ``worker_restarts_total``: worker processes that
        died and were replaced. ``prefetch_batches``, ``max_queue_batches``, ``decode_threads``: where these are
        now. ``tune_decisions_total``: how often tuning changed one; with ``tune=True``, ``tune_decisions`` is a list of
        the last 32: ``{"batch": 40, "knob": "prefetch", "from": 2, "to": 3, "reason": "..."}``. Of a mixture,
        ``source_samples_total`` is a dict: how many samples of each source were in the epoch so far, on all ranks and
        before a resume as well. Of a block shuffle, ``windows_bytes`` of those in flight are held for its windows.
        """
        decisions = self._tuner.decisions()
        kinds = self._delivered.faults.kinds
        counts = None if self._mixture is None else self._course.source_counts(self._state().done_by_all())
        return {
            **self._statistics.read(),
            **({"faulty_samples_by_kind": dict(kinds)} if kinds else {}),
            **({} if decisions is None else {"tune_decisions": decisions}),
            **({} if counts is None else {"source_samples_total": counts}),
            **({} if self._windows is None else {"windows_bytes": self._windows.held_bytes}),
        }

    def shuffle_quality(self, *, by_label: bool = False) -> ShuffleQuality:
        """How random this epoch's order is, as numbers: 1 like a true permutation, 0 like ascending ids; milliseconds.

        It is measured on what all ranks take in a step; see ``penstock.order.quality`` for what the figures mean.

        Args:
            by_label: judge batches by how well they mix labels. By default it is the ids, as what lies together in a
                dataset tends to be alike; where it was packed in random order, labels say how random it really is.

        Raises:
            ConfigError: samples are drawn or mixed and don't come once each, or have no labels.
        """
        return quality_of(self._course, self._dataset.manifest, self._settings, by_label=by_label)

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
        self._stop()
        self._lasting.close()

    def __enter__(self) -> Loader[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@cache  # once is enough: some make a loader for each epoch
def _warn_of_ranks(world_size: str) -> None:
    """A launcher started several processes, and each is about to load everything."""
    if world_size.isdigit() and int(world_size) > 1:
        _log.warning(
            "WORLD_SIZE is %s, and this loader gives every one of these processes all samples: give rank= and "
            "world_size=, or take penstock.torch.EpochLoader, which reads them; rank=0, world_size=1 says that it is "
            "meant so",
            world_size,
        )


def _dataset(link: str | Mixture, settings: Settings) -> Dataset:
    def opened(one: str) -> Resolved:
        return resolve(
            one,
            manifest_store_root=settings.manifest_store_root,
            dev_manifest_path=settings.dev_manifest_path,
            node_id=settings.node_id,
        )

    if not isinstance(link, Mixture):
        return opened(link)
    check_mixable(settings)
    return join(link.names, [opened(one) for one in link.links], link.labels)


def _close(*resources: ExitStack) -> None:
    call_each(*(each.close for each in resources))


def call_each(*functions: Callable[[], None]) -> None:
    """One after the other."""
    for function in functions:
        function()


def _nothing(_: object) -> None:
    """For knobs that aren't there."""


def _turn(pipeline: Pipeline[Any], set_threads: Callable[[int], None], knobs: Knobs) -> None:
    pipeline.resize(builders=knobs.prefetch, depth=knobs.queue)
    set_threads(knobs.threads)
