"""Speeds out of two readings of ``stats()``: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Rates", "Stats", "rates_between"]

Stats = Mapping[str, int | float]
"""What ``loader.stats()`` returns."""


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast a loader was between two readings.

    Attributes:
        seconds: between the readings.
        batches_per_s: delivered.
        samples_per_s: delivered.
        bytes_per_s: payload as it lies in storage.
        data_wait: share of the time in which ``next()`` waited, as the other shares 1.0 for all of it. Shares of what
            several threads do are their sum, and can be more than 1.
        budget_wait: waiting for room under the cap.
        plan: planning.
        fetch: reading.
        decode: decoding.
    """

    seconds: float
    batches_per_s: float
    samples_per_s: float
    bytes_per_s: float
    data_wait: float
    budget_wait: float
    plan: float
    fetch: float
    decode: float


def rates_between(before: Stats, after: Stats, seconds: float) -> Rates:
    """The rates over ``seconds`` (more than 0); a counter that is missing counts as 0."""

    def per_second(name: str) -> float:
        return max(0.0, after.get(name, 0) - before.get(name, 0)) / seconds

    return Rates(
        seconds=seconds,
        batches_per_s=per_second("delivered_batches_total"),
        samples_per_s=per_second("delivered_samples_total"),
        bytes_per_s=per_second("delivered_bytes_total"),
        data_wait=per_second("data_wait_s"),
        budget_wait=per_second("budget_wait_s"),
        plan=per_second("plan_s"),
        fetch=per_second("fetch_s"),
        decode=per_second("decode_s"),
    )
