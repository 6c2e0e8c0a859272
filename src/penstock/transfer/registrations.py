"""What an agent has registered, and memory that it has to keep for those who are still in the middle of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from penstock import _core
from penstock.transfer.memory import Ranges
from penstock.transfer.registration import Registration

if TYPE_CHECKING:
    from penstock.transfer.agent import Agent

__all__ = ["Registrations"]

_kept_for_ever: list[object] = []


class Registrations:
    """All of an agent's registrations that are open. Threads: any.

    Args:
        registry: where their slots and generations are.
    """

    def __init__(self, registry: _core.Registry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._open: dict[Registration, None] = {}
        self._quarantined: list[tuple[Sequence[tuple[int, int]], object]] = []

    def __len__(self) -> int:
        """How many there are."""
        return len(self._open)

    def add(self, agent: Agent, ranges: Ranges) -> Registration:
        """Register memory; and let go of some that nobody touches any more."""
        self._sweep()
        registration = Registration(agent, self._registry, ranges)
        with self._lock:
            self._open[registration] = None
        return registration

    def all(self) -> list[Registration]:
        """Those that are open, in the order in which they were made."""
        with self._lock:
            return list(self._open)

    def exposes(self, segment_id: int) -> bool:
        """Whether one of them lies in this segment."""
        with self._lock:
            return any(segment_id in each.segment_ids for each in self._open)

    def forget(self, registration: Registration) -> None:
        """Tell no peer of it any more (the registration calls this when it closes)."""
        with self._lock:
            self._open.pop(registration, None)

    def quarantine(self, names: Sequence[tuple[int, int]], keepalive: object) -> None:
        """Keep memory, by (slot, generation), alive until nobody touches it any more."""
        with self._lock:
            self._quarantined.append((names, keepalive))

    def close(self, timeout_s: float) -> None:
        """Retire all of them, and wait for those who are in the middle of one.

        What somebody still touches at the deadline is kept until this process ends.
        """
        with self._lock:
            retired = list(self._open)
            self._open.clear()
        self._quarantined += [(each.retire(), each.keepalive) for each in retired]
        deadline = time.monotonic() + timeout_s
        for names, keepalive in self._quarantined:
            if not all(self._registry.wait_quiet(*name, max(0.0, deadline - time.monotonic())) for name in names):
                _kept_for_ever.append(keepalive)
        self._quarantined.clear()

    def _sweep(self) -> None:
        with self._lock:
            self._quarantined = [
                (names, keepalive)
                for names, keepalive in self._quarantined
                if not all(self._registry.quiet(*name) for name in names)
            ]
