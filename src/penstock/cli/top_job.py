"""``penstock top --coord``: a shared job, live; what the coordinator's page shows, for a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from penstock.cli.output import counted, document, line, plain_text, table
from penstock.errors import CoordinatorUnreachable
from penstock.sizes import format_bytes

__all__ = ["show_job"]

_HUES: Final = ("yellow", "magenta", "green", "red", "bright_yellow", "bright_blue", "bright_red", "bright_cyan")
_DONE, _LEASED, _QUEUED = "#", "=", "."
_BLOCKS: Final = {_DONE: "█", _LEASED: "▓", _QUEUED: "░"}
_PLAIN_WIDTH: Final = 72
_MEMORY_WIDTH: Final = 10
_MOST_NODES: Final = 20
_MOST_EVENTS: Final = 8
_HEADER: Final = ("rank", "node", "state", "samples/s", "MB/s", "memory", "of cap", "leases", "queued", "heard")
_RIGHT: Final = (0, 3, 4, 5, 6, 7, 8, 9)

Job = dict[str, Any]


def show_job(ask: Callable[[], Job], *, once: bool, interval_s: float, as_json: bool) -> None:
    """Show it until Ctrl-C, or once.

    Args:
        ask: for a snapshot.
        once: print one, and end.
        interval_s: seconds between two.
        as_json: print it as JSON.
    """
    if as_json:
        document(ask())
    elif once:
        _print(ask())
    elif not sys.stdout.isatty():
        while True:
            _print(ask())
            sys.stdout.flush()
            time.sleep(interval_s)
    else:
        _watch(ask, interval_s)


def _watch(ask: Callable[[], Job], interval_s: float) -> None:
    console = Console(markup=False, highlight=False)
    job, heard_s = ask(), time.monotonic()
    with Live(_drawn(job, console, ""), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            lost = ""
            try:
                job, heard_s = ask(), time.monotonic()
            except CoordinatorUnreachable:
                lost = f"connection lost; last heard {_duration(time.monotonic() - heard_s)} ago"
            live.update(_drawn(job, console, lost), refresh=True)


def _print(job: Job) -> None:
    line(_headline(job))
    if "cells" not in job:
        return
    line(_bar(job, _PLAIN_WIDTH))
    rows = [_cells(node) for node in job["nodes"]["shown"]]
    if rows:
        table(rows, header=_HEADER, right=_RIGHT)
    for event in job["events"][-_MOST_EVENTS:]:
        line(_event(event))


def _headline(job: Job) -> str:
    if job["phase"] == "following":
        return f"standing by: {plain_text(job['leader'] or 'nobody')} leads the job"
    done, left = job["done_of_all_epochs"], job["left_of_all_epochs"]
    share = done / (done + left) if done + left else 1.0
    parts = [job["phase"], f"{int(share * 1000) / 10:.1f} %", f"{done:,} of {counted(done + left, 'sample')}"]
    if job["epochs"] > 1:
        parts.append(f"epoch {job['epoch'] - job['first_epoch'] + 1} of {job['epochs']}")
    if job["phase"] == "running":
        unknown = "no rate yet" if job["nodes"]["live"] else "nobody works on it"
        parts.append(unknown if job["left_s"] is None else f"{_duration(job['left_s'])} left")
        parts.append(f"{job['samples_per_s']:,.0f} samples/s")
        parts.append(f"{job['nodes']['bytes_per_s'] / 1e6:,.1f} MB/s")
    parts.append(f"{job['nodes']['live']:,} of {counted(job['world_size'], 'node')}")
    if job["reason"]:
        parts.append(plain_text(job["reason"]))
    return ", ".join(parts)


def _columns(job: Job, width: int) -> list[tuple[str, int]]:
    """For each column of the bar: what most of its samples are, and whose those are that are leased."""
    done, leased, rank = (job["cells"][name] for name in ("done", "leased", "rank"))
    count, size = len(done), job["cells"]["width"]
    columns = []
    for column in range(min(width, count)):
        start, end = column * count // min(width, count), (column + 1) * count // min(width, count)
        samples = min(end * size, job["samples"]) - start * size
        its_done, its_leased = sum(done[start:end]), sum(leased[start:end])
        most = max((its_leased, _LEASED), (its_done, _DONE), (samples - its_done - its_leased, _QUEUED))[1]
        owner = max(range(start, end), key=lambda cell: leased[cell])
        columns.append((most, rank[owner]))
    return columns


def _bar(job: Job, width: int) -> str:
    return "".join(mark for mark, _ in _columns(job, width))


def _cells(node: Job) -> tuple[str, ...]:
    cap = node["max_inflight_bytes"]
    return (
        str(node["rank"]),
        plain_text(node["id"]),
        node["status"],
        f"{node['samples_per_s']:,.0f}",
        f"{node['bytes_per_s'] / 1e6:,.1f}",
        format_bytes(node["inflight_bytes"]),
        format_bytes(cap) if cap else "-",
        str(node["leases"]),
        counted(node["queued_blocks"], "block"),
        _ago(node["heard_s"]),
    )


def _event(event: Job) -> str:
    fields = " ".join(f"{name}={value}" for name, value in event["fields"].items())
    return plain_text(f"{_ago(event['ago_s']):>14}  {event['event']}  {fields}")


# For a terminal.


def _drawn(job: Job, console: Console, lost: str) -> RenderableType:
    parts: list[RenderableType] = [Text(_headline(job), style="bold")]
    if lost:
        parts.append(Text(lost, style="bold red"))
    if "cells" in job:
        parts += [_drawn_bar(job, console), _drawn_nodes(job["nodes"]), *_drawn_events(job["events"], console.width)]
    return Group(*parts)


def _drawn_bar(job: Job, console: Console) -> Text:
    blocks = _BLOCKS if (console.encoding or "").lower().startswith("utf") else {}
    text = Text(no_wrap=True, overflow="crop")
    for mark, rank in _columns(job, console.width):
        style = {_DONE: "cyan", _LEASED: _hue(rank), _QUEUED: "bright_black"}[mark]
        text.append(blocks.get(mark, mark), style=style)
    return text


def _hue(rank: int) -> str:
    return "white" if rank < 0 else _HUES[rank % len(_HUES)]


def _drawn_nodes(nodes: Job) -> Table:
    shown: Sequence[Job] = nodes["shown"][:_MOST_NODES]
    hidden = nodes["count"] - len(shown)
    caption = f"and {counted(hidden, 'node')} more" if hidden else None
    drawn = Table(box=None, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    for number, name in enumerate((*_HEADER[:5], "memory", "", *_HEADER[6:])):
        bar = number == 5
        drawn.add_column(
            name,
            justify="right" if not bar and number not in (1, 2) else "left",
            no_wrap=True,
            width=_MEMORY_WIDTH if bar else None,
            overflow="ellipsis",
            max_width=24 if number == 1 else None,
        )
    for node in shown:
        rank, name, status, *rates, memory, cap, leases, queued, heard = _cells(node)
        share = min(1.0, node["inflight_bytes"] / (node["max_inflight_bytes"] or 1))
        meter = ProgressBar(total=1.0, completed=share, width=_MEMORY_WIDTH)
        state = Text(status, style={"live": "green", "silent": "yellow"}.get(status, "red"))
        drawn.add_row(
            rank, Text(name, style=_hue(node["rank"])), state, *rates, meter, memory, cap, leases, queued, heard
        )
    return drawn


def _drawn_events(events: Sequence[Job], width: int) -> list[RenderableType]:
    return [Text(_event(event)[:width], style="bright_black") for event in reversed(events[-_MOST_EVENTS:])]


def _ago(seconds: float) -> str:
    return "now" if seconds < 1 else f"{_duration(seconds)} ago"


def _duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if not minutes:
        return f"{whole} s"
    if not hours:
        return f"{minutes} min {whole % 60:02} s"
    return f"{hours} h {minutes % 60:02} min" if not days else f"{days} d {hours % 24} h"
