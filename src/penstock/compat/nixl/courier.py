"""Runs errands in the background, for calls that return before their work is done."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from penstock.compat.nixl.base import log
from penstock.errors import PenstockError

__all__ = ["Courier"]

Errand = Callable[[], object]


class Courier:
    """Errands of one lane are run one after another, those of several lanes at the same time.

    A lane without errands has no thread. What fails is logged, for nobody waits for it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lanes: dict[str, deque[tuple[str, Errand]]] = {}
        self._closed = False

    def send(self, lane: str, doing: str, errand: Errand) -> None:
        """Runs an errand when those before it in its lane are done."""
        with self._lock:
            if self._closed:
                return
            waiting = self._lanes.get(lane)
            if waiting is not None:
                waiting.append((doing, errand))
                return
            self._lanes[lane] = deque([(doing, errand)])
        threading.Thread(target=self._run, args=(lane,), name="penstock-nixl-courier", daemon=True).start()

    def runs(self, lane: str) -> bool:
        """Whether a lane has errands that aren't done."""
        with self._lock:
            return lane in self._lanes

    def close(self) -> None:
        """Drops what isn't begun, and says nothing of what fails from now on."""
        with self._lock:
            self._closed = True
            for waiting in self._lanes.values():
                waiting.clear()

    def _run(self, lane: str) -> None:
        while True:
            with self._lock:
                waiting = self._lanes[lane]
                if not waiting:
                    del self._lanes[lane]
                    return
                doing, errand = waiting.popleft()
            try:
                errand()
            except PenstockError as error:
                if not self._closed:
                    log.error("%s failed: %s", doing, error)
