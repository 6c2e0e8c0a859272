"""What to read for each batch: pure functions from (manifest, order) to units of work and byte ranges.

A ``Unit`` is one batch to be: which samples, where their bytes are, how many they are. Nothing here does I/O; sizes
that the manifest lacks come from a function that the caller gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from penstock.dataset.joined import Samples
from penstock.errors import ConfigError, ManifestError, UnitTooLarge
from penstock.order.by_length import BatchCost, prefix_costs
from penstock.order.order import Int64Array, Order, Remaining
from penstock.order.split import Steps

__all__ = ["LEAST_CHARGE_BYTES", "BatchLimits", "Share", "Span", "Unit", "Window", "coalesce", "plan_units"]

LEAST_CHARGE_BYTES = 64  # what the smallest region takes in the arena: charged, so that many of them stay in the cap

_LOOKAHEAD_SAMPLES = 8192  # ids that are asked for together: an order evaluates many at once far faster than few


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """When a batch is full.

    Attributes:
        samples: most samples in a batch, at least 1.
        target_bytes: a batch that holds this much takes no further sample; None = batches aren't cut by bytes.
        cap_bytes: no batch is larger than this.
        cost: what batches cost; None = they are cut by count or bytes alone.
        most_cost: of a batch.
    """

    samples: int
    target_bytes: int | None
    cap_bytes: int
    cost: BatchCost | None = None
    most_cost: float = math.inf

    @property
    def by_count(self) -> bool:
        """Whether all batches but the last have the same number of samples."""
        return self.target_bytes is None and self.cost is None


@dataclass(frozen=True, slots=True)
class Unit:
    """One batch to be built: n samples in delivery order, as int64 arrays of length n.

    Attributes:
        index: position of the batch in the epoch.
        sample_ids: row numbers in the manifest.
        locations: indexes into ``Manifest.location``.
        offsets: position of the first byte inside the location; -1 = the whole object is the sample.
        lengths: bytes of each sample, never negative.
        crcs: expected crc32c; -1 = unknown.
        labels: label ids, or None when the samples have none.
        start: position of the first sample in the order that was planned; the others follow.
        shares: the windows that hold the samples, in the order of the samples; none where the unit is read by itself.
        begins: windows that are charged with this unit, in the order in which they are read.
        kept_bytes: charged with earlier units for windows that this one still needs, or the next.
        visits: another number whenever a sample comes again; None where each comes once, or nobody asks.
        lease: number of the lease that the samples are had under; 0 = there is none.
    """

    index: int
    sample_ids: Int64Array
    locations: Int64Array
    offsets: Int64Array
    lengths: Int64Array
    crcs: Int64Array
    labels: Int64Array | None
    start: int = 0
    shares: tuple[Share, ...] = ()
    begins: tuple[Window, ...] = ()
    kept_bytes: int = 0
    visits: Int64Array | None = None
    lease: int = 0

    @property
    def begun_bytes(self) -> int:
        """What the windows that begin with this unit are charged."""
        return sum(window.charge_bytes for window in self.begins)

    @property
    def chances(self) -> Int64Array:
        """What random choices about each sample are by."""
        return self.sample_ids if self.visits is None else self.visits

    @property
    def payload_bytes(self) -> int:
        """Bytes of all samples together."""
        return int(self.lengths.sum())

    def take(self, rows: Int64Array) -> Unit:
        """Some of the samples, in the order of ``rows``, which may name one twice."""
        return replace(
            self,
            sample_ids=self.sample_ids[rows],
            locations=self.locations[rows],
            offsets=self.offsets[rows],
            lengths=self.lengths[rows],
            crcs=self.crcs[rows],
            labels=None if self.labels is None else self.labels[rows],
            visits=None if self.visits is None else self.visits[rows],
        )

    def dest_offsets(self) -> Int64Array:
        """Where each sample starts in the payload, and its end: n + 1 offsets, the first 0."""
        offsets = np.zeros(len(self.lengths) + 1, dtype=np.int64)
        np.cumsum(self.lengths, out=offsets[1:])
        return offsets


@dataclass(frozen=True, slots=True)
class Window:
    """Samples that are read together and that several units take from; see ``window_plan``.

    Attributes:
        number: in the order's count of windows.
        samples: all that this loader takes from it, by ascending id; ``index`` is that of the first unit that does.
        users: how many units do.
    """

    number: int
    samples: Unit
    users: int

    @property
    def charge_bytes(self) -> int:
        """What it takes of the budget."""
        return max(LEAST_CHARGE_BYTES, self.samples.payload_bytes)


@dataclass(frozen=True, slots=True)
class Share:
    """Samples ``[first, end)`` of a unit, and which samples of a window they are."""

    window: Window
    first: int
    end: int
    places: Int64Array


SizeOf = Callable[[Int64Array], Int64Array]
"""Bytes of whole objects: location indexes -> sizes."""


def plan_units(
    manifest: Samples,
    order: Order,
    limits: BatchLimits,
    size_of: SizeOf,
    steps: Steps | None = None,
    *,
    first_step: int = 0,
    together: int = _LOOKAHEAD_SAMPLES,
    repeats: bool = False,
) -> Iterator[Unit]:
    """Cut an epoch into units of work, in delivery order, a few thousand rows at a time.

    Args:
        manifest: what there is.
        order: what to visit.
        limits: when a batch is full.
        size_of: bytes of objects that the manifest has no length for.
        steps: which positions make up the batches; needed where they aren't cut by bytes.
        first_step: the first of them.
        together: samples that are planned in one go.
        repeats: samples may come several times, so units number their visits.

    Raises:
        ManifestError: a batch mixes labelled and unlabelled rows, or batches are cut by bytes and a row has no
            length.
        UnitTooLarge: a batch, or a sample where batches are cut by bytes, is larger than the cap.
    """
    if steps is None:
        cut = _cut_by_bytes(manifest, order, limits, together)
    else:
        cut = _cut_in_steps(order, steps, first_step, together)
    for index, (start, ids) in enumerate(cut):
        unit = _unit(manifest, index, start, ids, size_of)
        if repeats:
            unit = replace(unit, visits=_visits(order, np.arange(start, start + len(ids), dtype=np.int64)))
        if unit.payload_bytes > limits.cap_bytes:
            raise UnitTooLarge(
                f"batch payload bytes {unit.payload_bytes} exceeds max_inflight_bytes {limits.cap_bytes} "
                f"(batch {index}, {len(ids)} samples from id {ids[0]}); "
                "raise max_inflight_bytes or lower batch_size_samples",
                needed_bytes=unit.payload_bytes,
                total_bytes=limits.cap_bytes,
            )
        yield unit


def _visits(order: Order, positions: Int64Array) -> Int64Array:
    """Where these are in the whole epoch: the same however often it was interrupted."""
    return order.whole(positions) if isinstance(order, Remaining) else positions


def _cut_in_steps(order: Order, steps: Steps, first_step: int, together: int) -> Iterator[tuple[int, Int64Array]]:
    """The first position and the samples of each batch."""
    size = max(1, together // steps.batch_size)  # steps that are evaluated together
    for first in range(first_step, steps.count, size):
        bounds = [steps.batch(step) for step in range(first, min(first + size, steps.count))]
        ids = order.at(_positions(bounds))
        begin = 0
        for start, end in bounds:
            yield start, ids[begin : begin + end - start]
            begin += end - start


def _positions(bounds: list[tuple[int, int]]) -> Int64Array:
    start, end = bounds[0][0], bounds[-1][1]
    if sum(last - first for first, last in bounds) == end - start:  # neighbours, as they are with one rank
        return np.arange(start, end, dtype=np.int64)
    return np.concatenate([np.arange(first, last, dtype=np.int64) for first, last in bounds])


def _cut_by_bytes(
    manifest: Samples, order: Order, limits: BatchLimits, together: int
) -> Iterator[tuple[int, Int64Array]]:
    """The first position and the samples of each batch."""
    start = 0
    window = max(together, limits.samples)
    while start < order.count:
        ids = order.at(np.arange(start, min(start + window, order.count), dtype=np.int64))
        lengths = np.asarray(manifest.length[ids], dtype=np.int64)
        _check_lengths(ids, lengths, limits.cap_bytes)
        ends_epoch = start + len(ids) == order.count
        if limits.cost is None:
            cuts = _full_batches(lengths, limits, keep_last=ends_epoch)
        else:
            cuts = _batches_of_cost(ids, lengths, limits, limits.cost, keep_last=ends_epoch)
        for begin, end in zip([0, *cuts[:-1]], cuts, strict=True):
            yield start + begin, ids[begin:end]
        start += cuts[-1]


def _check_lengths(ids: Int64Array, lengths: Int64Array, cap_bytes: int) -> None:
    if (lengths < 0).any():
        sample = ids[int(np.argmax(lengths < 0))]
        raise ManifestError(
            f"byte-aware batching requires byte_length for every sample; sample {sample} has none. "
            "Pack the dataset, or leave target_batch_bytes and max_batch_bytes unset"
        )
    if (lengths > cap_bytes).any():
        worst = int(np.argmax(lengths > cap_bytes))
        raise UnitTooLarge(
            f"sample {ids[worst]} has {lengths[worst]} bytes, more than max_batch_bytes {cap_bytes}; raise it",
            needed_bytes=int(lengths[worst]),
            total_bytes=cap_bytes,
        )


def _full_batches(lengths: Int64Array, limits: BatchLimits, *, keep_last: bool) -> list[int]:
    """Ends of the batches in a window; the last, perhaps unfinished, one only if ``keep_last`` or it is alone."""
    assert limits.target_bytes is not None
    cuts: list[int] = []
    count = total = 0
    for position, length in enumerate(lengths.tolist()):
        full = count == limits.samples or total >= limits.target_bytes or total + length > limits.cap_bytes
        if count and full:
            cuts.append(position)
            count = total = 0
        count += 1
        total += length
    if keep_last or not cuts:
        cuts.append(len(lengths))
    return cuts


def _batches_of_cost(
    ids: Int64Array, lengths: Int64Array, limits: BatchLimits, cost: BatchCost, *, keep_last: bool
) -> list[int]:
    """Ends of the batches in a window, as ``_full_batches``: each as long as its cost allows."""
    cuts: list[int] = []
    start = 0
    while start < len(lengths):
        costs = prefix_costs(cost, lengths[start : start + limits.samples])
        over = np.flatnonzero(costs > limits.most_cost)
        if over.size and over[0] == 0:
            raise ConfigError(
                f"sample {ids[start]} ({lengths[start]} bytes) alone costs {costs[0]:g}, more than max_batch_cost "
                f"{limits.most_cost:g}; raise it"
            )
        taken = int(over[0]) if over.size else len(costs)
        if not over.size and taken < limits.samples and not keep_last and cuts:
            break  # what follows the window may still belong to it
        start += taken
        cuts.append(start)
    return cuts


def _unit(manifest: Samples, index: int, start: int, ids: Int64Array, size_of: SizeOf) -> Unit:
    rows: slice | Int64Array = ids
    if ids[-1] - ids[0] == len(ids) - 1 and (np.diff(ids) == 1).all():
        rows = slice(int(ids[0]), int(ids[-1]) + 1)  # neighbours are a view of the map, not a gather from it
    locations = manifest.location_index[rows].astype(np.int64)
    lengths = np.array(manifest.length[rows], dtype=np.int64)
    unsized = np.flatnonzero(lengths < 0)
    if unsized.size:
        lengths[unsized] = size_of(locations[unsized])
    return Unit(
        index=index,
        sample_ids=ids,
        locations=locations,
        offsets=np.array(manifest.offset[rows], dtype=np.int64),
        lengths=lengths,
        crcs=np.array(manifest.crc32c[rows], dtype=np.int64),
        labels=_labels(index, np.array(manifest.label_id[rows], dtype=np.int64)),
        start=start,
    )


def _labels(index: int, labels: Int64Array) -> Int64Array | None:
    labelled = labels >= 0
    if labelled.all():
        return labels
    if labelled.any():
        raise ManifestError(
            f"batch {index} has mixed labeled/unlabeled samples ({int(labelled.sum())} of {len(labels)} have a "
            "label); pack with label_mode='imagefolder' or 'none'"
        )
    return None


@dataclass(frozen=True, slots=True)
class Span:
    """One ranged read of an object: bytes ``[start, end)`` serve the samples ``[first, last)`` of a sorted list."""

    start: int
    end: int
    first: int
    last: int


def coalesce(offsets: Int64Array, lengths: Int64Array, *, max_gap_bytes: int, max_span_bytes: int) -> list[Span]:
    """Merge ranges of one object into fewer reads.

    Args:
        offsets: ascending starts.
        lengths: bytes of each range; ranges that overlap land in different spans.
        max_gap_bytes: bytes that are worth reading in vain to save a request.
        max_span_bytes: where a read is long enough; a single longer range is one read all the same.

    Returns:
        Spans in ascending order that cover every range of at least one byte.
    """
    spans: list[Span] = []
    first, start, end = 0, -1, -1
    for index, (offset, length) in enumerate(zip(offsets.tolist(), lengths.tolist(), strict=True)):
        gap = offset - end
        if start >= 0 and (not 0 <= gap <= max_gap_bytes or offset + length - start > max_span_bytes):
            spans.append(Span(start, end, first, index))
            start = -1
        if start < 0:
            first, start = index, offset
        end = offset + length
    if start >= 0:
        spans.append(Span(start, end, first, len(lengths)))
    return [span for span in spans if span.end > span.start]
