"""Which of how many ranks this process is: what was given, else torch.distributed, else the environment."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed

from penstock import config
from penstock.errors import ConfigError
from penstock.sizes import whole_number

__all__ = ["Place", "local_rank", "place", "settle_place"]


@dataclass(frozen=True, slots=True)
class Place:
    """A rank among others.

    Attributes:
        rank: from 0.
        world_size: how many ranks there are.
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        whole_number("world_size", self.world_size, least=1)
        whole_number("rank", self.rank, least=0)
        if self.rank >= self.world_size:
            raise ConfigError(
                f"rank is {self.rank}; with world_size {self.world_size} it goes from 0 to {self.world_size - 1}"
            )

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world_size}"


def place(rank: int | None = None, world_size: int | None = None) -> Place:
    """Which rank this process is.

    Args:
        rank: explicitly; together with ``world_size``.
        world_size: the same.

    Returns:
        What was given; else what torch.distributed says, where it is initialised; else the environment's ``RANK`` and
        ``WORLD_SIZE``; else the only rank.

    Raises:
        ConfigError: one without the other, a rank that can't be, or a process group that contradicts the environment.
    """
    if rank is not None or world_size is not None:
        return settle_place((rank, world_size), None, (None, None))
    environment = (_number("RANK"), _number("WORLD_SIZE"))
    return settle_place((None, None), _of_the_process_group(), environment)


def settle_place(
    given: tuple[int | None, int | None], group: Place | None, environment: tuple[int | None, int | None]
) -> Place:
    """The decision that ``place`` makes, of what it found."""
    explicit = _pair(given, "rank=", "world_size=")
    if explicit is not None:
        return explicit
    launched = _pair(environment, "RANK", "WORLD_SIZE")
    if group is not None and launched is not None and group != launched:
        raise ConfigError(
            f"torch.distributed says {group}, the environment's RANK and WORLD_SIZE say {launched}; give rank= and "
            "world_size=, or unset the variables"
        )
    return group or launched or Place()


def local_rank() -> int:
    """Which of this machine's ranks this process is: the environment's ``LOCAL_RANK``, or 0."""
    return _number("LOCAL_RANK") or 0


def _pair(pair: tuple[int | None, int | None], rank_name: str, world_size_name: str) -> Place | None:
    rank, world_size = pair
    if rank is None and world_size is None:
        return None
    if rank is None or world_size is None:
        there, missing = (world_size_name, rank_name) if rank is None else (rank_name, world_size_name)
        raise ConfigError(f"{there} is given without {missing}; give both, or neither")
    return Place(rank, world_size)


def _of_the_process_group() -> Place | None:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    return Place(torch.distributed.get_rank(), torch.distributed.get_world_size())


def _number(name: str) -> int | None:
    return None if config.lookup(name) is None else config.positive_int(name, 0, least=0)
