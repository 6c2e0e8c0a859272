"""Where a loader's time goes: seconds by stage, always; every single span, while a trace is being written."""

from __future__ import annotations

import threading
import time
from typing import Final, Literal, TypeAlias

from penstock.observe.trace import Trace

__all__ = ["STAGES", "Stage", "StageClock"]

Stage: TypeAlias = Literal["plan", "budget_wait", "fetch", "decode", "transform", "queue_wait", "data_wait"]

STAGES: Final[dict[Stage, str]] = {
    "plan": "deciding what to read for a batch, and asking for sizes that the manifest lacks",
    "budget_wait": "waiting until the cap has room for the batch",
    "fetch": "bringing its bytes into memory",
    "decode": "making pixels of them",
    "transform": "running the user's transform, and joining its results",
    "queue_wait": "lying finished until next() asks for it",
    "data_wait": "next() waiting for it",
}
"""What a batch goes through, in this order."""


class StageClock:
    """Adds up the seconds that batches spend in each stage, over all threads. Thread-safe; well below 1 us a span."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the collector may close a loader in the middle of anything
        self._seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self._trace: Trace | None = None

    def record(self, stage: Stage, batch: int, started_s: float, ended_s: float | None = None) -> None:
        """A batch was in a stage from ``started_s`` to ``ended_s`` (default: now), by ``time.monotonic()``."""
        ended_s = time.monotonic() if ended_s is None else ended_s
        with self._lock:
            self._seconds[stage] += ended_s - started_s
        if self._trace is not None:
            self._trace.span(stage, batch, started_s, ended_s, across_threads=stage == "queue_wait")

    def seconds(self) -> dict[str, float]:
        """Seconds so far, as ``<stage>_s``: a sum over threads, so it can be more than the time that went by."""
        with self._lock:
            return {f"{stage}_s": seconds for stage, seconds in self._seconds.items()}

    def write_to(self, trace: Trace) -> None:
        """Write every span from now on; ends a trace that was being written."""
        self.close()
        self._trace = trace

    def take_trace(self) -> Trace | None:
        """The trace that is being written, which goes on elsewhere."""
        trace, self._trace = self._trace, None
        return trace

    def close(self) -> None:
        """End the trace, if there is one."""
        trace = self.take_trace()
        if trace is not None:
            trace.close()
