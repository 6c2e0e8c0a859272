"""Watches memory while a loop trains, and shows a live line."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any

from penstock.budget import process_rss_bytes
from penstock.sizes import format_bytes

SAMPLE_EVERY_S = 0.01
LINE_EVERY_S = (0.2, 2.0)  # on a terminal, in a log


class Watch:
    """Samples a loader's budget and the process's size from a thread of its own, as an outsider would.

    Attributes:
        times_s: when each sample was taken, from the beginning of the epoch.
        inflight_bytes: what was charged then.
        rss_bytes: how large the process was.
    """

    def __init__(self, loader: Any, cap_bytes: int, total_samples: int) -> None:
        self._loader, self._cap_bytes, self._total = loader, cap_bytes, total_samples
        self.times_s: list[float] = []
        self.inflight_bytes: list[int] = []
        self.rss_bytes: list[int] = []
        self.baseline_rss_bytes = process_rss_bytes()
        self.elapsed_s = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_done, name="watch", daemon=True)
        self._samples = 0
        self._loss = self._accuracy = 0.0
        self._terminal = sys.stdout.isatty()
        self._shown_s = 0.0

    def __enter__(self) -> Watch:
        self._started_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.elapsed_s = time.monotonic() - self._started_s
        self._done.set()
        self._thread.join()
        if kind is None:
            self._show()
            sys.stdout.write("\n" if self._terminal else "")

    def step(self, loss: float, accuracy: float, *, samples: int) -> None:
        """Tell of a step, and show the live line when it is time."""
        self._samples += samples
        self._loss, self._accuracy = loss, accuracy
        self.elapsed_s = time.monotonic() - self._started_s
        if self.elapsed_s - self._shown_s >= LINE_EVERY_S[0 if self._terminal else 1]:
            self._show()

    def rate(self) -> float:
        """Samples a second."""
        return self._samples / max(self.elapsed_s, 1e-9)

    @property
    def most_rss_bytes(self) -> int:
        """The largest that the process was seen at."""
        return max([self.baseline_rss_bytes, *self.rss_bytes])

    @property
    def growth_bytes(self) -> int:
        """By how much the process grew during the epoch: payload, and what torch needs to train."""
        return self.most_rss_bytes - self.baseline_rss_bytes

    def _sample_until_done(self) -> None:
        while not self._done.wait(SAMPLE_EVERY_S):
            self.times_s.append(time.monotonic() - self._started_s)
            self.inflight_bytes.append(int(self._loader.stats()["inflight_bytes"]))
            self.rss_bytes.append(process_rss_bytes())

    def _show(self) -> None:
        self._shown_s = self.elapsed_s
        stats = self._loader.stats()
        text = (
            f"{self._samples}/{self._total} samples, {self.rate():.0f}/s | "
            f"in flight {format_bytes(stats['inflight_bytes'])} of {format_bytes(self._cap_bytes)} | "
            f"RSS {format_bytes(process_rss_bytes())} | loss {self._loss:.2f}, accuracy {self._accuracy:.0%}"
        )
        sys.stdout.write(f"\r\x1b[2K{text}" if self._terminal else f"{text}\n")
        sys.stdout.flush()
