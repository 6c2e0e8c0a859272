"""What a user says of a mixture: sources, weights, and when it ends. A value; nothing is opened."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal, TypeAlias, get_args

from penstock.dataset.links import parse_link
from penstock.errors import ConfigError
from penstock.order.interleave import MOST_POSITIONS, MOST_SHARES
from penstock.sizes import whole_number

__all__ = ["Labels", "Mixture", "Stop", "mix", "shares_of"]

Stop: TypeAlias = Literal["first", "all"]
Labels: TypeAlias = Literal["same", "own", "none"]

_MOST_SOURCES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Mixture:
    """Several datasets that are loaded as one; ``mix`` makes it, and every loader takes it for a dataset link.

    Attributes:
        names: of the sources.
        links: of the sources, in the same order.
        weights: of the sources, in proportion to one another; None = by their numbers of samples.
        seed: of the order in which sources take turns.
        stop: when an epoch ends, where ``length`` doesn't say it.
        length: samples of an epoch, or None.
        labels: what label ids mean.
    """

    names: tuple[str, ...]
    links: tuple[str, ...]
    weights: tuple[int | float, ...] | None = None
    seed: int = 0
    stop: Stop = "first"
    length: int | None = None
    labels: Labels = "same"


def mix(
    sources: Sequence[str] | Mapping[str, str],
    weights: Sequence[int | float] | Mapping[str, int | float] | None = None,
    seed: int = 0,
    stop: Stop = "first",
    length: int | None = None,
    *,
    labels: Labels = "same",
) -> Mixture:
    """Describe a mixture of datasets, for any loader to load as one, under one budget.

    Each source is visited in its own order, and begins a further pass in a new order when it is used up. Among any
    first p samples of an epoch there are p times its share of each source, to within a sample or two
    (``Interleave.most_error``).

    Args:
        sources: dataset links; or names for them, ``{"web": "s3://b/web", "books": "books-packed"}``. Without names
            they are called by their links.
        weights: how much of each, in proportion to one another: by source, in their order or by name. Default: as many
            as each has samples, so that an epoch has each sample once.
        seed: of the order in which sources take turns, together with the epoch.
        stop: ``first``: an epoch ends where the first source would have to repeat a sample; ``all``: when every source
            was seen whole at least once.
        length: an epoch has exactly so many samples, whatever ``stop`` is.
        labels: ``same``: all sources have the same labels, or none has any, else making a loader fails; ``own``:
            label ids are each source's own; ``none``: labels aren't loaded.

    Raises:
        ConfigError: names the argument that can't work.
    """
    names, links = _sources(sources)
    for link in links:
        parse_link(link)
    if stop not in get_args(Stop):
        raise ConfigError(f"stop is {stop!r}; give 'first' or 'all', or a length")
    if labels not in get_args(Labels):
        raise ConfigError(f"labels is {labels!r}; give 'same', 'own' or 'none'")
    if length is not None:
        length = whole_number("length", length, least=1, most=MOST_POSITIONS)
    found = None if weights is None else _weights(weights, names)
    if found is not None:
        shares_of(found, names)
    return Mixture(names, links, found, whole_number("seed", seed), stop, length, labels)


def shares_of(weights: Sequence[int | float], names: Sequence[str]) -> list[int]:
    """Weights as whole numbers in the same proportion, as small as can be.

    0.7 is seven tenths here, not the binary number next to it. Where the proportion needs more than 2^48 shares it is
    rounded to so many.

    Raises:
        ConfigError: a weight that isn't a number of at least 0, or all are 0.
    """
    exact = [_fraction(weight, name) for weight, name in zip(weights, names, strict=True)]
    total = sum(exact)
    if not total:
        raise ConfigError(f"all weights are 0: {list(weights)}; give at least one source a weight above 0")
    unit = math.lcm(*(part.denominator for part in exact))
    shares = [int(part * unit) for part in exact]
    divisor = math.gcd(*shares)
    if total * unit / divisor <= MOST_SHARES:
        return [share // divisor for share in shares]
    rounded = [max(1, int(part / total * MOST_SHARES)) if part else 0 for part in exact]
    rounded[rounded.index(max(rounded))] += MOST_SHARES - sum(rounded)
    return rounded


def _sources(sources: Sequence[str] | Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if isinstance(sources, str) or not isinstance(sources, Sequence | Mapping):
        raise ConfigError(f"sources is {sources!r}; give a list of dataset links, or a mapping of names to links")
    links = tuple(sources.values()) if isinstance(sources, Mapping) else tuple(sources)
    names = tuple(sources) if isinstance(sources, Mapping) else links
    if not 1 <= len(links) <= _MOST_SOURCES:
        raise ConfigError(f"there are {len(links)} sources; give 1 to {_MOST_SOURCES}")
    for name, link in zip(names, links, strict=True):
        if not isinstance(name, str) or not isinstance(link, str):
            raise ConfigError(f"source {name!r} is {link!r}; give a dataset link as text, with a name that is text")
    if len(set(names)) < len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise ConfigError(f"source {twice!r} is there twice; give it more weight, or two names")
    return names, links


def _weights(
    weights: Sequence[int | float] | Mapping[str, int | float], names: tuple[str, ...]
) -> tuple[int | float, ...]:
    if isinstance(weights, Mapping):
        if set(weights) != set(names):
            differing = ", ".join(sorted(map(str, set(weights) ^ set(names))))
            raise ConfigError(f"weights and sources have different names: {differing}; give each source one weight")
        return tuple(weights[name] for name in names)
    found = tuple(weights)
    if len(found) != len(names):
        raise ConfigError(f"there are {len(found)} weights for {len(names)} sources; give one for each")
    return found


def _fraction(weight: int | float, name: str) -> Fraction:
    try:
        if not isinstance(weight, bool) and math.isfinite(weight) and weight >= 0:
            return Fraction(str(weight))
    except (TypeError, ValueError, OverflowError):
        pass
    raise ConfigError(f"the weight of source {name!r} is {weight!r}; give a number of at least 0")
