"""What a transfer took, for those who ask; others pay nothing for it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from penstock.transfer import Transfer
from penstock.transfer.operation import State

__all__ = ["Stopwatch", "XferTelemetry"]


@dataclass(frozen=True)
class XferTelemetry:
    """What became of the last post of a transfer; times in whole microseconds.

    Attributes:
        startTime: when it was posted, since 1970.
        postDuration: what the call took.
        xferDuration: from the post until it was seen to have ended.
        totalBytes: that it moved.
        descCount: descriptors on each side.
    """

    startTime: int
    postDuration: int
    xferDuration: int
    totalBytes: int
    descCount: int


class Stopwatch:
    """Stands between a handle and its transfer, and looks at the clock."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer
        self._since_1970_ns = self._begun_ns = self._post_ns = 0
        self._ended_ns: int | None = None

    def post(self, notif: bytes | None) -> State:
        """Posts the transfer."""
        since_1970_ns, begun_ns = time.time_ns(), time.perf_counter_ns()
        state = self._transfer.post(notif)
        self._post_ns = time.perf_counter_ns() - begun_ns
        self._since_1970_ns, self._begun_ns, self._ended_ns = since_1970_ns, begun_ns, None
        return self._seen(state)

    def poll(self) -> State:
        """Where the transfer is."""
        return self._seen(self._transfer.poll())

    def read(self, total_bytes: int, descriptor_count: int) -> XferTelemetry | None:
        """What the last post took; None = there was none, or it wasn't seen to end yet."""
        if self._ended_ns is None:
            return None
        return XferTelemetry(
            startTime=self._since_1970_ns // 1000,
            postDuration=self._post_ns // 1000,
            xferDuration=(self._ended_ns - self._begun_ns) // 1000,
            totalBytes=total_bytes,
            descCount=descriptor_count,
        )

    def _seen(self, state: State) -> State:
        if self._ended_ns is None and state in ("DONE", "FAILED"):
            self._ended_ns = time.perf_counter_ns()
        return state
