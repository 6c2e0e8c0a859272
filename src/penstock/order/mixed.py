"""The order of a mixture: at each position a source, and of that the next sample of its own order. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeAlias

import numpy as np

from penstock.dataset.joined import Source, grouped
from penstock.errors import ConfigError, ResumeError
from penstock.order.interleave import MOST_POSITIONS, MOST_SHARES, Interleave
from penstock.order.order import Int64Array, Order

__all__ = ["Mixed", "Recipe", "Segment", "Visit"]

Visit: TypeAlias = Callable[[Source, int], Order]
"""In which order a source is visited, and which pass over it this is: (source, pass) -> order of ``source.count``."""

_NAME = "mix "


@dataclass(frozen=True, slots=True)
class Segment:
    """From a position of the epoch on, sources have these shares."""

    start: int
    shares: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that the order of a mixture depends on beside the loader's seed and epoch.

    Attributes:
        hashes: the first 16 digits of those of the sources' manifests, in their order.
        segments: from which position on which shares hold; the first begins at 0.
        seed: of how sources take turns.
        stop: ``first``, ``all``, or a number of samples.
        visits: how each source is visited, as the same loader without a mixture would say it.
    """

    hashes: tuple[str, ...]
    segments: tuple[Segment, ...]
    seed: int
    stop: str | int
    visits: str

    def text(self) -> str:
        """For ``Epoch.order``."""
        return _NAME + json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def read(cls, text: str) -> Recipe | None:
        """From what ``text()`` gave; None where it is another order.

        Raises:
            ResumeError: it begins like one and isn't.
        """
        if not text.startswith(_NAME):
            return None
        try:
            found = json.loads(text.removeprefix(_NAME))
            segments = tuple(Segment(int(part["start"]), tuple(map(int, part["shares"]))) for part in found["segments"])
            read = cls(tuple(found["hashes"]), segments, found["seed"], found["stop"], found["visits"])
            read._check()
        except (ValueError, TypeError, LookupError) as error:
            raise ResumeError(f"this is no state of a loader: {error!r}; give what state_dict() returned") from error
        return read

    def _check(self) -> None:
        starts = [segment.start for segment in self.segments]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(f"shares can't hold from {starts} on")
        for segment in self.segments:
            shares = segment.shares
            if len(shares) != len(self.hashes) or min(shares) < 0 or not 0 < sum(shares) <= MOST_SHARES:
                raise ValueError(f"{len(self.hashes)} sources can't have shares {shares}")

    @property
    def shares(self) -> tuple[int, ...]:
        """What holds at the end."""
        return self.segments[-1].shares

    def require(self, now: Recipe, names: Sequence[str]) -> None:
        """Refuse to go on with a mixture that differs in anything but its shares.

        Args:
            now: what is to be.
            names: of its sources.

        Raises:
            ResumeError: naming what differs.
        """
        compared: list[tuple[str, object, object]] = [
            ("number of sources", len(self.hashes), len(now.hashes)),
            ("seed", self.seed, now.seed),
            ("stop", self.stop, now.stop),
            ("order within the sources", self.visits, now.visits),
        ]
        if len(self.hashes) == len(now.hashes):
            manifests = zip(names, self.hashes, now.hashes, strict=True)
            compared += [(f"manifest of source {name!r}", before, after) for name, before, after in manifests]
        differing = [
            f"the {what} was {before!r} and is {after!r} now" for what, before, after in compared if before != after
        ]
        if differing:
            raise ResumeError(
                f"the state is of another mixture: {', '.join(differing)}. Only weights may be changed when going on: "
                "make the mixture as it was, or begin anew without the state"
            )

    def with_shares(self, shares: tuple[int, ...], done: Sequence[tuple[int, int]]) -> Recipe:
        """Other shares from what is done on, where each source goes on at its own count.

        Args:
            shares: of the sources, from there on.
            done: half-open intervals of positions, ascending and apart.

        Raises:
            ResumeError: what is done isn't the beginning of the epoch.
        """
        if len(done) > 1 or (done and done[0][0] > 0):
            raise ResumeError(
                f"the weights of the mixture were changed, from {self.shares} to {shares}, but what is done isn't the "
                f"beginning of the epoch: it is {len(done)} pieces, since ranks had come differently far. Go on with "
                "the weights as they were, and change them at a state that all ranks save after the same step"
            )
        end = done[0][1] if done else 0
        kept = tuple(segment for segment in self.segments if segment.start < end)
        return replace(self, segments=(*kept, Segment(end, shares)))


class Mixed:
    """The order of an epoch of a mixture.

    Args:
        sources: what is mixed.
        recipe: how.
        visit: in which order each source is visited.
        key: of how sources take turns: the text of all that the epoch is by.

    Attributes:
        sources: what is mixed.
        count: samples of the epoch.
        most_error: see ``Interleave``; of the shares that hold at the end.

    Raises:
        ConfigError: the epoch would never end, or a source has no samples.
    """

    def __init__(self, sources: Sequence[Source], recipe: Recipe, visit: Visit, *, key: str) -> None:
        self.sources = tuple(sources)
        self._visit = visit
        self._starts = np.array([segment.start for segment in recipe.segments], dtype=np.int64)
        self._turns = [
            Interleave(segment.shares, f"penstock mixture {key} {recipe.seed} {segment.start}")
            for segment in recipe.segments
        ]
        self._before = [np.zeros(len(sources), dtype=np.int64)]  # samples of each source before each segment
        for turns, length in zip(self._turns, np.diff(self._starts).tolist(), strict=False):
            self._before.append(self._before[-1] + turns.counts(length))
        _check_not_empty(sources, recipe.shares)
        self.count = recipe.stop if isinstance(recipe.stop, int) else self._end(recipe.shares, recipe.stop)
        self.most_error = self._turns[-1].most_error

    def at(self, positions: Int64Array) -> Int64Array:
        """The sample ids at these positions."""
        sources, indexes = self.turns(positions)
        found = np.empty(len(positions), dtype=np.int64)
        for number, places in grouped(sources):
            source = self.sources[number]
            own = indexes[places]
            if int(own.max()) < source.count:  # as it nearly always is
                found[places] = self._visit(source, 0).at(own)
                continue
            passes, inside = np.divmod(own, source.count)
            for number_of_pass, some in grouped(passes):
                found[places[some]] = self._visit(source, number_of_pass).at(inside[some])
        return found

    def turns(self, positions: Int64Array) -> tuple[Int64Array, Int64Array]:
        """The source at each position, and how many samples of it come before."""
        if len(self._turns) == 1:
            return self._turns[0].at(positions)
        sources, indexes = np.empty_like(positions), np.empty_like(positions)
        for number, places in grouped(np.searchsorted(self._starts, positions, side="right") - 1):
            found, inside = self._turns[number].at(positions[places] - self._starts[number])
            sources[places], indexes[places] = found, inside + self._before[number][found]
        return sources, indexes

    def counts(self, position: int) -> Int64Array:
        """How many samples of each source come before a position."""
        number = int(np.searchsorted(self._starts[1:], position, side="right"))
        return self._before[number] + self._turns[number].counts(position - int(self._starts[number]))

    @property
    def repeats(self) -> bool:
        """Whether a source is passed through more than once."""
        counts = self.counts(self.count).tolist()
        return any(count > source.count for count, source in zip(counts, self.sources, strict=True))

    def _end(self, shares: Sequence[int], stop: str) -> int:
        left = [source.count - before for source, before in zip(self.sources, self._before[-1].tolist(), strict=True)]
        return int(self._starts[-1]) + (
            self._until_repeated(shares, left) if stop == "first" else self._until_seen(shares, left)
        )

    def _until_repeated(self, shares: Sequence[int], left: list[int]) -> int:
        """Positions before the first one that needs a sample more than a source has left."""
        needed = [number for number, share in enumerate(shares) if share]
        near = [number for number in needed if _reach(shares, left, number) < MOST_POSITIONS]
        if not near:
            raise _too_long(min(_reach(shares, left, number) for number in needed))
        return int(self._positions_of(near, [left[number] for number in near]).min())

    def _until_seen(self, shares: Sequence[int], left: list[int]) -> int:
        """Positions up to the one that sees the last sample of the last source."""
        needed = [number for number, samples in enumerate(left) if samples > 0]
        for number in needed:
            if not shares[number]:
                raise ConfigError(
                    f"source {self.sources[number].name!r} has weight 0 and would never be seen whole, so stop='all' "
                    "has no end; give it a weight, or stop='first' or a length"
                )
        longest = max((_reach(shares, left, number) for number in needed), default=0)
        if longest >= MOST_POSITIONS:
            raise _too_long(longest)
        return 1 + int(self._positions_of(needed, [left[number] - 1 for number in needed]).max(initial=-1))

    def _positions_of(self, sources: list[int], samples: list[int]) -> Int64Array:
        return self._turns[-1].position_of(np.array(sources, dtype=np.int64), np.array(samples, dtype=np.int64))


def _reach(shares: Sequence[int], left: list[int], number: int) -> int:
    """About where the last sample of a source comes."""
    return left[number] * sum(shares) // shares[number]


def _too_long(samples: int) -> ConfigError:
    return ConfigError(
        f"an epoch of the mixture would have {samples:.1e} samples; give weights that are nearer to one another, or a "
        "length"
    )


def _check_not_empty(sources: Sequence[Source], shares: Sequence[int]) -> None:
    for source, share in zip(sources, shares, strict=True):
        if share and not source.count:
            raise ConfigError(f"source {source.name!r} has no samples; leave it out, or give it weight 0")
