"""What makes a loader one of a shared job: its units come from leases, and it says how far it is with them."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, TypeVar

from penstock import config
from penstock.budget import Budget
from penstock.coordinator.credentials import Credentials
from penstock.coordinator.holder import Holder
from penstock.coordinator.holding import Portion
from penstock.coordinator.member import join
from penstock.coordinator.state import Caps
from penstock.dataset.joined import Dataset
from penstock.distributed.job_dataset import job_dataset
from penstock.distributed.lease_plan import lease_units, units_of
from penstock.distributed.link import Link, named, positive, refuse_what_is_decided
from penstock.errors import ConfigError, CoordinatorRefused, ResumeError
from penstock.loader.course import Course, begin
from penstock.loader.faults import Fault, Tally
from penstock.loader.loader import Loader, call_each
from penstock.loader.plan import Unit
from penstock.loader.work import Delivery
from penstock.observe.trace import Trace
from penstock.order.mixture import Mixture
from penstock.order.quality import ShuffleQuality
from penstock.sizes import Size, parse_bytes, whole_number

__all__ = ["Leased"]

T = TypeVar("T")

_log = logging.getLogger("penstock")

_FETCHES: Final = 32  # MX8's nodes say so
_DECODES: Final = 8
_POLL_S: Final = 0.002


@dataclass(frozen=True, slots=True)
class _Hand:
    """What a thread of the consumer's was given last."""

    mine: dict[str, Any]  # of that thread, in the pipeline
    portion: Portion
    samples: int  # without faulty ones that were left out

    @property
    def delivered(self) -> bool:
        """Whether it reached its caller; see ``Pipeline.peek``."""
        return self.mine.get("undelivered") is None


class _Idle(Exception):
    """There is nothing for this node at present."""


class _Polling(threading.local):
    """Whether this thread takes no for an answer."""

    on = False


class Leased(Loader[T]):
    """What makes a loader one of a shared job: its units come from leases; see ``DistributedDataLoader``."""

    def __init__(
        self,
        *,
        coord_url: str,
        job_id: str,
        node_id: str,
        want: int = 1,
        progress_interval_ms: int = 500,
        grpc_max_message_bytes: Size = 64 << 20,
        coord_timeout_s: float = 60.0,
        join_timeout_s: float = 600.0,
        token: str | None = None,
        tls_ca: str | os.PathLike[str] | None = None,
        tls_cert: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
        dataset_base: str | os.PathLike[str] | None = None,
        resume: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        refuse_what_is_decided(arguments)
        ca, certificate, key = (None if path is None else Path(path) for path in (tls_ca, tls_cert, tls_key))
        self._link = Link(
            coord_url=coord_url,
            job_id=named("job_id", job_id),
            node_id=named("node_id", node_id),
            want=whole_number("want", want, least=1, most=1024),
            report_interval_s=whole_number("progress_interval_ms", progress_interval_ms, least=1) / 1000,
            max_message_bytes=whole_number(
                "grpc_max_message_bytes",
                parse_bytes(grpc_max_message_bytes, name="grpc_max_message_bytes"),
                least=1 << 16,
                most=(1 << 31) - 1,  # of what gRPC counts
            ),
            timeout_s=positive("coord_timeout_s", coord_timeout_s),
            join_timeout_s=positive("join_timeout_s", join_timeout_s),
            credentials=Credentials(token or config.lookup("COORD_TOKEN"), ca, certificate, key),
            base=None if dataset_base is None else str(dataset_base),
            resume=resume,
        )
        self._client = self._link.client()
        self._hands: dict[int, _Hand] = {}  # by thread
        self._settling = threading.Lock()  # a thread's next batch isn't put in place of one that another settles
        self._polling = _Polling()
        self._by_hand = False
        self._epoch = 0
        try:
            super().__init__("", node_id=node_id, **arguments)  # type: ignore[call-arg]  # a DataLoader's, or alike
        except BaseException:
            self._end()
            raise

    # What a loader asks.

    def _open(self, link: str | Mixture) -> Dataset:
        del link  # the coordinator says
        if self._link.resume is not None:
            self._restore(self._link.resume)
        caps = Caps(_FETCHES, _DECODES, self._settings.cap_bytes, self._settings.cap_bytes)
        self._member = join(
            self._client, self._link.job_id, self._link.node_id, caps, within_s=self._link.join_timeout_s
        )
        self._holder = Holder(
            self._client, self._member, want=self._link.want, report_interval_s=self._link.report_interval_s
        )
        self._lasting.callback(self._holder.close)
        return job_dataset(
            self._client, self._member.registered, base=self._link.base, root=self._settings.manifest_store_root
        )

    def _plan(self, number: int, state: Mapping[str, Any] | None = None) -> Course:
        del number, state
        settings = replace(self._settings, seed=self._member.registered.seed)
        return begin(self._dataset, None, settings, 0)

    def _units(self) -> Iterator[Unit]:
        self._holder.stats = partial(_gauges, self._budget)
        plan = partial(units_of, samples=self._dataset.manifest, settings=self._settings, size_of=self._fetcher.size_of)
        return _noticed(lease_units(self._holder, plan), self._holder, self._link)

    def _canceller(self) -> Callable[[], None]:
        return partial(call_each, super()._canceller(), self._holder.cancel)

    def _waits(self) -> Callable[[], bool]:
        return partial(_waiting, self._holder)

    def _peek(self) -> Delivery[T]:
        me = threading.get_ident()
        self._settle(me)
        if self._by_hand:
            self._refuse_beside_undone()
        while True:
            if self._polling.on:
                self._require_promise()
            delivery = self._pipeline.peek()
            mine = self._pipeline.mine
            assert mine.undelivered is not None
            unit = mine.undelivered[0]
            portion = self._holder.portion(unit.lease, int(unit.sample_ids[0]), int(unit.sample_ids[-1]) + 1)
            if portion is not None and self._holder.hand_out(portion, delivery.samples, delivery.payload_bytes):
                self._hands[me] = _Hand(mine.__dict__, portion, delivery.samples)
                self._epoch = portion.epoch
                return delivery
            mine.undelivered = None  # its lease is somebody else's: what it holds is never handed out
            del delivery

    def _refuse_beside_undone(self) -> None:
        if (portion := self.in_hand) is not None:  # its lease would never end: this loop would wait for itself
            raise ConfigError(
                f"samples {portion.start} to {portion.end - 1}, which this loop was given last, aren't done: what was "
                "to come of them raised, or took another batch itself. Close this loader, so that they are given out "
                "again, and go on with another one"
            )

    def _require_promise(self) -> None:
        while not self._pipeline.promising:
            if self._holder.idle:
                raise _Idle
            time.sleep(_POLL_S)

    def _told(self, faults: tuple[Fault, ...]) -> Tally:
        try:
            return super()._told(faults)
        except BaseException:
            self._hands.pop(threading.get_ident(), None)  # it isn't handed out
            raise

    def _settle(self, *threads: int) -> None:
        """What these threads have is done, unless they say so themselves."""
        if self._by_hand:
            return
        with self._settling:
            delivered = [thread for thread in threads if (hand := self._hands.get(thread)) and hand.delivered]
            settled = [self._hands.pop(thread) for thread in delivered]
        for hand in settled:
            self._holder.take(hand.portion)

    @property
    def _once_more(self) -> str:
        return "the job's samples come once; begin another job, or this one with more epochs"

    # What a user asks.

    def poll(self) -> T | None:
        """As ``next()``, but None where others have all that is left: this node may get of it yet, if one of them dies.

        For ranks that meet in every step, where waiting for the others' leases would be waiting for oneself; see
        ``penstock.torch.in_step``.

        Raises:
            StopIteration: the job is done, on all nodes.
        """
        self._polling.on = True
        try:
            return next(self)
        except _Idle:
            return None
        finally:
            self._polling.on = False

    @property
    def assigned_rank(self) -> int:
        """This node's place among all of the job's, by their sorted ids, from 0."""
        return self._member.registered.rank

    @property
    def world_size(self) -> int:
        """How many nodes share the job."""
        return self._member.registered.world_size

    @property
    def epoch(self) -> int:
        """Of the batch that was handed out last."""
        return self._epoch

    @property
    def in_hand(self) -> Portion | None:
        """Which samples of which lease this thread was given last; None before the first, and after the last."""
        hand = self._hand()
        return None if hand is None else hand.portion

    @property
    def samples_in_hand(self) -> int:
        """How many of them the batch has, whatever became of them; faulty ones that were left out don't count."""
        hand = self._hand()
        return 0 if hand is None else hand.samples

    def _hand(self) -> _Hand | None:
        hand = self._hands.get(threading.get_ident())
        return hand if hand is not None and hand.delivered else None

    @cached_property
    def sample_count(self) -> int:
        """How many samples the job has, on all nodes together."""
        return int(self._client.checkpoint()["samples"])

    def count_by_hand(self) -> None:
        """From now on a batch counts as done only when ``done()`` says so; see ``penstock.run_job``.

        Raises:
            ConfigError: batches were taken before, of which nobody could say so.
        """
        if not self._by_hand and self.delivered_batches:
            raise ConfigError(
                f"{self.delivered_batches} batches of this loader were taken before, so nothing would come of them; "
                "give run_job a loader that nothing was taken of"
            )
        self._by_hand = True
        _ = self.sample_count  # while there is somebody to ask

    def done(self) -> None:
        """The batch that this thread was given last is done."""
        hand = self._hands.pop(threading.get_ident(), None)
        if hand is not None:
            self._holder.take(hand.portion)

    def __len__(self) -> int:
        raise TypeError("nobody knows how many batches of a shared job will be this node's")

    def stats(self) -> dict[str, Any]:
        """As of every loader; also ``leases_held``, and ``leases_lost_total``, those that became somebody else's."""
        return {**super().stats(), "leases_held": self._holder.held, "leases_lost_total": self._holder.lost_total}

    def state_dict(self) -> dict[str, Any]:
        """What of the whole job is done, on all nodes, as the coordinator knows it: a small dict for JSON.

        Batches that this node was given count as done, also the one in hand. To have those of all nodes in it, call it
        on each node, and keep the one that was called last. ``resume=`` begins another job there, on any number of
        nodes.

        Raises:
            CoordinatorUnreachable, CoordinatorRefused: it can't be asked.
            ClosedError: after ``close()``.
        """
        self._pipeline.check_usable()
        self._settle(*self._hands)
        self._holder.flush()
        return self._client.checkpoint()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that the job began from this state: a job that has begun can't be moved.

        Raises:
            ResumeError: it began elsewhere; give ``resume=state`` to the loaders of a new job.
        """
        self._pipeline.check_usable()
        self._restore(state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        if not isinstance(state, Mapping):
            raise ResumeError(f"the state is {state!r:.80}; give what state_dict() returned, a dict")
        try:
            self._client.restore(state)
        except CoordinatorRefused as error:
            raise ResumeError(f"the job can't begin there: {error}") from error

    def set_epoch(self, epoch: int) -> NoReturn:
        """Refused: the coordinator says which epoch it is, and leases the next when this one is done.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"set_epoch({epoch}): the epochs of a shared job are the coordinator's (its options epoch and epochs); "
            "batches of all of them come in one loop"
        )

    def shuffle_quality(self, *, by_label: bool = False) -> ShuffleQuality:
        """Refused: the order depends on who takes which lease.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"shuffle_quality(by_label={by_label}): leases of a shared job are taken in no one order")

    def close(self) -> None:
        """Report what is done, the batches in hand as well, leave the job, and stop. Safe twice.

        Batches, tensors and views that were handed out stay valid.
        """
        self._settle(*self._hands)
        super().close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            with self._settling:
                self._hands.clear()  # what was being worked on isn't done: others get it
        self.close()

    def _end(self) -> None:
        """After a construction that failed."""
        if (lasting := getattr(self, "_lasting", None)) is not None:
            lasting.close()
        self._client.close()

    def _start(self, trace: Trace | None = None) -> None:
        super()._start(trace)
        weakref.finalize(self, self._holder.abandon)


def _noticed(units: Iterator[Unit], holder: Holder, link: Link) -> Iterator[Unit]:
    """The same; a job that has nothing for this node looks like an empty dataset, so it is said."""
    first = next(units, None)
    if first is not None:
        yield first
        del first
        yield from units
    elif holder.drained:
        _log.warning(
            "job %r is done, and node %r got nothing of it: others had it all, or it was done before (`penstock "
            "coordinator --anew` begins it again)",
            link.job_id,
            link.node_id,
        )


def _gauges(budget: Budget) -> dict[str, int]:
    return {"inflight_bytes": budget.charged_bytes, "ram_high_water_bytes": budget.peak_bytes}


def _waiting(holder: Holder) -> bool:
    return holder.waiting
