"""Samplers: small records that say in which order, and how often, the samples of an epoch are visited."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Protocol, TypeAlias

from penstock.errors import ConfigError
from penstock.loader.order import Order, Sequential, Shuffled
from penstock.loader.state import Epoch
from penstock.sizes import boolean, whole_number

__all__ = [
    "AnySampler",
    "DistributedSampler",
    "RandomSampler",
    "Sampler",
    "SequentialSampler",
    "WeightedSampler",
    "sampler_of",
    "sampler_to_dict",
]


class Sampler(Protocol):
    """What every sampler is."""

    @property
    def kind(self) -> str:
        """Its name in a dict."""

    @property
    def text(self) -> str:
        """What a saved state calls its order; another text is another order."""

    def order(self, epoch: Epoch) -> Order:
        """The order of an epoch."""


@dataclass(frozen=True, slots=True)
class SequentialSampler:
    """Ascending sample ids."""

    kind: ClassVar[str] = "sequential"

    @property
    def text(self) -> str:
        """See ``Sampler``."""
        return "sequential"

    def order(self, epoch: Epoch) -> Order:
        """See ``Sampler``."""
        return Sequential(epoch.start_id, epoch.count)


@dataclass(frozen=True, slots=True)
class RandomSampler:
    """A permutation by (manifest hash, seed, epoch); with ``replacement``, as many independent draws instead."""

    kind: ClassVar[str] = "random"
    replacement: bool = False

    def __post_init__(self) -> None:
        boolean("replacement", self.replacement)

    @property
    def text(self) -> str:
        """See ``Sampler``."""
        return "replacement" if self.replacement else "random"

    def order(self, epoch: Epoch) -> Order:
        """See ``Sampler``."""
        if self.replacement:
            raise ConfigError("sampler is RandomSampler(replacement=True), which comes in a later version")
        return _shuffled(epoch)


@dataclass(frozen=True, slots=True)
class WeightedSampler:
    """Independent draws, each sample in proportion to its weight.

    Attributes:
        weights: one for each sample of the range, none negative, not all 0.
    """

    kind: ClassVar[str] = "weighted"
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        try:
            weights = tuple(float(weight) for weight in self.weights)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"weights is {self.weights!r}; give a number for each sample") from error
        bad = [weight for weight in weights if not (weight >= 0 and math.isfinite(weight))]
        if bad or not any(weights):
            found = bad[0] if bad else "no number above 0"
            raise ConfigError(f"weights have {found}; give finite numbers, none negative, not all 0")
        object.__setattr__(self, "weights", weights)

    @property
    def text(self) -> str:
        """See ``Sampler``."""
        return "weighted"

    def order(self, epoch: Epoch) -> Order:
        """See ``Sampler``."""
        raise ConfigError(f"sampler is a WeightedSampler of epoch {epoch.epoch}, which comes in a later version")


@dataclass(frozen=True, slots=True)
class DistributedSampler:
    """A permutation that ``world_size`` ranks share; this loader is for ``rank``, the same as its arguments say."""

    kind: ClassVar[str] = "distributed"
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", whole_number("rank", self.rank, least=0))
        object.__setattr__(self, "world_size", max(1, whole_number("world_size", self.world_size, least=0)))

    @property
    def text(self) -> str:
        """See ``Sampler``: who shares an order is no part of it."""
        return "random"

    def order(self, epoch: Epoch) -> Order:
        """See ``Sampler``."""
        return _shuffled(epoch)


AnySampler: TypeAlias = SequentialSampler | RandomSampler | WeightedSampler | DistributedSampler

_KINDS: dict[str, type[AnySampler]] = {
    kind.kind: kind for kind in (SequentialSampler, RandomSampler, WeightedSampler, DistributedSampler)
}


def sampler_of(given: AnySampler | str | Mapping[str, Any]) -> AnySampler:
    """A sampler from itself, its name, or a dict such as ``{"kind": "random", "replacement": True}``.

    Raises:
        ConfigError: there is no such sampler, or it lacks or doesn't take an argument.
    """
    if isinstance(given, SequentialSampler | RandomSampler | WeightedSampler | DistributedSampler):
        return given
    asked = {"kind": given} if isinstance(given, str) else dict(given) if isinstance(given, Mapping) else {}
    kind = _KINDS.get(str(asked.pop("kind", None)).lower())
    if kind is None:
        raise ConfigError(f"sampler is {given!r}; give a sampler, or one of {', '.join(_KINDS)} by name or as a dict")
    try:
        return kind(**asked)
    except TypeError as error:
        names = ", ".join(field.name for field in fields(kind)) or "nothing"
        raise ConfigError(f"sampler is {given!r}; {kind.kind!r} takes {names}") from error


def sampler_to_dict(sampler: AnySampler) -> dict[str, Any]:
    """What ``sampler_of`` takes, for JSON and YAML."""
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(sampler).items()}
    return {"kind": sampler.kind, **values}


def _shuffled(epoch: Epoch) -> Order:
    return Shuffled(epoch.start_id, epoch.count, manifest_hash=epoch.manifest_hash, seed=epoch.seed, epoch=epoch.epoch)
