"""Where the knobs of a loader start, and how far tuning may turn them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from penstock.errors import ConfigError
from penstock.loader.tune import Knobs, Limits, Range
from penstock.sizes import whole_number

__all__ = ["PROFILES", "Profile", "Threads", "Tuning", "tuning"]


@dataclass(frozen=True, slots=True)
class Profile:
    """A way to start, and bounds.

    Attributes:
        prefetch: batches built at once, at first.
        most_prefetch: and at most, when tuned.
        queue: finished batches that may wait, at first.
        most_queue: and at most, when tuned.
        threads: share of this process's CPUs that decode at first; at most all do.
        room: share of the cap that tuning plans with.
    """

    prefetch: int
    most_prefetch: int
    queue: int
    most_queue: int
    threads: float
    room: float


PROFILES: Final = {
    "safe": Profile(prefetch=1, most_prefetch=2, queue=2, most_queue=8, threads=0.5, room=0.5),
    "balanced": Profile(prefetch=2, most_prefetch=8, queue=4, most_queue=16, threads=1.0, room=0.75),
    "throughput": Profile(prefetch=4, most_prefetch=16, queue=16, most_queue=64, threads=1.0, room=1.0),
}
_WHEN_TUNED: Final = "balanced"
_PLAIN: Final = Profile(prefetch=1, most_prefetch=1, queue=64, most_queue=64, threads=1.0, room=1.0)


@dataclass(frozen=True, slots=True)
class Threads:
    """Threads that decode: those that there are CPUs for, unless somebody ``chose`` another number; 0 = none."""

    count: int = 0
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a loader starts; ``limits`` is None where it stays so."""

    knobs: Knobs
    limits: Limits | None


def tuning(
    profile: str | None,
    *,
    tune: object,
    prefetch: int | None,
    queue: int | None,
    threads: Threads,
    side_by_side: bool,
    cap_bytes: int,
    rss_limit_bytes: int | None,
) -> Tuning:
    """Where a loader's knobs start, and how far they may go: what was given explicitly, else the profile.

    Args:
        profile: one of ``PROFILES``, or None.
        tune: whether the knobs may move; what is given explicitly is then where they start and the most they get.
        prefetch: as the caller gave it, or None.
        queue: the same.
        threads: that decode.
        side_by_side: whether more than one batch can be built at once.
        cap_bytes: of the budget.
        rss_limit_bytes: of the guard on the process.

    Raises:
        ConfigError: a value that can't be; the message lists the choices.
    """
    if prefetch is not None:
        prefetch = max(1, whole_number("prefetch_batches", prefetch, least=0))
    if queue is not None:
        queue = whole_number("max_queue_batches", queue, least=1)
    if not isinstance(tune, bool):
        raise ConfigError(f"tune is {tune!r}; give True or False")
    start = _profile(profile, tune)
    knobs = Knobs(
        prefetch=(prefetch or start.prefetch) if side_by_side else 1,
        threads=threads.count if threads.chosen else math.ceil(start.threads * threads.count),
        queue=queue or start.queue,
    )
    if not tune:
        return Tuning(knobs, None)
    limits = Limits(
        prefetch=Range(1, (prefetch or start.most_prefetch) if side_by_side else 1),
        threads=Range(min(1, threads.count), threads.count),
        queue=Range(1, queue or start.most_queue),
        room_bytes=int(start.room * cap_bytes),
        rss_limit_bytes=rss_limit_bytes,
    )
    return Tuning(knobs, limits)


def _profile(name: str | None, tune: bool) -> Profile:
    if name is None:
        return PROFILES[_WHEN_TUNED] if tune else _PLAIN
    if name not in PROFILES:
        raise ConfigError(f"profile is {name!r}; choose one of {', '.join(PROFILES)}, or None")
    return PROFILES[name]
