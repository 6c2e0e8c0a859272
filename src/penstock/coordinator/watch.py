"""Watches a job while it runs: how fast it goes, and what happened lately; shared by all who look."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from penstock.coordinator.draft import Note
from penstock.coordinator.snapshot import FORMAT, Reading, Snapshot, Told, reading_of, snapshot_of
from penstock.coordinator.state import State

__all__ = ["Watch", "Watched"]

_log = logging.getLogger("penstock.coordinator")

_READ_EVERY_S: Final = 2.0
_READINGS: Final = 6  # rates are counted over the last 10 to 12 s
_RATES: Final = 60  # and remembered for 2 minutes
_COST_SHARE: Final = 0.05  # of the time that may go into looking
_ROUTINE: Final = frozenset({"lease_granted", "lease_completed", "membership_wait"})
_DULL: Final = frozenset({"progress", "live_leases", "no_overlap_ok"})  # several a second, and bars show the same
_MOST_ROUTINE: Final = 30
_MOST_REMARKABLE: Final = 60


class Watched(Protocol):
    """What is watched: the seat of a coordinator, as far as that needs to know."""

    @property
    def state(self) -> State | None:
        """Of the job; None while somebody else leads it."""

    def now(self) -> float:
        """Seconds, by the clock that the state's times are of."""

    def listen(self, listener: Callable[[float, Note], None]) -> None:
        """Let somebody know of every note, in the event loop's own thread."""

    async def leader(self) -> str | None:
        """The address of whoever leads."""


class Watch:
    """Looks at a job regularly, and remembers a little.

    All of it belongs to the event loop of what it watches; what takes long is done in a thread.

    Args:
        watched: the seat.
        fresh_s: how old a snapshot may be that is given once more.
    """

    def __init__(self, watched: Watched, fresh_s: float = 0.8) -> None:
        self._fresh_s = fresh_s
        self._watched = watched
        self._readings: deque[Reading] = deque(maxlen=_READINGS)
        self._rates: deque[float] = deque(maxlen=_RATES)
        self._routine: deque[Told] = deque(maxlen=_MOST_ROUTINE)
        self._remarkable: deque[Told] = deque(maxlen=_MOST_REMARKABLE)
        self._counts: Counter[str] = Counter()
        self._latest: _Look | None = None
        self._latest_s = 0.0
        self._looking = asyncio.Lock()
        self.cost_s = 0.0
        """Seconds that the last look took."""
        watched.listen(self._heard)

    @property
    def event_counts(self) -> Counter[str]:
        """How often each event was told since this coordinator began."""
        return Counter(self._counts)

    def _heard(self, now: float, note: Note) -> None:
        self._counts[note.event] += 1
        if note.event in _ROUTINE:
            self._routine.append(Told(now, note))
        elif note.event not in _DULL:
            self._remarkable.append(Told(now, note))

    async def run(self) -> None:
        """Read it again and again, until this is cancelled."""
        while True:
            started_s = time.perf_counter()
            try:
                await self.read()
            except Exception:  # the job itself goes on
                _log.exception("the job's rates couldn't be read")
            took_s = time.perf_counter() - started_s
            await asyncio.sleep(max(_READ_EVERY_S, took_s / _COST_SHARE))

    async def read(self) -> None:
        """Read how far the job is now."""
        state = self._watched.state
        if state is None or state.course.phase == "gathering":
            self._readings.clear()
            self._rates.clear()
        if state is None:
            return
        reading = await asyncio.to_thread(reading_of, state, self._watched.now())
        before = self._readings[-1] if self._readings else reading
        if reading.at_s > before.at_s and state.course.phase == "running":
            self._rates.append(max(0, reading.done - before.done) / (reading.at_s - before.at_s))
        if reading.at_s > before.at_s or not self._readings:
            self._readings.append(reading)

    async def snapshot(self) -> Snapshot:
        """The document, at most a moment old; the same object for all who ask at once, so nobody changes it.

        While somebody else leads there is only ``phase`` "following" and ``leader``, an address or None.
        """
        return (await self._newest()).snapshot

    async def text(self) -> bytes:
        """The same as JSON, written once for all."""
        return (await self._newest()).text

    async def _newest(self) -> _Look:
        async with self._looking:
            if self._latest is None or time.monotonic() >= self._latest_s + max(
                self._fresh_s, self.cost_s / _COST_SHARE
            ):
                self._latest = await self._look()
                self._latest_s = time.monotonic()
            return self._latest

    async def _look(self) -> _Look:
        state = self._watched.state
        if state is None:
            return _written({"format": FORMAT, "phase": "following", "leader": await self._watched.leader()})
        before = self._readings[0] if self._readings else None
        told = sorted([*self._routine, *self._remarkable], key=lambda each: each.at_s)
        rates, now = tuple(self._rates), self._watched.now()
        started_s = time.perf_counter()
        look = await asyncio.to_thread(lambda: _written(snapshot_of(state, now, before, told, rates)))
        self.cost_s = time.perf_counter() - started_s
        return look


class _Look(NamedTuple):
    snapshot: Snapshot
    text: bytes


def _written(snapshot: Snapshot) -> _Look:
    return _Look(snapshot, json.dumps(snapshot, separators=(",", ":")).encode())
