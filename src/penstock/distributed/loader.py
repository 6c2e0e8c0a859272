"""Loaders of a job that several nodes share, over uneven ones as well: a coordinator leases samples to each of them."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias, TypeVar

from penstock import config
from penstock.budget import Budget
from penstock.coordinator.client import Client, Credentials
from penstock.coordinator.holder import Holder, Member, join
from penstock.coordinator.holding import Portion
from penstock.coordinator.state import Caps
from penstock.dataset.index import canonical_base
from penstock.dataset.joined import Dataset
from penstock.dataset.links import parse_link
from penstock.dataset.manifest_store import ManifestStore, staging_file
from penstock.dataset.resolve import Resolved
from penstock.distributed.lease_plan import lease_units, units_of
from penstock.errors import ConfigError, CoordinatorRefused, ManifestNotFound, ResumeError
from penstock.loader.batch import Batch
from penstock.loader.course import Course, begin
from penstock.loader.faults import Fault, Tally
from penstock.loader.loader import DataLoader, Loader
from penstock.loader.plan import Unit
from penstock.loader.work import Delivery
from penstock.observe.trace import Trace
from penstock.order.mixture import Mixture
from penstock.order.quality import ShuffleQuality
from penstock.proof import prove
from penstock.sizes import Size, parse_bytes, whole_number
from penstock.store import open_store
from penstock.vision import ImageFolderLoader

if TYPE_CHECKING:
    import torch

__all__ = ["DistributedDataLoader", "DistributedLoader"]

T = TypeVar("T")
_Images: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"

_FETCHES: Final = 32  # MX8's nodes say so
_DECODES: Final = 8
_POLL_S: Final = 0.002
_THE_COORDINATORS: Final = (
    *("start_id", "end_id", "shuffle", "seed", "generator_seed", "epoch", "sampler", "sampler_type", "group_by_length"),
    *("rank", "shard_rank", "world_size", "shard_world_size", "worker_id", "num_workers_pytorch", "drop_last"),
    *("dev_manifest_path", "options"),
)


@dataclass(frozen=True, slots=True)
class _Link:
    """How a loader takes part in its job."""

    coord_url: str
    job_id: str
    node_id: str
    want: int
    report_interval_s: float
    max_message_bytes: int
    timeout_s: float
    join_timeout_s: float
    credentials: Credentials
    base: str | None
    resume: Mapping[str, Any] | None

    def client(self) -> Client:
        return Client(
            self.coord_url,
            self.job_id,
            timeout_s=self.timeout_s,
            credentials=self.credentials,
            max_message_bytes=self.max_message_bytes,
        )


@dataclass(frozen=True, slots=True)
class _Hand:
    """What a thread of the consumer's was given last."""

    mine: dict[str, Any]  # of that thread, in the pipeline
    portion: Portion

    @property
    def delivered(self) -> bool:
        """Whether it reached its caller; see ``Pipeline.peek``."""
        return self.mine.get("undelivered") is None


class _Idle(Exception):
    """There is nothing for this node at present."""


class _Polling(threading.local):
    """Whether this thread takes no for an answer."""

    on = False


class _Leased(Loader[T]):
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
        _refuse_what_is_decided(arguments)
        ca, certificate, key = (None if path is None else Path(path) for path in (tls_ca, tls_cert, tls_key))
        self._link = _Link(
            coord_url=coord_url,
            job_id=_named("job_id", job_id),
            node_id=_named("node_id", node_id),
            want=whole_number("want", want, least=1, most=1024),
            report_interval_s=whole_number("progress_interval_ms", progress_interval_ms, least=1) / 1000,
            max_message_bytes=whole_number(
                "grpc_max_message_bytes",
                parse_bytes(grpc_max_message_bytes, name="grpc_max_message_bytes"),
                least=1 << 16,
            ),
            timeout_s=_positive("coord_timeout_s", coord_timeout_s),
            join_timeout_s=_positive("join_timeout_s", join_timeout_s),
            credentials=Credentials(token or config.lookup("COORD_TOKEN"), ca, certificate, key),
            base=None if dataset_base is None else str(dataset_base),
            resume=resume,
        )
        self._client = self._link.client()
        self._hands: dict[int, _Hand] = {}  # by thread
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
        return _dataset(self._client, self._member, self._link.base, self._settings.manifest_store_root)

    def _plan(self, number: int, state: Mapping[str, Any] | None = None) -> Course:
        del number, state
        settings = replace(self._settings, seed=self._member.registered.seed)
        return begin(self._dataset, None, settings, 0)

    def _units(self) -> Iterator[Unit]:
        self._holder.stats = partial(_gauges, self._budget)
        plan = partial(units_of, samples=self._dataset.manifest, settings=self._settings, size_of=self._fetcher.size_of)
        return lease_units(self._holder, plan)

    def _canceller(self) -> Callable[[], None]:
        return partial(_both, super()._canceller(), self._holder.cancel)

    def _waits(self) -> Callable[[], bool]:
        return partial(_waiting, self._holder)

    def _peek(self) -> Delivery[T]:
        me = threading.get_ident()
        self._settle(me)
        while True:
            if self._polling.on:
                self._require_promise()
            delivery = self._pipeline.peek()
            mine = self._pipeline.mine
            assert mine.undelivered is not None
            unit = mine.undelivered[0]
            portion = self._holder.portion(unit.lease, int(unit.sample_ids[0]), int(unit.sample_ids[-1]) + 1)
            if portion is not None and self._holder.hand_out(portion, delivery.samples, delivery.payload_bytes):
                self._hands[me] = _Hand(mine.__dict__, portion)
                self._epoch = portion.epoch
                return delivery
            mine.undelivered = None  # its lease is somebody else's: what it holds is never handed out
            del delivery

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
        for thread in threads:
            hand = self._hands.get(thread)
            if hand is not None and hand.delivered:
                del self._hands[thread]
                self._holder.take(hand.portion)

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
        hand = self._hands.get(threading.get_ident())
        return hand.portion if hand is not None and hand.delivered else None

    @cached_property
    def sample_count(self) -> int:
        """How many samples the job has, on all nodes together."""
        return int(self._client.checkpoint()["samples"])

    def count_by_hand(self) -> None:
        """From now on a batch counts as done only when ``done()`` says so; see ``penstock.run_job``."""
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


class DistributedDataLoader(_Leased[Batch], DataLoader):
    """One node's part of a job that a coordinator shares out: batches of raw bytes, never above ``max_inflight_bytes``.

    The coordinator leases ranges of samples. A batch counts as done when the next one is asked for, or at ``close()``
    or ``state_dict()``. What a node that died hadn't done goes to the others, so each sample is handed out at least
    once, and exactly once where nobody dies; the loop ends when all samples of the job are done.

    Args:
        coord_url: ``http://host:port`` of the coordinator, or of several with commas between them; ``https://`` with
            TLS.
        job_id: of the job.
        node_id: of this process; another one with the same name takes its place.
        want: leases that are worked on side by side, one batch of each in turn.
        progress_interval_ms: how often cursors are reported, which also renews leases.
        grpc_max_message_bytes: the largest message from or to the coordinator.
        coord_timeout_s: how long a coordinator that is gone is waited for, until CoordinatorUnreachable.
        join_timeout_s: how long the other nodes are waited for at the beginning.
        token: that the coordinator asks for; default ``PENSTOCK_COORD_TOKEN``.
        tls_ca: file with the certificates that the coordinator's is signed by.
        tls_cert: file with this node's certificate, where it is asked for.
        tls_key: of that certificate.
        dataset_base: where this node finds the dataset, if not where the coordinator does.
        resume: what ``state_dict()`` of an earlier job returned; all nodes give the same.
        **arguments: those of ``DataLoader`` that aren't the coordinator's to decide: ``batch_size_samples`` (512),
            ``max_inflight_bytes``, ``max_queue_batches``, ``prefetch_batches``, ``target_batch_bytes``,
            ``max_batch_bytes``, ``manifest_store_root``, ``transform``, ``on_error``, ``tune`` and others.

    Raises:
        ConfigError: an argument that can't work, or is the coordinator's to decide.
        CoordinatorUnreachable: it doesn't answer.
        CoordinatorRefused: it doesn't want this node; ``code`` says why.
        DeadlineExceeded: not all nodes came.
        ResumeError: the job can't begin from ``resume``.
        ManifestError, StoreError: the dataset can't be opened.
    """


class DistributedLoader(_Leased[_Images], ImageFolderLoader):
    """One node's part of a shared job, as ``(images, labels)``.

    Takes what ``DistributedDataLoader`` does, and the decode options of ``penstock.vision.ImageFolderLoader``
    (``resize_hw``, ``random_resized_crop_hw``, ``horizontal_flip``, ``mean``, ``dtype``, ...), with its default of 32
    images in a batch. Images of a further epoch are cropped and mirrored anew.
    """


def _dataset(client: Client, member: Member, base: str | None, root: str | None) -> Resolved:
    """The job's manifest, out of the store of manifests if it is there, else from the coordinator."""
    manifest_hash = member.registered.manifest_hash
    store = ManifestStore(open_store(root or config.default_manifest_store_root().value or ""))
    try:
        store.check_present(manifest_hash)
    except ManifestNotFound:
        with staging_file() as text:
            version = client.manifest(manifest_hash, text)
            prove("manifest_cached", manifest_hash=manifest_hash, bytes=text.tell(), schema_version=version)
            store.put(manifest_hash, text)
    manifest = store.open(manifest_hash)
    where = base or member.registered.dataset_base
    if manifest.version and not where:
        raise ConfigError(
            "the manifest's locations are relative, and the coordinator doesn't say to what; give dataset_base="
        )
    return Resolved(manifest, canonical_base(parse_link(where).base if where else "."), manifest_hash)


def _refuse_what_is_decided(arguments: Mapping[str, Any]) -> None:
    given = [name for name in _THE_COORDINATORS if arguments.get(name) is not None]
    if given:
        raise ConfigError(
            f"{' and '.join(given)}: which samples a node of a shared job gets, and in which order, is the "
            "coordinator's to say; give that to `penstock coordinator`"
        )


def _named(what: str, name: str) -> str:
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"{what} is {name!r}; give it a name")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{what} is {name!r}, which UTF-8 can't hold ({error.reason}); give another name") from None
    return name


def _positive(what: str, seconds: float) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ConfigError(f"{what} is {seconds!r}; give seconds, more than 0")
    return float(seconds)


def _gauges(budget: Budget) -> dict[str, int]:
    return {"inflight_bytes": budget.charged_bytes, "ram_high_water_bytes": budget.peak_bytes}


def _waiting(holder: Holder) -> bool:
    return holder.waiting


def _both(*functions: Callable[[], None]) -> None:
    for function in functions:
        function()
