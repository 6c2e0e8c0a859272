"""The course of a loader through an epoch: which epoch, in which order, and what of it is left. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from penstock.dataset.joined import Dataset, Joined, Source
from penstock.errors import ConfigError
from penstock.loader.mixed import Mixed, Recipe, Segment
from penstock.loader.mixture import Mixture, shares_of
from penstock.loader.order import Order, Remaining
from penstock.loader.sampler import RandomSampler, Sampler, WeightedSampler
from penstock.loader.settings import Settings
from penstock.loader.split import Steps
from penstock.loader.state import Begun, Epoch, Intervals, LoaderState

__all__ = ["Course", "begin", "check_mixable"]


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
        whole = settings.sampler.order(epoch)
        if saved is not None:
            saved.require(epoch)
    else:
        assert isinstance(dataset, Joined)
        epoch, whole = _mixed(dataset, mixture, settings, number, saved)
    begun = Begun() if saved is None else saved.begun(settings.split)
    left = Remaining(whole, begun.done) if begun.done else whole
    steps = None if settings.split is None else Steps(left.count, settings.split)
    return Course(epoch, whole, begun, left, steps, repeats=_repeats(settings.sampler, whole))


def check_mixable(settings: Settings) -> None:
    """Refuse, before anything is opened, what is meant for one dataset.

    Raises:
        ConfigError: names the argument.
    """
    if settings.range is not None:
        raise ConfigError("start_id and end_id are of one dataset; a mixture's epoch is as long as its length says")
    if settings.dev_manifest_path is not None:
        raise ConfigError("dev_manifest_path is of one dataset; index each source of the mixture with its own, first")
    if isinstance(settings.sampler, WeightedSampler):
        raise ConfigError(
            "a WeightedSampler has weights for the samples of one dataset; give the mixture's sources weights"
        )


def _epoch(settings: Settings, dataset: Dataset, number: int) -> Epoch:
    count = dataset.manifest.row_count
    start, end = settings.range or (0, count)
    for name, value in (("start_id", start), ("end_id", end)):
        if not 0 <= value <= count:
            raise ConfigError(f"{name} out of range: {value}; the manifest has {count} samples")
    return Epoch(dataset.hash, start, end, settings.sampler.text, settings.seed, number)


def _mixed(
    dataset: Joined, mixture: Mixture, settings: Settings, number: int, saved: LoaderState | None
) -> tuple[Epoch, Mixed]:
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


def _repeats(sampler: Sampler, whole: Order) -> bool:
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
