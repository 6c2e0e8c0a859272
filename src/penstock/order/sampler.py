"""Samplers: small records that say in which order, and how often, the samples of an epoch are visited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, TypeAlias, TypedDict

import numpy as np

from penstock.dataset.joined import Samples
from penstock.errors import ConfigError
from penstock.order.block_order import HELD_WINDOWS, BlockShuffled, blocks_of
from penstock.order.draws import AliasTable, Weighted, Weights, WithReplacement, checked_weights
from penstock.order.order import Order, Sequential, Shuffled
from penstock.order.state import Epoch
from penstock.sizes import boolean, format_bytes, parse_bytes, whole_number

__all__ = [
    "AnySampler",
    "BlockSampler",
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
        if not self.replacement:
            return _shuffled(epoch)
        return WithReplacement(epoch.start_id, epoch.count, **_key(epoch))


@dataclass(frozen=True, slots=True, eq=False)
class WeightedSampler:
    """Independent draws, each sample in proportion to its weight.

    Attributes:
        weights: float64 ``[n]``, read-only: one for each sample of the range, none negative, not all 0. Any sequence or
            array of numbers may be given.
        table: what they come to.
    """

    kind: ClassVar[str] = "weighted"
    weights: Weights
    table: AliasTable = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", checked_weights(self.weights))
        object.__setattr__(self, "table", AliasTable(self.weights))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeightedSampler) and self.table.hash == other.table.hash

    def __hash__(self) -> int:
        return hash(self.table.hash)

    @property
    def text(self) -> str:
        """See ``Sampler``."""
        return f"weighted {self.table.hash}"

    def order(self, epoch: Epoch) -> Order:
        """See ``Sampler``."""
        if len(self.table) != epoch.count:
            raise ConfigError(
                f"the sampler has {len(self.table)} weights for {epoch.count} samples; give one for each sample of the "
                "dataset, or of the range from start_id to end_id"
            )
        return Weighted(epoch.start_id, self.table, **_key(epoch))


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


@dataclass(frozen=True, slots=True)
class BlockSampler:
    """A permutation that is read in long ranges: for object stores, and disks that seek.

    Neighbouring samples make a block, which one read brings; blocks are permuted; so many of them make a window, whose
    samples are permuted among each other. Smaller blocks and larger windows are more random: see
    ``Loader.shuffle_quality``. Two windows are held in memory, within ``max_inflight_bytes`` and beside the batches; of
    several ranks, each holds its own part of them.

    Attributes:
        block_bytes: about so many bytes, or text such as ``"1MiB"``, are a block: fewer mean more reads.
        window_bytes: about so many are a window, at least two blocks; all ranks together.
    """

    kind: ClassVar[str] = "block"
    block_bytes: int | str = 256 << 10
    window_bytes: int | str = 32 << 20

    def __post_init__(self) -> None:
        block_bytes, window_bytes = (_fixed_bytes(self, name) for name in ("block_bytes", "window_bytes"))
        if window_bytes < 2 * block_bytes:
            raise ConfigError(
                f"window_bytes is {window_bytes} ({format_bytes(window_bytes)}) and block_bytes {block_bytes} "
                f"({format_bytes(block_bytes)}); a window of less than two blocks mixes nothing: raise it, or take "
                "smaller blocks"
            )

    @property
    def text(self) -> str:
        """See ``Sampler``."""
        return f"block {self.block_bytes} {self.window_bytes}"

    def held_bytes(self, loaders: int) -> int:
        """About what the windows take that each of so many loaders holds, which share an epoch."""
        return HELD_WINDOWS * int(self.window_bytes) // loaders

    def order_in(self, samples: Samples, epoch: Epoch) -> BlockShuffled:
        """The order of an epoch of these samples, by how large they are.

        Raises:
            ConfigError: their manifest doesn't say.
        """
        blocks = blocks_of(samples, int(self.block_bytes), int(self.window_bytes))
        return BlockShuffled(epoch.start_id, epoch.count, blocks, **_key(epoch))


def _fixed_bytes(sampler: BlockSampler, name: str) -> int:
    """Put a size into bytes; a share of memory would be another order on another machine."""
    given = getattr(sampler, name)
    if isinstance(given, float):
        raise ConfigError(f'{name} is {given!r}; give an int of bytes or text such as "1MiB"')
    size = whole_number(name, parse_bytes(given, name=name), least=1)
    object.__setattr__(sampler, name, size)
    return size


AnySampler: TypeAlias = SequentialSampler | RandomSampler | WeightedSampler | DistributedSampler | BlockSampler

_KINDS: dict[str, type[AnySampler]] = {
    kind.kind: kind for kind in (SequentialSampler, RandomSampler, WeightedSampler, DistributedSampler, BlockSampler)
}


def sampler_of(given: AnySampler | str | Mapping[str, Any]) -> AnySampler:
    """A sampler from itself, its name, or a dict such as ``{"kind": "random", "replacement": True}``.

    Raises:
        ConfigError: there is no such sampler, or it lacks or doesn't take an argument.
    """
    if isinstance(given, SequentialSampler | RandomSampler | WeightedSampler | DistributedSampler | BlockSampler):
        return given
    asked = {"kind": given} if isinstance(given, str) else dict(given) if isinstance(given, Mapping) else {}
    kind = _KINDS.get(str(asked.pop("kind", None)).lower())
    if kind is None:
        raise ConfigError(f"sampler is {given!r}; give a sampler, or one of {', '.join(_KINDS)} by name or as a dict")
    try:
        return kind(**asked)
    except TypeError as error:
        names = ", ".join(each.name for each in fields(kind) if each.init) or "nothing"
        raise ConfigError(f"sampler is {given!r}; {kind.kind!r} takes {names}") from error


def sampler_to_dict(sampler: AnySampler) -> dict[str, Any]:
    """What ``sampler_of`` takes, for JSON and YAML."""
    values = {each.name: getattr(sampler, each.name) for each in fields(sampler) if each.init}
    lists = {name: value.tolist() for name, value in values.items() if isinstance(value, np.ndarray)}
    return {"kind": sampler.kind, **values, **lists}


def _shuffled(epoch: Epoch) -> Order:
    return Shuffled(epoch.start_id, epoch.count, **_key(epoch))


class _Key(TypedDict):
    manifest_hash: str
    seed: int
    epoch: int


def _key(epoch: Epoch) -> _Key:
    """What everything random is by."""
    return {"manifest_hash": epoch.manifest_hash, "seed": epoch.seed, "epoch": epoch.epoch}
