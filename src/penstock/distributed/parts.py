"""Which pieces of output count, when samples may have been worked on more than once. Pure.

A part is what came of samples ``[start, end)`` under one lease. It is written before the lease's cursor moves behind
it, and whoever gets these samples after that lease has a larger fence. So of all parts that hold a sample, the one
whose fence is largest is the one whose cursor was accepted: after that nobody was given the sample again. Fences grow
from epoch to epoch of a job as well, so what lies behind a part of an earlier epoch is an earlier job's.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

__all__ = ["Part", "gaps", "part_key", "read_part", "standing"]

_NAME: Final = re.compile(r"part-e(\d+)-(\d+)-(\d+)-f(\d+)-([0-9a-f]{16})(\.[A-Za-z0-9.]+)")


class Part(NamedTuple):
    """What came of some samples, under one lease.

    Attributes:
        epoch: of the job.
        start: first sample id.
        end: behind the last.
        fence: of the lease.
        digest: the first 16 hex digits of the SHA-256 of its bytes.
        suffix: of its name, with the dot: what it holds.
    """

    epoch: int
    start: int
    end: int
    fence: int
    digest: str = "0" * 16
    suffix: str = ".bin"


def part_key(part: Part) -> str:
    """Its name. Names of one epoch sort as their samples do."""
    return f"part-e{part.epoch:04}-{part.start:012}-{part.end:012}-f{part.fence:016}-{part.digest}{part.suffix}"


def read_part(key: str) -> Part | None:
    """What a name says; None = it is no part's."""
    match = _NAME.fullmatch(key)
    if match is None:
        return None
    epoch, start, end, fence = (int(number) for number in match.groups()[:4])
    part = Part(epoch, start, end, fence, match[5], match[6])
    return part if start < end and part_key(part) == key else None


def standing(parts: Iterable[Part]) -> list[Part]:
    """Those that count: no part of a larger fence overlaps them, or is of an earlier epoch; by epoch, then by sample.

    Parts of one fence never overlap, unless they are the same one.
    """
    counted: list[Part] = []
    covered: dict[int, _Cover] = {}
    last = math.inf  # epoch that what has a smaller fence may be of
    above: list[Part] = []  # those of the fence at hand: they cover only what has a smaller one
    for part in sorted(set(parts), key=lambda each: -each.fence):
        if above and above[0].fence != part.fence:
            for each in above:
                covered.setdefault(each.epoch, _Cover()).add(each.start, each.end)
            last = min(last, *(each.epoch for each in above))
            above = []
        above.append(part)
        if part.epoch <= last and not covered.setdefault(part.epoch, _Cover()).touches(part.start, part.end):
            counted.append(part)
    return sorted(counted)


def gaps(parts: Iterable[Part], samples: int) -> list[tuple[int, int]]:
    """Samples of ``[0, samples)`` that are in none of these parts, all of one epoch: half-open, ascending."""
    left, at = [], 0
    for part in sorted(parts):
        if at < min(part.start, samples):
            left.append((at, min(part.start, samples)))
        at = max(at, part.end)
    if at < samples:
        left.append((at, samples))
    return left


class _Cover:
    """A set of numbers, as ranges that are apart from one another."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def touches(self, start: int, end: int) -> bool:
        at = bisect.bisect_right(self._ends, start)
        return at < len(self._starts) and self._starts[at] < end

    def add(self, start: int, end: int) -> None:
        first = bisect.bisect_left(self._ends, start)
        behind = bisect.bisect_right(self._starts, end)
        if first < behind:
            start, end = min(start, self._starts[first]), max(end, self._ends[behind - 1])
        self._starts[first:behind] = [start]
        self._ends[first:behind] = [end]
