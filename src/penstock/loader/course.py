"""The course of a loader through an epoch: which epoch, in which order, and what of it is left. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from penstock.dataset.joined import Dataset, Joined, Samples, Source
from penstock.errors import ConfigError
from penstock.loader.settings import Settings
from penstock.order.block_order import BlockShuffled
from penstock.order.by_length import ByLength
from penstock.order.mixed import Mixed, Recipe, Segment
from penstock.order.mixture import Mixture, shares_of
from penstock.order.order import Order, Remaining, Sequential, Shuffled
from penstock.order.quality import ShuffleQuality, shuffle_quality
from penstock.order.sampler import AnySampler, BlockSampler, RandomSampler, Sampler, WeightedSampler
from penstock.order.split import Steps
from penstock.order.state import Begun, Epoch, Intervals, LoaderState

__all__ = ["Course", "begin", "check_mixable", "quality_of"]


@dataclass(frozen=True, slots=True)
class Course:
    """What a loader is to visit.

    Attributes:
        epoch: which.
        whole: its order.
        begun: where the loader begins.
        left: the order of what is left.
        steps: of what is left; None where batches are cut by bytes.
        repeats: whether a sample may come several times.
    """

    epoch: Epoch
    whole: Order
    begun: Begun
    left: Order
    steps: Steps | None
    repeats: bool

    def source_counts(self, done: Intervals) -> dict[str, int] | None:
        """How many of these positions are of each source of a mixture; None without one."""
        if not isinstance(self.whole, Mixed):
            return None
        found = np.zeros(len(self.whole.sources), dtype=np.int64)
        for start, end in done:
            found += self.whole.counts(end) - self.whole.counts(start)
        return {source.name: int(count) for source, count in zip(self.whole.sources, found, strict=True)}


def begin(
    dataset: Dataset, mixture: Mixture | None, settings: Settings, number: int, state: Mapping[str, Any] | None = None
) -> Course:
    """Plan an epoch, or what is left of it.

    Args:
        dataset: what there is; joined, of a mixture.
        mixture: how it is mixed, or None.
        settings: of the loader.
        number: of the epoch.
        state: of a loader of the same epoch, to go on from.

    Raises:
        ConfigError: there is no such range or split, or the mixture can't be.
        ResumeError: the state is of another epoch.
    """
    saved = None if state is None else LoaderState.from_dict(state)
    if mixture is None:
        epoch = _epoch(settings, dataset, number)
        whole = _whole(settings.sampler, dataset, epoch)
        if settings.group:
            key = f"{epoch.manifest_hash} {epoch.seed} {epoch.epoch}"
            whole = ByLength(whole, dataset.manifest.length, settings.group, key)
        if saved is not None:
            saved.require(epoch)
    else:
        assert isinstance(dataset, Joined)
        epoch, whole = _mixed(dataset, mixture, settings, number, saved)
    begun = Begun() if saved is None else saved.begun(settings.split)
    left = Remaining(whole, begun.done) if begun.done else whole
    steps = None if settings.split is None else Steps(left.count, settings.split)
    return Course(epoch, whole, begun, left, steps, repeats=_repeats(settings.sampler, whole))


def _whole(sampler: AnySampler, dataset: Dataset, epoch: Epoch) -> Order:
    return sampler.order_in(dataset.manifest, epoch) if isinstance(sampler, BlockSampler) else sampler.order(epoch)


def quality_of(course: Course, samples: Samples, settings: Settings, *, by_label: bool) -> ShuffleQuality:
    """How random the order of an epoch is; see ``Loader.shuffle_quality``.

    Raises:
        ConfigError: samples don't come once each, or there are no labels.
    """
    if not isinstance(course.whole, Sequential | Shuffled | BlockShuffled):
        raise ConfigError(
            f"the order is {course.epoch.order!r}, which doesn't visit every sample once, so there is no permutation "
            "to compare it with; ask loaders whose order is sequential, random or block"
        )
    first, split = course.epoch.start_id, settings.split
    labels = np.asarray(samples.label_id[first : course.epoch.end_id]) if by_label else None
    if labels is not None and (not labels.size or labels.min() < 0):
        raise ConfigError("not all samples have labels; leave by_label False")
    together = settings.limits.samples if split is None else split.step
    return shuffle_quality(course.whole, together, first=first, labels=labels)


def check_mixable(settings: Settings) -> None:
    """Refuse, before anything is opened, what is meant for one dataset.

    Raises:
        ConfigError: names the argument.
    """
    if settings.range is not None:
        raise ConfigError("start_id and end_id are of one dataset; a mixture's epoch is as long as its length says")
    if settings.dev_manifest_path is not None:
        raise ConfigError("dev_manifest_path is of one dataset; index each source of the mixture with its own, first")
    if settings.group:
        raise ConfigError("group_by_length is of one dataset; sort or bucket before packing, or leave it False")
    if isinstance(settings.sampler, WeightedSampler):
        raise ConfigError(
            "a WeightedSampler has weights for the samples of one dataset; give the mixture's sources weights"
        )
    if isinstance(settings.sampler, BlockSampler):
        raise ConfigError("a BlockSampler reads windows of one dataset; shuffle a mixture with shuffle=True")


def _epoch(settings: Settings, dataset: Dataset, number: int) -> Epoch:
    count = dataset.manifest.row_count
    start, end = settings.range or (0, count)
    for name, value in (("start_id", start), ("end_id", end)):
        if not 0 <= value <= count:
            raise ConfigError(f"{name} out of range: {value}; the manifest has {count} samples")
    text = settings.sampler.text + (f", by length in {settings.group}" if settings.group else "")
    return Epoch(dataset.hash, start, end, text, settings.seed, number)


def _mixed(
    dataset: Joined, mixture: Mixture, settings: Settings, number: int, saved: LoaderState | None
) -> tuple[Epoch, Mixed]:
    assert not isinstance(settings.sampler, BlockSampler)  # see check_mixable
    weights = [source.count for source in dataset.sources] if mixture.weights is None else mixture.weights
    recipe = Recipe(
        hashes=tuple(source.manifest_hash[:16] for source in dataset.sources),
        segments=(Segment(0, tuple(shares_of(weights, mixture.names))),),
        seed=mixture.seed,
        stop=mixture.stop if mixture.length is None else mixture.length,
        visits=settings.sampler.text,
    )
    epoch = Epoch(dataset.hash, 0, 0, recipe.text(), settings.seed, number)
    if saved is not None:
        recipe = _going_on(saved, epoch, recipe, mixture.names)
    order = Mixed(
        dataset.sources, recipe, _Visits(settings.sampler, epoch), key=f"{dataset.hash} {epoch.seed} {number}"
    )
    return replace(epoch, end_id=order.count, order=recipe.text()), order


def _going_on(saved: LoaderState, epoch: Epoch, now: Recipe, names: Sequence[str]) -> Recipe:
    """All must be as it was, but for the shares, and with them how long the epoch is."""
    before = Recipe.read(saved.epoch.order)
    if before is None:
        saved.require(epoch)
        return now
    before.require(now, names)
    saved.require(replace(epoch, end_id=saved.epoch.end_id, order=saved.epoch.order))
    return before if before.shares == now.shares else before.with_shares(now.shares, saved.done())


def _repeats(sampler: AnySampler, whole: Order) -> bool:
    draws = isinstance(sampler, WeightedSampler) or (isinstance(sampler, RandomSampler) and sampler.replacement)
    return draws or (isinstance(whole, Mixed) and whole.repeats)


@dataclass(frozen=True, slots=True)
class _Visits:
    """In which order a source is visited: as it would be without the mixture, and anew in each further pass."""

    sampler: Sampler
    epoch: Epoch

    def __call__(self, source: Source, number_of_pass: int) -> Order:
        key = source.manifest_hash + (f" pass {number_of_pass}" if number_of_pass else "")
        start, end = source.first_id, source.first_id + source.count
        return self.sampler.order(replace(self.epoch, manifest_hash=key, start_id=start, end_id=end))
