"""What the commands print: results to stdout, progress and errors to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from penstock.sizes import format_bytes

__all__ = ["ProgressReport", "complain", "counted", "document", "line", "plain_text", "progress_line", "table"]

_LOG_EVERY_S: Final = 5.0


def plain_text(text: object) -> str:
    """Text that any terminal can show on one line: no control characters, no bytes that aren't UTF-8."""
    shown = str(text).encode("utf-8", "backslashreplace").decode()
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in shown.replace("\n", " ")
    )


def line(text: str) -> None:
    """One or more lines of a result."""
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode() + "\n")


def document(data: Mapping[str, object]) -> None:
    """A result for a machine: one JSON document."""
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


def counted(count: int, what: str) -> str:
    """A number and its noun: ``1 shard``, ``2,000 shards``."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def complain(message: str) -> None:
    """An error, on one line."""
    sys.stdout.flush()
    sys.stderr.write(f"penstock: error: {plain_text(message)}\n")


def table(rows: Sequence[Sequence[str]], *, header: Sequence[str] = (), right: Sequence[int] = ()) -> None:
    """Rows of text in aligned columns; those whose numbers stand in ``right`` are aligned to the right."""
    cells = [[plain_text(cell) for cell in row] for row in ([header, *rows] if header else rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = [
            " " * (width - cell_len(cell)) + cell if number in right else cell + " " * (width - cell_len(cell))
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        line("  ".join(padded).rstrip())


def progress_line(what: str, done_bytes: int, total_bytes: int, elapsed_s: float, note: str = "") -> str:
    """One line of progress for a log.

    Args:
        what: what is being done.
        done_bytes: so far.
        total_bytes: 0 while it isn't known.
        elapsed_s: seconds since the beginning.
        note: put at the end.
    """
    rate = done_bytes / elapsed_s if elapsed_s > 0 else 0.0
    parts = [format_bytes(done_bytes)]
    if total_bytes:
        parts = [f"{100 * done_bytes // total_bytes} %, {format_bytes(done_bytes)} of {format_bytes(total_bytes)}"]
    if rate:
        parts.append(f"{format_bytes(rate)}/s")
    if rate and total_bytes > done_bytes:
        parts.append(f"{(total_bytes - done_bytes) / rate:.0f} s left")
    return f"{what}: {', '.join([*parts, note] if note else parts)}"


class ProgressReport:
    """Shows how far something has come: a bar on a terminal, now and then a line in a log.

    Args:
        what: what is being done.
        quiet: show nothing in a log (for ``--json``); a terminal still gets its bar.
    """

    def __init__(self, what: str, *, quiet: bool = False) -> None:
        self._what = what
        self._started_s = self._logged_s = time.monotonic()
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True, markup=False, highlight=False),
                transient=True,
            )
            self._task = self._bar.add_task(what, total=None, note="")

    def __enter__(self) -> ProgressReport:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done_bytes: int, total_bytes: int, note: str = "") -> None:
        """Report; cheap enough to call for every few MiB. ``total_bytes`` is 0 while it isn't known."""
        now_s = time.monotonic()
        if self._bar is not None:
            rate = done_bytes / max(now_s - self._started_s, 1e-3)
            detail = f"{format_bytes(done_bytes)}  {format_bytes(rate)}/s  {note}"
            self._bar.update(self._task, completed=done_bytes, total=total_bytes or None, note=detail)
        elif not self._quiet and now_s - self._logged_s >= _LOG_EVERY_S:
            self._logged_s = now_s
            text = progress_line(self._what, done_bytes, total_bytes, now_s - self._started_s, note)
            sys.stderr.write(f"penstock: {text}\n")
            sys.stderr.flush()
