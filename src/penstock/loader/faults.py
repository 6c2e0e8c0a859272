"""Faulty samples: what is wrong with those of a unit, what becomes of them, and what is counted.

The plan alone says how many steps there are. A batch that lost samples is shorter, down to none at all, or has good
samples of its own in their places. So every rank still takes the same steps, and a state is still a matter of
positions.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal, TypeAlias

import numpy as np

from penstock.errors import ConfigError, PenstockError, SampleError, TooManyFaults
from penstock.loader.plan import Unit
from penstock.order.order import Int64Array
from penstock.sizes import whole_number

__all__ = ["STRICT", "Action", "Fault", "FaultPolicy", "Faults", "Mended", "Move", "OnError", "Tally", "log_faults"]

Action: TypeAlias = Literal["raise", "skip", "replace"]
OnError: TypeAlias = Action | Callable[[SampleError], Action]

_ACTIONS: tuple[Action, ...] = ("raise", "skip", "replace")
_log = logging.getLogger("penstock")


class Faults:
    """What is wrong with the samples of one unit, by row. Several threads may add.

    Args:
        strict: what is added is raised instead.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self.errors: dict[int, SampleError] = {}

    def add(self, row: int, error: SampleError) -> None:
        """Note a fault; the first one of a sample counts.

        An error that is kept must not hold the memory that its frames refer to, so it loses its trace.
        """
        if self.strict:
            raise error
        error.__context__ = error.__cause__ = None
        self.errors.setdefault(row, error.with_traceback(None))

    def judge(self, row: int, error: PenstockError) -> None:
        """Note a sample's own fault; raise what isn't one."""
        if not isinstance(error, SampleError):
            raise error
        self.add(row, error)

    def of_rows(self, first: int, end: int) -> Faults:
        """Those of the rows ``[first, end)``, counted from ``first``; what is added there is added here."""
        return _FaultsOfRows(self, first, end)

    def __contains__(self, row: object) -> bool:
        return row in self.errors

    def __len__(self) -> int:
        return len(self.errors)

    def rows(self) -> list[int]:
        """Rows that are faulty, ascending."""
        return sorted(self.errors)


class _FaultsOfRows(Faults):
    """See ``Faults.of_rows``."""

    def __init__(self, whole: Faults, first: int, end: int) -> None:
        super().__init__(strict=whole.strict)
        self._whole, self._first = whole, first
        self.errors = {row - first: error for row, error in whole.errors.items() if first <= row < end}

    def add(self, row: int, error: SampleError) -> None:
        """See ``Faults``."""
        self._whole.add(row + self._first, error)
        super().add(row, error)


STRICT = Faults(strict=True)
"""Raises the first fault, and so never holds one."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A faulty sample, and what stands in its place: the sample ``instead``, or with None nothing."""

    error: SampleError
    instead: int | None


@dataclass(frozen=True, slots=True)
class Mended:
    """What a unit becomes: the row of the unit that is in each place of the batch, and why."""

    rows: Int64Array
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """A part of a batch's memory that goes to another place, in whatever the starts and lengths are counted."""

    to: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class FaultPolicy:
    """What becomes of faulty samples.

    Attributes:
        on_error: ``raise``, ``skip``, ``replace``, or a function that says which for an error. It is called by the
            threads that build batches, never by two of them at once.
        max_errors: most faulty samples in the batches that a loader hands out; None = any number.
    """

    on_error: OnError = "raise"
    max_errors: int | None = None
    _turn: Lock = field(default_factory=Lock, repr=False, compare=False)

    @classmethod
    def checked(cls, on_error: Any, max_errors: Any) -> FaultPolicy:
        """From what a user gave.

        Raises:
            ConfigError: it can't work.
        """
        if not callable(on_error) and on_error not in _ACTIONS:
            raise ConfigError(
                f"on_error is {on_error!r}; choose 'raise', 'skip' or 'replace', or give a function that returns one "
                "of them for an error"
            )
        if max_errors is None:
            return cls(on_error)
        if on_error == "raise":
            raise ConfigError(
                f"max_errors is {max_errors!r}, but with on_error='raise' the first faulty sample is an error; "
                "choose 'skip' or 'replace', or leave max_errors unset"
            )
        return cls(on_error, whole_number("max_errors", max_errors, least=0))

    def faults(self) -> Faults:
        """Where the faults of a unit go."""
        return STRICT if self.on_error == "raise" else Faults()

    def mend(self, unit: Unit, faults: Faults, lengths: Int64Array) -> Mended:
        """Decide what becomes of the faulty samples of a unit.

        Args:
            unit: as it was planned.
            faults: at least one.
            lengths: of each sample, in what the places of the batch are measured.

        Raises:
            SampleError: ``on_error`` says so.
            ConfigError: ``on_error`` returned something else than it may.
        """
        wanted = {row: self._decide(faults.errors[row]) for row in faults.rows()}
        rows = fill(unit.sample_ids, lengths, wanted)
        ids = unit.sample_ids
        instead = {row: None if source < 0 else int(ids[source]) for row, source in enumerate(rows.tolist())}
        found = tuple(Fault(faults.errors[row], instead[row]) for row in wanted)
        return Mended(rows[rows >= 0], found)

    def _decide(self, error: SampleError) -> Action:
        action = self.on_error
        if callable(action):
            with self._turn:
                action = action(error)
            if action not in _ACTIONS:
                raise ConfigError(f"on_error returned {action!r}; it has to return 'raise', 'skip' or 'replace'")
        if action == "raise":
            raise error
        return action


def fill(sample_ids: Int64Array, lengths: Int64Array, wanted: Mapping[int, Action]) -> Int64Array:
    """Which row of a unit goes into the place of each of its rows; -1 = the place is left out.

    A good sample stays. One that is to be replaced gives its place to a good sample that fits into it and the room
    that places before it left over, so what is good never moves backwards. Of those that fit, the faulty sample's id
    chooses, which depends on neither threads nor prefetch and prefers none.

    Args:
        sample_ids: of the unit, ``[n]``.
        lengths: of its samples, ``[n]``.
        wanted: ``skip`` or ``replace`` for each faulty row, in ascending order.
    """
    rows = np.arange(len(sample_ids), dtype=np.int64)
    bad = np.fromiter(wanted, dtype=np.int64, count=len(wanted))
    good = np.delete(rows, bad)
    rows[bad] = -1
    by_length = good[np.argsort(lengths[good], kind="stable")]
    ascending, room = lengths[by_length], 0
    for row, action in wanted.items():
        room += int(lengths[row])
        fitting = int(np.searchsorted(ascending, room, side="right")) if action == "replace" else 0
        if fitting:
            rows[row] = by_length[int(sample_ids[row]) % fitting]
            room -= int(lengths[rows[row]])
    return rows


def moves(rows: Int64Array, starts: Int64Array, lengths: Int64Array) -> list[Move]:
    """How to bring rows of a unit back to back, in place: to be done one after the other.

    Args:
        rows: the row in each place of the batch, as ``fill`` gives them without those that are left out.
        starts: where each row of the unit lies, ascending and without gaps, ``[n]``.
        lengths: of each row, ``[n]``.
    """
    found: list[Move] = []
    at: dict[int, int] = {}  # rows that were moved already; the others are where they were
    end = 0
    for row in rows.tolist():
        start, length = at.get(row, int(starts[row])), int(lengths[row])
        if start != end:
            found.append(Move(end, start, length))
        at[row] = end
        end += length
    return found


def rearrange(data: Any, rows: Int64Array, starts: Int64Array, lengths: Int64Array) -> None:
    """Do these moves in memory that can be sliced: bytes, or an array of pictures."""
    for move in moves(rows, starts, lengths):
        data[move.to : move.to + move.length] = data[move.start : move.start + move.length]


@dataclass(frozen=True, slots=True)
class Tally:
    """Faulty samples of the batches that were handed out.

    Attributes:
        faulty: all of them.
        replaced: those with another sample in their place; the others were skipped.
        kinds: how many there are of each class of error.
    """

    faulty: int = 0
    replaced: int = 0
    kinds: Mapping[str, int] = field(default_factory=dict)

    def plus(self, faults: tuple[Fault, ...], most: int | None) -> Tally:
        """With those of another batch.

        Raises:
            TooManyFaults: these are more than ``most``.
        """
        kinds = Counter(type(fault.error).__name__ for fault in faults)
        replaced = sum(fault.instead is not None for fault in faults)
        tally = Tally(self.faulty + len(faults), self.replaced + replaced, Counter(self.kinds) + kinds)
        if most is not None and tally.faulty > most:
            last = faults[-1].error
            raise TooManyFaults(
                f"{tally.faulty} samples were faulty, and max_errors allows {most}; the last one: {last}. Mend the "
                "dataset (the log names each; `penstock verify` lists damaged bytes), or allow more",
                count=tally.faulty,
                max_errors=most,
            ) from last
        return tally


def log_faults(faults: tuple[Fault, ...], manifest_hash: str) -> None:
    """A warning for each, with all that names it."""
    for fault in faults:
        error = fault.error
        _log.warning(
            "faulty sample %d %s: %s: %s (key %s, offset %d, in %s, manifest %s)",
            error.sample_id,
            "skipped" if fault.instead is None else f"replaced by sample {fault.instead}",
            type(error).__name__,
            error,
            "unknown" if error.key is None else repr(error.key),
            error.offset,
            error.location,
            manifest_hash,
        )
