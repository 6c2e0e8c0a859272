"""What is measured: which rows are moved, how often, and how it is made sure that the right bytes arrived."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

KIB, MIB = 1 << 10, 1 << 20
BLANK = 0xEE  # what memory holds where nothing should arrive


@dataclass(frozen=True, slots=True)
class Move:
    """One transfer to measure: so many rows of a length, each followed by as large a gap when there are several.

    With ``at_once``, so many transfers of one row each, all posted before the first is waited for.
    """

    group: str
    kind: str
    count: int
    nbytes: int
    one_shot: bool = False
    at_once: int = 1

    @property
    def name(self) -> str:
        size = f"{self.nbytes >> 20} MB" if self.nbytes >= MIB else f"{self.nbytes >> 10} KB"
        size = f"{self.nbytes} B" if self.nbytes < KIB else size
        rows = f"{self.count:,} x " if self.count > 1 else ""
        how = ", made and let go" if self.one_shot else f", {self.at_once} at once" if self.at_once > 1 else ""
        return f"{self.kind.lower()} {rows}{size}{how}"

    @property
    def rows(self) -> np.ndarray:
        """(offset, length), of shape (pieces, 2)."""
        offsets = np.arange(self.pieces) * self.stride
        return np.column_stack([offsets, np.full(self.pieces, self.nbytes)]).astype(np.int64)

    @property
    def pieces(self) -> int:
        return self.count * self.at_once

    @property
    def stride(self) -> int:
        return self.nbytes * (2 if self.count > 1 else 1)

    @property
    def total_bytes(self) -> int:
        return self.pieces * self.nbytes

    @property
    def span_bytes(self) -> int:
        return self.pieces * self.stride


def _both(group: str, *sizes: int, count: int = 1, at_once: int = 1) -> list[Move]:
    return [Move(group, kind, count, nbytes, at_once=at_once) for nbytes in sizes for kind in ("WRITE", "READ")]


MOVES = [
    *_both("latency", 8),
    Move("latency", "WRITE", 1, 8, one_shot=True),
    *_both("scatter", 16 * KIB, count=1_000),
    *_both("scatter", 4 * KIB, count=10_000),
    *_both("bulk", 4 * KIB, 64 * KIB, MIB, 16 * MIB, 64 * MIB),
    *_both("network", 8, 64 * KIB, MIB, 16 * MIB),
    *_both("network", MIB, 16 * MIB, at_once=4),
    *_both("network", 4 * KIB, count=1_000),
]
ARENA_BYTES = max(move.span_bytes for move in MOVES)


def fill(memory: np.ndarray, move: Move, seed: int) -> None:
    """Put a move's bytes where it takes them from, and nothing else."""
    memory[: move.span_bytes] = BLANK
    _rows_of(memory, move)[:] = _content(move, seed)


def clear(memory: np.ndarray, move: Move) -> None:
    memory[: move.span_bytes] = BLANK


def check(memory: np.ndarray, move: Move, seed: int) -> str | None:
    """What is wrong with what arrived: each row has to be there, each gap untouched. None when all is right."""
    rows = _rows_of(memory, move)
    wrong = np.flatnonzero((rows != _content(move, seed)).any(axis=1))
    if len(wrong):
        return f"{move.name}: row {wrong[0]} of {move.pieces} holds wrong bytes ({len(wrong)} rows do)"
    if move.count > 1 and (memory[: move.span_bytes].reshape(move.pieces, -1)[:, move.nbytes :] != BLANK).any():
        return f"{move.name}: wrote into a gap"
    return None


def _rows_of(memory: np.ndarray, move: Move) -> np.ndarray:
    return memory[: move.span_bytes].reshape(move.pieces, -1)[:, : move.nbytes]


def _content(move: Move, seed: int) -> np.ndarray:
    words = -(-move.total_bytes // 8)
    noise = np.random.default_rng(seed).integers(0, 1 << 63, words, np.int64).view(np.uint8)
    return noise[: move.total_bytes].reshape(move.pieces, move.nbytes)


def timed(
    run: Callable[[], None], budget_s: float, *, least: int = 5, most: int = 50_000, pause_s: float = 0.0
) -> list[int]:
    """Nanoseconds of each call, for about so long, with a pause before each that isn't counted."""
    clock = time.perf_counter_ns
    found: list[int] = []
    gc.disable()
    try:
        run()
        run()
        until = clock() + int(budget_s * 1e9)
        while len(found) < most and (len(found) < least or clock() < until):
            started = begin = clock()
            while started - begin < pause_s * 1e9:
                started = clock()
            run()
            found.append(clock() - started)
    finally:
        gc.enable()
    return found


def summary(nanoseconds: list[int]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(nanoseconds, [50, 90, 99]) / 1e3
    return {"count": len(nanoseconds), "p50_us": p50, "p90_us": p90, "p99_us": p99, "best_us": min(nanoseconds) / 1e3}
