"""Which windows units take their samples from, and when each is charged and read: pure.

Units that follow one another take from the same windows of a block shuffle. Each window is read once, as a whole, into
a region that all its units copy or decode from; it lives from the unit that it is charged with to the last one that
takes from it. Two are held at a time, so that one is read while the other is used up: a unit finds charged whatever it
takes from, and the window after the first of these. A window that goes makes room for the one after next, which is
therefore charged with the first unit that takes nothing of it any more.

A unit thus waits for memory while windows are held. That can't be a deadlock: of what it waits for, windows before its
own go when the units before it are built, which have their memory already; the rest is in the consumer's hands. A unit
that doesn't fit beside the windows that stay is refused when it is its turn to be charged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from penstock.loader.plan import Share, Unit, Window
from penstock.order.block_order import HELD_WINDOWS
from penstock.order.order import Int64Array

__all__ = ["share_windows"]


@dataclass(frozen=True, slots=True)
class _Cut:
    """A unit, which of its samples are in which window, and what is known of that so far."""

    unit: Unit
    pieces: dict[int, tuple[int, int]]  # window number -> samples [first, end) of the unit; ascending
    shares: list[Share] = field(default_factory=list)


def share_windows(units: Iterable[Unit], windows_at: Callable[[Int64Array], Int64Array]) -> Iterator[Unit]:
    """Have units take their samples from windows.

    Args:
        units: in delivery order, their positions ascending.
        windows_at: the number of the window of each position, ascending with them.
    """
    waiting: deque[_Cut] = deque()  # until their windows and the next one are known
    windows: deque[Window] = deque()  # that are known, and needed by units that wait
    begun = highest = -1  # numbers: of the last window that was charged, and of the highest that was seen
    failures: list[Exception] = []
    for unit in _planned(units, failures):
        waiting.append(_Cut(unit, _pieces(windows_at(unit.start + np.arange(len(unit.sample_ids))))))
        if (last := max(waiting[-1].pieces)) > highest:
            windows += _complete(waiting, below=last)
            highest = last
        while _is_settled(waiting[0]) and windows[-1].number > min(waiting[0].pieces):
            settled, begun = _settle(waiting.popleft(), windows, begun)
            yield settled
    windows += _complete(waiting, below=None)
    while waiting:
        settled, begun = _settle(waiting.popleft(), windows, begun)
        yield settled
    if failures:
        raise failures[0]


def _planned(units: Iterable[Unit], failures: list[Exception]) -> Iterator[Unit]:
    """Units up to the first that can't be planned, and why it can't: those before it come before the error."""
    try:
        yield from units
    except Exception as error:
        failures.append(error)


def _pieces(numbers: Int64Array) -> dict[int, tuple[int, int]]:
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    ends = [*starts[1:].tolist(), len(numbers)]
    return {int(numbers[first]): (first, end) for first, end in zip(starts.tolist(), ends, strict=True)}


def _complete(cuts: Iterable[_Cut], *, below: int | None) -> list[Window]:
    """The windows of these units that aren't known yet; only those ``below`` a number, of which no more comes."""
    parts: dict[int, list[_Cut]] = {}
    for cut in cuts:
        for number in [*cut.pieces][len(cut.shares) :]:
            if below is None or number < below:
                parts.setdefault(number, []).append(cut)
    return [_window(number, parts[number]) for number in sorted(parts)]


def _window(number: int, cuts: list[_Cut]) -> Window:
    pieces = [cut.pieces[number] for cut in cuts]
    rows = [(cut.unit, slice(*piece)) for cut, piece in zip(cuts, pieces, strict=True)]
    order = np.argsort(np.concatenate([unit.sample_ids[some] for unit, some in rows]))

    def column(name: str) -> Int64Array:
        return np.concatenate([getattr(unit, name)[some] for unit, some in rows])[order]

    samples = Unit(
        index=cuts[0].unit.index,
        sample_ids=column("sample_ids"),
        locations=column("locations"),
        offsets=column("offsets"),
        lengths=column("lengths"),
        crcs=column("crcs"),
        labels=None,
    )
    window = Window(number, samples, len(cuts))
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    begin = 0
    for cut, (first, end) in zip(cuts, pieces, strict=True):
        cut.shares.append(Share(window, first, end, places[begin : begin + end - first]))
        begin += end - first
    return window


def _is_settled(cut: _Cut) -> bool:
    return len(cut.shares) == len(cut.pieces)


def _settle(cut: _Cut, windows: deque[Window], begun: int) -> tuple[Unit, int]:
    """The unit with what it takes from and what is charged with it; lets go of windows before its own."""
    while windows[0].number < min(cut.pieces):
        windows.popleft()
    held = [windows[place] for place in range(min(len(windows), max(HELD_WINDOWS, len(cut.pieces))))]
    begins = tuple(window for window in held if window.number > begun)
    kept_bytes = sum(window.charge_bytes for window in held if window.number <= begun)
    unit = replace(cut.unit, shares=tuple(cut.shares), begins=begins, kept_bytes=kept_bytes)
    return unit, max(begun, held[-1].number)
