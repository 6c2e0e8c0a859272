"""How a loader is made again for every epoch, rank and worker."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from penstock import config
from penstock.errors import ConfigError
from penstock.loader import LoaderOptions
from penstock.loader.loader import Loader
from penstock.loader.settings import DEFAULT_INFLIGHT_BYTES, require_pinned_source
from penstock.order.sampler import DistributedSampler
from penstock.sizes import parse_bytes, whole_number
from penstock.torch.position import Position
from penstock.torch.ranks import Place, place

__all__ = ["Maker", "Part"]

T = TypeVar("T")

_RANK: Final = ("rank", "shard_rank")
_WORLD_SIZE: Final = ("world_size", "shard_world_size")
_OURS: Final = ("pin_memory", "non_blocking")  # what loops do with batches, and loaders don't
_WORKER: Final = ("worker_id", "num_workers_pytorch")


@dataclass(frozen=True, slots=True)
class Part:
    """What a worker of torch's DataLoader takes of its rank's steps: those s with s % ``workers`` == ``worker``."""

    worker: int = 0
    workers: int = 1


@dataclass(frozen=True)
class Maker(Generic[T]):
    """What makes loaders: the same one for another epoch, rank or worker.

    Attributes:
        make: makes it: ``penstock.load``, ``ImageFolderLoader``, or a function that takes the same keywords.
        args: what that is called with,
        arguments: and the keywords.
        start: where the first epoch begins: what ``epoch=`` and ``resume=`` said among the keywords.
    """

    make: Callable[..., Loader[T]]
    args: tuple[Any, ...]
    arguments: Mapping[str, Any]
    start: Position = field(default_factory=Position)

    @classmethod
    def of(cls, make: Callable[..., Loader[T]], args: tuple[Any, ...], arguments: Mapping[str, Any]) -> Maker[T]:
        """A maker out of what a user gave.

        Raises:
            ConfigError: ``make`` is a loader instead of what makes one, or a keyword that isn't the user's to say.
        """
        if not callable(make):
            raise ConfigError(
                f"the first argument is {make!r}; give what makes a loader, then what it takes: "
                "EpochLoader(penstock.load, 'photos', shuffle=True)"
            )
        for name in _WORKER:
            if name in arguments:
                raise ConfigError(f"{name} is given; torch's DataLoader says which worker is which, so leave it out")
        rest = dict(arguments)
        epoch, resume = rest.pop("epoch", None), rest.pop("resume", None)
        start = Position() if resume is None else Position.from_dict(resume)
        if epoch is not None:
            if resume is not None and epoch != start.epoch:
                raise ConfigError(f"epoch is {epoch}, and resume is a state of epoch {start.epoch}; give one of them")
            start = Position(whole_number("epoch", epoch, least=0), start.batches, start.loader)
        maker = cls(make, args, rest, start)
        if (workers := maker._knob("num_workers_pytorch") or 1) > 1:
            raise ConfigError(
                f"the options are for worker {maker._knob('worker_id') or 0} of {workers}; torch's DataLoader says "
                "which worker is which, so leave worker_id and num_workers_pytorch out"
            )
        require_pinned_source(
            pin_memory=bool(maker.asked("pin_memory")), non_blocking=bool(maker.asked("non_blocking"))
        )
        return maker

    def place(self) -> Place | None:
        """Which rank this process is; None where the loader's options say so themselves.

        Raises:
            ConfigError: see ``ranks.place``.
        """
        if self._options_say_rank():
            return None
        return place(self._asked(_RANK), self._asked(_WORLD_SIZE))

    def open(self, position: Position, place: Place | None, part: Part | None = None) -> Loader[T]:
        """Make the loader that goes on from a position."""
        arguments = dict(self.arguments)
        if place is not None:
            for name in _RANK + _WORLD_SIZE:
                arguments.pop(name, None)
            arguments.update(rank=place.rank, world_size=place.world_size)
        if position.loader is not None:
            arguments["resume"] = position.loader
        if part is not None:
            arguments.update(self._shared_out(part))
        arguments.update((knob, False) for knob in _OURS if self.asked(knob))
        return self.make(*self.args, **arguments, epoch=position.epoch)

    def asked(self, knob: str) -> Any:
        """What keywords, or a record of options, say of a knob; the loader is who checks it."""
        return self.arguments.get(knob) or self._knob(knob)

    def _shared_out(self, part: Part) -> dict[str, Any]:
        """What a worker gets: its steps, and its share of the memory and of the cores."""
        cap_bytes = parse_bytes(
            self.arguments.get("max_inflight_bytes") or DEFAULT_INFLIGHT_BYTES, name="max_inflight_bytes"
        )
        shares: dict[str, Any] = {
            "worker_id": part.worker,
            "num_workers_pytorch": part.workers,
            "max_inflight_bytes": max(1, cap_bytes // part.workers),
        }
        if not self._threads_are_chosen():
            shares["num_workers"] = max(1, len(os.sched_getaffinity(0)) // part.workers)
        return shares

    def _threads_are_chosen(self) -> bool:
        return bool(self.asked("num_workers")) or config.lookup("DECODE_THREADS") is not None

    def _options_say_rank(self) -> bool:
        samplers = (self.arguments.get("sampler"), self.arguments.get("sampler_type"), self._knob("sampler_type"))
        return any(_is_distributed(sampler) for sampler in samplers) or (self._knob("shard_world_size") or 1) > 1

    def _knob(self, name: str) -> Any:
        """What a record of options says, if there is one; the loader is who checks it."""
        options = self.arguments.get("options", self.args[1] if len(self.args) > 1 else None)
        if options is None or isinstance(options, Mapping):
            return (options or {}).get(name)
        return getattr(LoaderOptions.of(options), name)

    def _asked(self, names: tuple[str, ...]) -> int | None:
        given = [self.arguments[name] for name in names if self.arguments.get(name) is not None]
        if len(given) > 1:
            raise ConfigError(f"{names[0]} and {names[1]} are two names of one thing; give one of them")
        return given[0] if given else None


def _is_distributed(sampler: Any) -> bool:
    kind = sampler.get("kind") if isinstance(sampler, Mapping) else getattr(sampler, "kind", None)
    return bool(kind == DistributedSampler.kind)
