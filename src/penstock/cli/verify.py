"""``penstock verify``: every byte of a dataset against its checksum."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

import typer

from penstock.cli import output
from penstock.cli.audit import Audit, audit
from penstock.cli.options import AsJson, Link, StoreRoot
from penstock.dataset.resolve import resolve
from penstock.sizes import format_bytes

__all__ = ["verify"]


def verify(
    link: Link,
    store: StoreRoot = None,
    show: Annotated[int, typer.Option(min=1, help="How many bad samples to list.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Read every byte again and compare it with its checksum; exit code 1 if any sample is bad."""
    resolved = resolve(link, manifest_store_root=store)
    started_s = time.monotonic()
    with output.ProgressReport("verify", quiet=as_json) as report:

        def progress(state: Audit) -> None:
            note = f"{state.read_samples:,} samples, {len(state.bad):,} bad"
            report.update(state.read_bytes, state.total_bytes, note)

        result = audit(resolved, progress)
    elapsed_s = time.monotonic() - started_s
    if as_json:
        bad = [asdict(sample) for sample in result.bad[:show]]
        counts = {**asdict(result), "bad": bad, "bad_samples": len(result.bad), "gave_up": result.gave_up}
        output.document({"manifest_hash": resolved.hash, **counts, "elapsed_s": round(elapsed_s, 3)})
    else:
        _render(result, elapsed_s, show)
    raise typer.Exit(1 if result.bad else 0)


def _render(result: Audit, elapsed_s: float, show: int) -> None:
    rate = format_bytes(result.read_bytes / max(elapsed_s, 1e-3))
    output.line(
        f"read {result.read_samples:,} of {result.total_samples:,} samples, "
        f"{format_bytes(result.read_bytes)} in {elapsed_s:.1f} s ({rate}/s)"
    )
    if result.unchecked_samples:
        output.line(f"{result.unchecked_samples:,} have no checksum; only their length was compared")
    if not result.bad:
        output.line("all good")
        return
    rows = [(str(bad.sample_id), str(bad.offset), bad.location, bad.reason) for bad in result.bad[:show]]
    output.line(output.counted(len(result.bad), "bad sample") + (", then it gave up" if result.gave_up else ""))
    output.table(rows, header=("id", "offset", "location", "what is wrong"), right=(0, 1))
    if len(result.bad) > show:
        output.line(f"... and {len(result.bad) - show:,} more; see --show")
