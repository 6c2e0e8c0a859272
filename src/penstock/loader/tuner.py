"""Tuning at work: watches a loader, asks the rules of ``tune``, and turns the knobs. The only part with a clock."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from penstock.budget import RssGuard
from penstock.loader.profiles import Tuning
from penstock.loader.tune import Decision, Knobs, Observation, State, decide
from penstock.loader.work import PipelineStatistics
from penstock.observe.stages import StageClock

__all__ = ["Tuner"]

_LEAST_S: Final = 0.25  # an interval is at least so long,
_LEAST_BATCHES: Final = 4  # and so many batches
_REMEMBERED: Final = 32  # decisions that stats() shows
_DATASETS: Final = 64  # whose state is kept for their next epoch


@dataclass(frozen=True, slots=True)
class _Reading:
    """Counters at a moment."""

    at_s: float
    batches: int
    data_wait_s: float
    queue_wait_s: float
    decode_s: float


class Tuner:
    """The knobs of one loader: where they are, and why.

    Where the loader isn't tuned it only holds them. The next loader of the same ``subject`` in this process, which is
    the next epoch, goes on where this one was.

    Args:
        tuning: where to start, and how far to go.
        subject: what is loaded, and how: all that the right knobs depend on.
        clock: of the loader.
        delivered: its counters.
        rss: its guard.
    """

    def __init__(
        self, tuning: Tuning, subject: Hashable, clock: StageClock, delivered: PipelineStatistics, rss: RssGuard
    ) -> None:
        self._limits = tuning.limits
        self._subject = (subject, tuning)
        self._state = _kept.get(self._subject) or State(tuning.knobs)
        self._clock, self._delivered, self._rss = clock, delivered, rss
        self._turn: Callable[[Knobs], None] | None = None
        self._recent_bytes: Sequence[int] = ()
        self._before = self._reading()
        self._looking = threading.Lock()
        self._decisions: deque[tuple[int, Decision]] = deque(maxlen=_REMEMBERED)
        self._decided = 0

    @property
    def knobs(self) -> Knobs:
        """Where they are."""
        return self._state.knobs

    @property
    def most_prefetch(self) -> int:
        """What prefetch may ever be."""
        return self.knobs.prefetch if self._limits is None else self._limits.prefetch.most

    def attach(self, turn: Callable[[Knobs], None], recent_bytes: Sequence[int]) -> None:
        """Say how knobs are turned, and where the sizes of the last batches stand. Before the first ``tick``."""
        self._turn, self._recent_bytes = turn, recent_bytes

    def tick(self) -> None:
        """Look whether something should change; called for every batch, from any thread."""
        if self._limits is None or self._turn is None:
            return
        if self._delivered.delivered_batches - self._before.batches < _LEAST_BATCHES:
            return
        if time.monotonic() - self._before.at_s < _LEAST_S or not self._looking.acquire(blocking=False):
            return
        try:
            self._look()
        finally:
            self._looking.release()

    def _look(self) -> None:
        assert self._limits is not None and self._turn is not None
        now = self._reading()
        state, decision = decide(self._seen(now), self._state, self._limits)
        if decision is not None:
            self._turn(state.knobs)
            self._decisions.append((now.batches, decision))
            self._decided += 1
        self._state, self._before = state, now
        _keep(self._subject, state)

    def _reading(self) -> _Reading:
        seconds = self._clock.seconds()
        return _Reading(
            at_s=time.monotonic(),
            batches=self._delivered.delivered_batches,
            data_wait_s=seconds["data_wait_s"],
            queue_wait_s=seconds["queue_wait_s"],
            decode_s=seconds["decode_s"],
        )

    def _seen(self, now: _Reading) -> Observation:
        before, sizes = self._before, sorted(self._recent_bytes)  # a copy, made in one go
        return Observation(
            seconds=max(now.at_s - before.at_s, 1e-6),
            batches=now.batches - before.batches,
            data_wait_s=now.data_wait_s - before.data_wait_s,
            queue_wait_s=now.queue_wait_s - before.queue_wait_s,
            decode_s=now.decode_s - before.decode_s,
            p50_bytes=sizes[len(sizes) // 2] if sizes else 0,
            p95_bytes=sizes[len(sizes) * 95 // 100] if sizes else 0,
            rss_bytes=self._rss.sample() if self._rss.limit_bytes is not None else 0,
        )

    def numbers(self) -> dict[str, int]:
        """Where the knobs are, for ``stats()``."""
        knobs = self.knobs
        return {
            "prefetch_batches": knobs.prefetch,
            "max_queue_batches": knobs.queue,
            "decode_threads": knobs.threads,
            "tune_decisions_total": self._decided,
        }

    def decisions(self) -> list[dict[str, Any]] | None:
        """The last of them, the oldest first, for ``stats()``; None where nothing is tuned."""
        if self._limits is None:
            return None
        return [
            {"batch": batch, "knob": made.knob, "from": made.before, "to": made.after, "reason": made.reason}
            for batch, made in list(self._decisions)
        ]


_kept: dict[Hashable, State] = {}  # without a lock, which a fork() could leave locked


def _keep(subject: Hashable, state: State) -> None:
    _kept.pop(subject, None)
    _kept[subject] = state
    if len(_kept) > _DATASETS:
        oldest = list(_kept)[0]  # noqa: RUF015 - in one go, beside other threads
        _kept.pop(oldest, None)
