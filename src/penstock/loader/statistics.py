"""What a loader shows of itself, apart from the loader: it can be read while the loader is being let go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from penstock.budget import Budget, RssGuard
from penstock.loader.tuner import Tuner
from penstock.loader.work import PipelineStatistics
from penstock.observe.stages import StageClock

__all__ = ["LoaderStatistics"]


@dataclass(frozen=True, slots=True)
class LoaderStatistics:
    """Where ``Loader.stats()`` gets its numbers."""

    delivered: PipelineStatistics
    budget: Budget
    rss: RssGuard
    clock: StageClock
    tuner: Tuner
    restarts: Callable[[], int]

    def read(self) -> dict[str, int | float]:
        """See ``Loader.stats``."""
        return {
            "delivered_batches_total": self.delivered.delivered_batches,
            "delivered_samples_total": self.delivered.delivered_samples,
            "delivered_bytes_total": self.delivered.delivered_bytes,
            "faulty_samples_total": self.delivered.faults.faulty,
            "replaced_samples_total": self.delivered.faults.replaced,
            "skipped_samples_total": self.delivered.faults.faulty - self.delivered.faults.replaced,
            "inflight_bytes": self.budget.charged_bytes,
            "max_inflight_bytes": self.budget.total_bytes,
            "ram_high_water_bytes": self.budget.peak_bytes,
            "process_rss_bytes": self.rss.sample(),
            "process_rss_high_water_bytes": self.rss.high_water_bytes,
            "arena_resident_bytes": self.budget.resident_bytes,
            "worker_restarts_total": self.restarts(),
            **self.tuner.numbers(),
            **self.clock.seconds(),
        }
