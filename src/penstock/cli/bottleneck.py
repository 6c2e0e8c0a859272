"""What holds a loader back, from how its time went: pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from penstock.observe.rates import Rates

__all__ = ["Bottleneck", "Verdict", "verdict_on"]

Bottleneck = Literal["consumer", "storage", "decode", "budget"]

_READY: Final = 0.10  # a consumer that waits less than this is served as fast as it asks
_BUSY: Final = 0.80  # of their time; threads that build batches can't do much more


@dataclass(frozen=True, slots=True)
class Verdict:
    """What holds a loader back, and why we think so in one sentence."""

    bottleneck: Bottleneck
    reason: str


def verdict_on(rates: Rates, builders: int) -> Verdict:
    """Say what to improve first.

    Args:
        rates: the shares of a run.
        builders: batches that were built at once, at least 1.

    Returns:
        ``consumer`` when ``next()`` hardly ever waited. Else what the builders were busy with, storage or decode;
        unless the time went by before they could begin: for want of memory (``budget``), or planning, which is
        storage too.
    """
    if rates.data_wait < _READY:
        return Verdict(
            "consumer",
            f"next() waited {rates.data_wait:.0%} of the time: batches were ready when the loop asked for them.",
        )
    waited = f"next() waited {rates.data_wait:.0%} of the time, and"
    reading, decoding = rates.fetch / builders, rates.decode / builders
    busy = reading + decoding
    # With several builders the producer charges ahead, so a full budget alone doesn't mean that they lack work.
    if busy >= _BUSY or busy >= max(rates.budget_wait, rates.plan):
        return _builders_are_busy(waited, reading, decoding)
    if rates.budget_wait >= rates.plan:
        return Verdict(
            "budget",
            f"{waited} for {rates.budget_wait:.0%} of it no batch could begin because max_inflight_bytes was in use: "
            "raise it, or use smaller batches.",
        )
    return Verdict(
        "storage",
        f"{waited} planning, which asks for the sizes that the manifest lacks, took {rates.plan:.0%} of it: pack the "
        "dataset.",
    )


def _builders_are_busy(waited: str, reading: float, decoding: float) -> Verdict:
    spent = f"{waited} the threads that build batches spent"
    if decoding > reading:
        return Verdict(
            "decode",
            f"{spent} {decoding:.0%} of it decoding and {reading:.0%} reading: more CPUs or smaller images would help.",
        )
    return Verdict(
        "storage",
        f"{spent} {reading:.0%} of it reading and checking bytes and {decoding:.0%} decoding: faster storage would "
        "help.",
    )
