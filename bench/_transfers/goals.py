"""What Penstock's transfers have to reach, line by line, and whether they did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

Figures = dict[str, dict[str, list[float]]]
"""Contestant -> item -> one figure a round, in microseconds (of "idle, asleep": the share of a core)."""

OURS, USER = "penstock", "penstock, user memory"
_SIZES = ("4 KB", "64 KB", "1 MB", "16 MB", "64 MB")
_SCATTERED = {"1,000 x 16 KB": 5.0, "10,000 x 4 KB": 6.0}


@dataclass(frozen=True, slots=True)
class Goal:
    """A line: a figure that may be at most so large, or a ratio that has to be at least so large.

    Attributes:
        item: what was measured.
        ours: which of Penstock's rows.
        against: whose time is divided by ours; None where our own figure is what counts.
        bound: the most, without ``against``; the least with it.
    """

    item: str
    bound: float
    ours: str = OURS
    against: str | None = None

    def judge(self, figures: Figures) -> tuple[str, str, str]:
        """What is wanted, what was found, and the verdict."""
        ours = figures.get(self.ours, {}).get(self.item, [])
        if self.against is None:
            unit = "of a core" if self.item.startswith("idle") else "us"
            wanted = f"at most {self.bound:,g} {unit}"
            return self._verdict(wanted, ours, lambda value: value <= self.bound, f" {unit}")
        theirs = figures.get(self.against, {}).get(self.item, [])
        ratios = [their / our for our, their in zip(ours, theirs, strict=False)]
        return self._verdict(
            f"at least {self.bound:g} x {self.against}", ratios, lambda value: value >= self.bound, " x"
        )

    @staticmethod
    def _verdict(wanted: str, values: list[float], holds: Callable[[float], bool], unit: str) -> tuple[str, str, str]:
        if not values:
            return wanted, "not measured", "-"
        found = median(values)
        shown = f"{found:,.2f} ({min(values):,.2f}-{max(values):,.2f}){unit}"
        return wanted, shown, "reached" if holds(found) else "MISSED"


def goals() -> Iterator[Goal]:
    """All of them, in the order in which they are shown."""
    yield Goal("write 8 B", 0.6)
    yield Goal("write 8 B", 5.0, against="nixl")
    yield Goal("write 8 B", 2.5, against="nixl, tuned")
    yield Goal("notification, both polling", 4.0)
    yield Goal("notification, sleeping consumer", 60.0)
    yield Goal("idle, asleep", 0.01)
    for rows, ratio in _SCATTERED.items():
        for kind in ("write", "read"):
            yield Goal(f"{kind} {rows}", ratio, against="nixl")
            yield Goal(f"{kind} {rows}", 1.3, against="nixl, tuned")
    for size, ratio in {"1 MB": 2.0, "64 MB": 1.5}.items():
        for kind in ("write", "read"):
            yield Goal(f"{kind} {size}", ratio, against="nixl")
            yield Goal(f"{kind} {size}", 0.85, against="memcpy")
    for item in (f"{kind} {size}" for size in ("8 B", *_SIZES, *_SCATTERED) for kind in ("write", "read")):
        yield Goal(item, 1.0, ours=USER, against="nixl")
    for size in ("1 MB", "16 MB"):
        for how in ("", ", 4 at once"):
            yield Goal(f"write {size}{how}", 0.9, ours=OURS, against="ucx_perftest")
            yield Goal(f"read {size}{how}", 3.0, ours=OURS, against="ucx_perftest")
    yield Goal("register 5,000 tensors", 5_000.0)
