"""The loader of bytes, or of whatever a transform makes of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Unpack

from penstock.budget import Charge
from penstock.loader.arguments import LoaderArguments
from penstock.loader.batch import Batch
from penstock.loader.faults import FaultPolicy, rearrange
from penstock.loader.loader import Loader, call_each
from penstock.loader.options import AnyOptions
from penstock.loader.plan import LEAST_CHARGE_BYTES, Unit
from penstock.loader.raw import Reader
from penstock.loader.settings import defaults, refuse_memory_format, settle
from penstock.loader.transforming import Transforming
from penstock.loader.work import Delivery, Work
from penstock.order.mixture import Mixture
from penstock.workers.sample import random_key

__all__ = ["DataLoader", "load"]


class DataLoader(Loader[Batch]):
    """Loads samples as raw bytes, in order, in batches, never above ``max_inflight_bytes``.

    Args:
        dataset_link: a folder or ``s3://``, ``gs://``, ``az://`` prefix: plain (the pinned manifest if there is one),
            with ``@refresh`` (index again) or ``@sha256:<hash>`` (exactly this manifest); or several, as a ``mix``.
        options: ``LoaderOptions``, or a dict of some of its fields: all knobs in one record. Any field may be given
            as a keyword as well, which then wins. Without a record, the defaults are those below.
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
        group_by_length: put samples of like length side by side, ``collate_buffer_size`` of them at a time.
        batch_cost: from the lengths of n samples to what the first, the first two, ... all n cost as one batch.
        max_batch_cost: no batch costs more.
        transform: a function of one ``Sample``; its results, and not bytes, are what batches are made of.
        batch_transform: instead, a function of the list of a batch's samples that returns the batch.
        collate: ``penstock.pad()``, or a function from the list of a batch's results to the batch; by default, arrays
            are stacked, and the rest is joined by field.
        transform_bytes: the most bytes that the result of one sample takes; charged together with the payload. None
            finds out, and builds batches one after another.
        workers: ``threads`` or ``processes`` run the transform, ``num_workers`` of them.
        on_worker_death: ``replace`` a process that dies and do its samples again, or ``raise``.
        on_error: what becomes of samples that are faulty themselves: ``raise``, ``skip`` (the batch is shorter, down to
            none), ``replace`` (by a good one of the same batch, where one fits), or a function that gets the
            ``SampleError`` and returns one of these. An outage is always raised.
        max_errors: most faulty samples in a loader's pass; the batch with one more raises. None = any number.
        tune: turn them while the loader runs, after how long ``next()`` waits and how much room there is; by default
            within the bounds of ``balanced``. What is given explicitly is then the most. It never changes what is
            delivered, nor the cap.

    Raises:
        ConfigError: an argument that can't work (LinkError: the link). A ``ValueError``.
        ResumeError: the state is of other samples or another order.
        ResolveError, StoreError, ManifestError: the link can't be resolved.
    """

    def __init__(
        self,
        dataset_link: str | Mixture,
        options: AnyOptions | None = None,
        **arguments: Unpack[LoaderArguments],
    ) -> None:
        settings = settle(options, arguments, defaults(batch_size=512))
        refuse_memory_format(settings.options, "a DataLoader gives bytes")
        self._transforming: Transforming | None = None
        super().__init__(dataset_link, settings)

    def _work(self) -> Work[Batch]:
        reader, policy, transform = self._windows or self._fetcher, self._settings.faults, self._settings.transform
        if transform is None:
            return _ReadBytes(reader, policy, self._budget.total_bytes)
        if self._transforming is None:
            self._transforming = Transforming(transform, self._settings.options, self._timeout_s, self._lasting)
        epoch = self._course.epoch
        self._transforming.begin(self._budget, random_key(self.manifest_hash, epoch.seed, epoch.epoch), self._resources)
        work: Work[Any] = self._transforming.work(self._dataset, reader, policy, self._clock)
        return work

    def _canceller(self) -> Callable[[], None]:
        cancel = super()._canceller()
        return cancel if self._transforming is None else partial(call_each, cancel, self._transforming.cancel)

    def _restarts(self) -> Callable[[], int]:
        return int if self._transforming is None else self._transforming.restarts

    def _side_by_side(self) -> bool:
        transform = self._settings.transform
        return transform is None or transform.most_bytes is not None


def load(
    dataset_link: str | Mixture,
    options: AnyOptions | None = None,
    **arguments: Unpack[LoaderArguments],
) -> DataLoader:
    """Load a dataset as batches of raw bytes; see ``DataLoader`` for the arguments and errors."""
    return DataLoader(dataset_link, options, **arguments)


class _ReadBytes:
    """The work of a DataLoader: the payload, as it lies in storage."""

    def __init__(self, reader: Reader, policy: FaultPolicy, cap_bytes: int) -> None:
        self._reader = reader
        self._policy = policy
        self._cap_bytes = cap_bytes

    def cost_bytes(self, unit: Unit) -> int:
        return min(self._cap_bytes, max(LEAST_CHARGE_BYTES, unit.payload_bytes))

    def build(self, unit: Unit, charge: Charge) -> Delivery[Batch]:
        rounding = charge.split(charge.size_bytes - unit.payload_bytes)
        region = charge.region()
        faults = self._policy.faults()
        self._reader.fetch(unit, memoryview(region), faults)
        if not len(faults):
            return Delivery.of(unit, Batch(unit, region, rounding))
        self._reader.name(unit, faults)
        mended = self._policy.mend(unit, faults, unit.lengths)
        rearrange(memoryview(region), mended.rows, unit.dest_offsets(), unit.lengths)
        return Delivery.of(unit, Batch(unit.take(mended.rows), region, rounding), mended)
