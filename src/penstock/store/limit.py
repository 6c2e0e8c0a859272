"""One limit on concurrent object-store requests for the whole process, which adapts to what the stores bear.

Additive increase, multiplicative decrease, as TCP does it: every full round of answered requests allows one more
at once, up to ``PENSTOCK_STORE_CONCURRENCY``; an answer of 429 or 503 halves the limit, once for each round, however
many requests of that round were turned away.

A slot is held only while a request or the next piece of a body is being waited for, never while a caller holds
what it got: so nobody waits for a slot while keeping one, and a limit of 1 can't lock up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

from penstock import config
from penstock.errors import StoreError
from penstock.store.interrupt import covered

__all__ = ["LimitStats", "Outcome", "RequestLimit", "Slot", "lowered", "process_limit", "raised", "stats"]

DEFAULT_CEILING = 16
_INTERRUPT_POLL_S = 0.1

Outcome: TypeAlias = Literal["answered", "throttled", "failed"]
"""Answered: the limit may grow. Throttled, that is 429 or 503: it halves. Failed: it says nothing about load."""


@dataclass(frozen=True, slots=True)
class LimitStats:
    """What the limit is doing.

    Attributes:
        limit: requests that may run at once now.
        ceiling: what the limit may grow to.
        in_flight: requests that run now.
        waiting: callers that wait for a slot now.
        peak_in_flight: most requests that ever ran at once.
        requests_total: requests that ended, whatever came of them.
        throttled_total: those of them that were answered with 429 or 503.
    """

    limit: int
    ceiling: int
    in_flight: int
    waiting: int
    peak_in_flight: int
    requests_total: int
    throttled_total: int


def raised(limit: float, ceiling: int) -> float:
    """The limit after an answered request: one more after a full round of them."""
    return min(float(ceiling), limit + 1.0 / limit)


def lowered(limit: float) -> float:
    """The limit after the store asked to slow down: half, but at least 1."""
    return max(1.0, limit / 2.0)


class Slot:
    """One request's place under the limit; whoever made the request sets ``outcome`` to what came of it."""

    __slots__ = ("outcome", "round")

    def __init__(self, round_: int) -> None:
        self.round = round_
        self.outcome: Outcome = "failed"


class RequestLimit:
    """An adaptive limit; its methods may be called from any thread.

    Args:
        ceiling: the limit's start and its highest value, at least 1.
    """

    def __init__(self, ceiling: int) -> None:
        self._ceiling = ceiling
        self._limit = float(ceiling)
        self._round = 0  # grows with every cut; a request of an earlier round doesn't cut again
        self._in_flight = self._waiting = self._peak = self._requests = self._throttled = 0
        self._free = threading.Condition()

    @contextmanager
    def slot(self, timeout_s: float) -> Iterator[Slot]:
        """Hold a place under the limit.

        Raises:
            StoreError: no place came free within ``timeout_s``.
            ClosedError: an ``Interrupt`` over this thread was set.
        """
        slot = self._enter(timeout_s)
        try:
            yield slot
        finally:
            self._leave(slot)

    def set_ceiling(self, ceiling: int) -> None:
        """Change the highest value; a limit that stood at the old one follows it."""
        with self._free:
            at_ceiling = self._limit >= self._ceiling
            self._ceiling = ceiling
            self._limit = float(ceiling) if at_ceiling else min(self._limit, float(ceiling))
            self._free.notify_all()

    def stats(self) -> LimitStats:
        """The limit, its load and its history."""
        with self._free:
            return LimitStats(
                limit=int(self._limit),
                ceiling=self._ceiling,
                in_flight=self._in_flight,
                waiting=self._waiting,
                peak_in_flight=self._peak,
                requests_total=self._requests,
                throttled_total=self._throttled,
            )

    def _enter(self, timeout_s: float) -> Slot:
        with self._free:
            self._waiting += 1
            try:
                if not self._wait_for_place(timeout_s):
                    raise StoreError(
                        f"no object-store request could start for {timeout_s:.0f} s: {self._in_flight} of "
                        f"{int(self._limit)} allowed ones are running; the store is slow, or "
                        f"PENSTOCK_STORE_CONCURRENCY={self._ceiling} is too low for so many readers"
                    )
            finally:
                self._waiting -= 1
            self._in_flight += 1
            self._peak = max(self._peak, self._in_flight)
            return Slot(self._round)

    def _wait_for_place(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self._in_flight >= int(self._limit):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            self._free.wait(min(left_s, _INTERRUPT_POLL_S) if covered() else left_s)
        return True

    def _leave(self, slot: Slot) -> None:
        with self._free:
            self._in_flight -= 1
            self._requests += 1
            if slot.outcome == "answered":
                self._limit = raised(self._limit, self._ceiling)
            elif slot.outcome == "throttled":
                self._throttled += 1
                if slot.round == self._round:
                    self._round += 1
                    self._limit = lowered(self._limit)
            self._free.notify(2)  # the place that came free, and the one that a raise may have added


_process_limit: RequestLimit | None = None
_guard = threading.Lock()


def process_limit() -> RequestLimit:
    """The one limit of this process, at the ceiling that the environment gives now.

    Raises:
        ConfigError: ``PENSTOCK_STORE_CONCURRENCY`` isn't a whole number of at least 1.
    """
    global _process_limit  # noqa: PLW0603 - one limit per process is the point
    ceiling = config.positive_int("STORE_CONCURRENCY", DEFAULT_CEILING)
    with _guard:
        if _process_limit is None:
            _process_limit = RequestLimit(ceiling)
        else:
            _process_limit.set_ceiling(ceiling)
        return _process_limit


def stats() -> LimitStats:
    """What the process's limit on object-store requests is doing."""
    return process_limit().stats()
