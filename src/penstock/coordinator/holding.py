"""The leases that a node holds, by its own clock: what may be handed out, what is done, what is to be told. Pure.

A lease is counted from before the request that brought or renewed it was sent, so a node's end of it is never later
than the coordinator's. Past that it is in doubt: nothing of it is handed out until the coordinator confirms it, or says
that it is somebody else's.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from penstock.coordinator.events import GrantedLease

__all__ = ["Answer", "Holding", "Portion", "Report"]

_MARGIN: Final = 0.05
"""What two clocks may differ by in a lease's time, as a share of it."""


@dataclass(frozen=True, slots=True)
class Portion:
    """Samples of one lease that are handed out together.

    Attributes:
        lease: number of the lease, counted by its holder.
        start: first sample id.
        end: behind the last.
        fence: of the lease: of two leases that ever held a sample, the later one's is larger; 0 = it has none.
        epoch: of the job.
    """

    lease: int
    start: int
    end: int
    fence: int = 0
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What to tell of a lease: all before ``cursor`` is done; samples and bytes since the last report."""

    lease: int
    lease_id: str
    fence: int
    cursor: int
    samples: int
    payload_bytes: int


class Answer(enum.Enum):
    """Whether a portion may be handed out."""

    YES = "yes"
    IN_DOUBT = "in doubt"  # ask again when the lease was confirmed, or lost
    NO = "no"


@dataclass(slots=True)
class _Held:
    lease: GrantedLease
    until_s: float
    cursor: int  # all before it are done
    out: dict[int, _Out] = field(default_factory=dict)  # handed out and not behind the cursor, by first sample
    samples: int = 0  # done, and not told yet
    payload_bytes: int = 0

    @property
    def complete(self) -> bool:
        return self.cursor == self.lease.end


@dataclass(slots=True)
class _Out:
    end: int
    samples: int
    payload_bytes: int
    done: bool = False


class Holding:
    """See the module. Times are seconds of the node's own clock, which doesn't go back."""

    def __init__(self) -> None:
        self._held: dict[int, _Held] = {}
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._held)

    def grant(self, leases: Iterable[GrantedLease], asked_s: float) -> list[tuple[int, GrantedLease]]:
        """Hold these, which were asked for at ``asked_s``; those that are new, by number. A lease is taken once."""
        known = {held.lease.lease_id for held in self._held.values()}
        fresh = []
        for lease in leases:
            if lease.lease_id in known:
                continue
            self._numbers += 1
            self._held[self._numbers] = _Held(lease, asked_s + _safe(lease.ttl_s), lease.cursor)
            fresh.append((self._numbers, lease))
        return fresh

    def ask(self, portion: Portion, now: float) -> Answer:
        """Whether a portion may be handed out now."""
        held = self._held.get(portion.lease)
        if held is None:
            return Answer.NO
        return Answer.YES if now < held.until_s else Answer.IN_DOUBT

    def hand_out(self, portion: Portion, samples: int, payload_bytes: int) -> None:
        """It is the consumer's now; saying so twice is no error."""
        held = self._held[portion.lease]
        if portion.start >= held.cursor and portion.start not in held.out:
            held.out[portion.start] = _Out(portion.end, samples, payload_bytes)

    def take(self, portion: Portion) -> bool:
        """The consumer is done with it; True where that completes its lease."""
        held = self._held.get(portion.lease)
        if held is None:
            return False
        if portion.start in held.out:
            held.out[portion.start].done = True
        while (done := held.out.get(held.cursor)) is not None and done.done:  # several threads may have some
            del held.out[held.cursor]
            held.cursor = done.end
            held.samples += done.samples
            held.payload_bytes += done.payload_bytes
        return held.complete

    def portion(self, number: int, start: int, end: int) -> Portion | None:
        """These samples of a lease; None when it is lost."""
        held = self._held.get(number)
        return None if held is None else Portion(number, start, end, held.lease.fence, held.lease.epoch)

    def reports(self) -> list[Report]:
        """One for each lease, which renews it."""
        return [
            Report(number, held.lease.lease_id, held.lease.fence, held.cursor, held.samples, held.payload_bytes)
            for number, held in self._held.items()
        ]

    def confirm(self, report: Report, sent_s: float) -> None:
        """The coordinator accepted a report that was sent at ``sent_s``: the lease is renewed, or completed."""
        held = self._held.get(report.lease)
        if held is None:
            return
        held.samples -= report.samples
        held.payload_bytes -= report.payload_bytes
        held.until_s = max(held.until_s, sent_s + _safe(held.lease.ttl_s))
        if report.cursor == held.lease.end:
            del self._held[report.lease]

    def lose(self, number: int) -> None:
        """It isn't ours any more: what is left of it is never handed out."""
        self._held.pop(number, None)


def _safe(ttl_s: float) -> float:
    return ttl_s * (1 - _MARGIN)
