"""``penstock top``: the loaders that run now, or a job that nodes share, live."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from penstock import config
from penstock.cli import output
from penstock.cli.options import AsJson
from penstock.errors import ConfigError
from penstock.observe.live import Snapshot, snapshots
from penstock.sizes import format_bytes

__all__ = ["top"]

_SILENT_S: Final = 3.0  # next() publishes once a second; after this long without a sign we say so
_MARKS: Final = 12  # of a bar without colours
_COLUMNS: Final = ("pid", "dataset", "samples/s", "MB/s", "waiting", "decoding", "in flight", "", "of cap", "RSS", "")


def top(
    pid: Annotated[int | None, typer.Argument(help="Only loaders of this process.")] = None,
    *,
    once: Annotated[bool, typer.Option("--once", help="Print what is there now, and end.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    coord: Annotated[str | None, typer.Option(help="The job of this coordinator instead: http://host:port.")] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="Who signed that coordinator's certificate: PEM.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="A certificate of ours, where it asks for one: PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key; default: in the same file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the running loaders of this user: rates, data wait, memory in flight; Ctrl-C ends it.

    --json prints one reading, as --once does. A loader shows itself after its first second. With --coord, the URL of a
    coordinator or of its page, it shows that job: progress, nodes, leases and events.
    """
    if coord is not None:
        _job(coord, pid, (tls_ca, tls_cert, tls_key), once=once, interval_s=interval, as_json=as_json)
        return
    if tls_ca or tls_cert or tls_key:
        raise ConfigError("--tls-ca, --tls-cert and --tls-key are for the line to a coordinator; give --coord")
    if once or as_json:
        _print(_rows(pid), pid, as_json=as_json)
        return
    try:
        _watch(pid, interval)
    except KeyboardInterrupt:
        return  # the way to end it


def _job(
    url: str, pid: int | None, tls: tuple[Path | None, ...], *, once: bool, interval_s: float, as_json: bool
) -> None:
    from penstock.cli.top_job import show_job
    from penstock.coordinator.ask import ask_for_snapshot
    from penstock.coordinator.credentials import Credentials

    if pid is not None:
        raise ConfigError(f"--coord shows a whole job, not process {pid}; give one of them")
    ours = Credentials(config.lookup("COORD_TOKEN"), *tls)
    try:
        show_job(lambda: ask_for_snapshot(url, credentials=ours), once=once, interval_s=interval_s, as_json=as_json)
    except KeyboardInterrupt:
        return


@dataclass(frozen=True, slots=True)
class Row:
    """A loader as it is shown.

    Attributes:
        pid: of its process.
        dataset: the base of its link.
        manifest_hash: what it loads.
        samples_per_s: over the last second or so that it was heard of.
        bytes_per_s: payload, as it lies in storage.
        data_wait_share: of that time, spent waiting in ``next()``.
        decode_share: of that time, spent decoding; more than 1 when several batches are decoded at once.
        inflight_bytes: charged.
        max_inflight_bytes: the cap.
        process_rss_bytes: of its process.
        delivered_samples: so far.
        prefetch_batches: that may be built at once, now.
        max_queue_batches: finished ones that may wait, now.
        decode_threads: now; 0 where nothing is decoded.
        tune_decisions: changes that tuning has made.
        faulty_samples: that were skipped or replaced so far.
        silent_s: seconds since ``next()`` last returned (or the second in which it did).
    """

    pid: int
    dataset: str
    manifest_hash: str
    samples_per_s: float
    bytes_per_s: float
    data_wait_share: float
    decode_share: float
    inflight_bytes: int
    max_inflight_bytes: int
    process_rss_bytes: int
    delivered_samples: int
    prefetch_batches: int
    max_queue_batches: int
    decode_threads: int
    tune_decisions: int
    faulty_samples: int
    silent_s: float


def row_of(snapshot: Snapshot, now: float) -> Row:
    """What to show of a loader at a time, in seconds since 1970."""
    rates, stats = snapshot.rates(), snapshot.stats
    return Row(
        pid=snapshot.pid,
        dataset=snapshot.dataset,
        manifest_hash=snapshot.manifest_hash,
        samples_per_s=rates.samples_per_s,
        bytes_per_s=rates.bytes_per_s,
        data_wait_share=rates.data_wait,
        decode_share=rates.decode,
        inflight_bytes=int(stats.get("inflight_bytes", 0)),
        max_inflight_bytes=int(stats.get("max_inflight_bytes", 0)),
        process_rss_bytes=int(stats.get("process_rss_bytes", 0)),
        delivered_samples=int(stats.get("delivered_samples_total", 0)),
        prefetch_batches=int(stats.get("prefetch_batches", 0)),
        max_queue_batches=int(stats.get("max_queue_batches", 0)),
        decode_threads=int(stats.get("decode_threads", 0)),
        tune_decisions=int(stats.get("tune_decisions_total", 0)),
        faulty_samples=int(stats.get("faulty_samples_total", 0)),
        silent_s=max(0.0, now - snapshot.updated_at),
    )


def _rows(pid: int | None) -> list[Row]:
    now = time.time()
    return [row_of(snapshot, now) for snapshot in snapshots() if pid is None or snapshot.pid == pid]


def _print(rows: Sequence[Row], pid: int | None, *, as_json: bool) -> None:
    if pid is not None and not rows:
        raise ConfigError(f"process {pid}: {_nothing()}; `penstock top` without a number lists those that do")
    if as_json:
        output.document({"loaders": [asdict(row) for row in rows]})
    elif rows:
        output.table([_cells(row) for row in rows], header=_COLUMNS, right=(0, 2, 3, 4, 5, 6, 8, 9))
    else:
        output.line(_nothing())


def _nothing() -> str:
    return f"no loader of this user shows itself in {config.runtime_dir()}"


def _watch(pid: int | None, interval_s: float) -> None:
    if not sys.stdout.isatty():
        while True:
            _print(_rows(pid), None, as_json=False)
            sys.stdout.flush()
            time.sleep(interval_s)
    console = Console(markup=False, highlight=False)
    with Live(_table(_rows(pid)), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            live.update(_table(_rows(pid)), refresh=True)


def _cells(row: Row) -> tuple[str, ...]:
    share = _share_of_cap(row)
    return (
        str(row.pid),
        row.dataset,
        f"{row.samples_per_s:,.0f}",
        f"{row.bytes_per_s / 1e6:,.1f}",
        f"{row.data_wait_share:.0%}",
        f"{row.decode_share:.0%}",
        format_bytes(row.inflight_bytes),
        ("#" * round(share * _MARKS)).ljust(_MARKS, "."),
        format_bytes(row.max_inflight_bytes),
        format_bytes(row.process_rss_bytes),
        _remark(row),
    )


def _remark(row: Row) -> str:
    if row.silent_s > _SILENT_S:
        return f"silent for {row.silent_s:.0f} s"
    if row.faulty_samples:
        return f"{row.faulty_samples:,} faulty"
    return f"tuned, {row.prefetch_batches} at once" if row.tune_decisions else ""


def _table(rows: Sequence[Row]) -> Table:
    """The same for a terminal of 80 columns: the end of the dataset's name, and a bar for the bytes in flight."""
    table = Table(box=None, padding=(0, 1, 0, 0), caption=None if rows else _nothing(), caption_justify="left")
    table.add_column("pid", justify="right", no_wrap=True)
    table.add_column("dataset", no_wrap=True)
    for name in ("samples/s", "MB/s", "waiting", "decoding"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("in flight", no_wrap=True, width=_MARKS)
    for name in ("of cap", "RSS", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        pid, dataset, *rates, _, _, cap, rss, silence = map(output.plain_text, _cells(row))
        bar = ProgressBar(total=1.0, completed=_share_of_cap(row), width=_MARKS)
        table.add_row(pid, dataset.rstrip("/").rpartition("/")[2], *rates, bar, cap, rss, silence)
    return table


def _share_of_cap(row: Row) -> float:
    return min(1.0, row.inflight_bytes / row.max_inflight_bytes) if row.max_inflight_bytes else 0.0
