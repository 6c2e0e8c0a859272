"""``penstock inspect``: what a dataset holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Final

import typer

from penstock.cli import output
from penstock.cli.options import AsJson, Link, StoreRoot
from penstock.cli.summary import Bin, Example, Summary, summarise
from penstock.dataset.resolve import resolve
from penstock.sizes import format_bytes

__all__ = ["inspect"]

_BAR_WIDTH: Final = 40


def inspect(
    link: Link,
    store: StoreRoot = None,
    samples: Annotated[int, typer.Option(min=0, help="How many samples to show.")] = 5,
    labels: Annotated[int, typer.Option(min=0, help="How many labels to show.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show a dataset's counts, sizes, labels and a few samples; reads the manifest only."""
    summary = summarise(resolve(link, manifest_store_root=store), most_labels=labels, examples=samples)
    if as_json:
        output.document(asdict(summary))
        return
    output.table(_facts(summary))
    if summary.histogram:
        output.line("\nsample sizes")
        output.table(_bars(summary.histogram), right=(0, 1))
    if summary.labels:
        shown = f"the first {len(summary.labels)} of " if len(summary.labels) < summary.label_count else ""
        output.line(f"\n{shown}{output.counted(summary.label_count, 'label')}")
        rows = [(str(label.label_id), label.name or "?", f"{label.samples:,}") for label in summary.labels]
        output.table(rows, header=("id", "label", "samples"), right=(0, 2))
    if summary.examples:
        output.line("\nsome samples")
        output.table(
            [_example(example) for example in summary.examples],
            header=("id", "bytes", "label", "crc32c", "offset", "location"),
            right=(0, 1, 2, 4),
        )


def _facts(summary: Summary) -> list[tuple[str, str]]:
    mean = summary.total_bytes / max(summary.sized, 1)
    sizes = "not in the manifest"
    if summary.sized:
        least, most = format_bytes(summary.least_bytes), format_bytes(summary.most_bytes)
        sizes = f"{format_bytes(summary.total_bytes)}; a sample {least} to {most}, mean {format_bytes(mean)}"
    return [
        ("base", summary.base),
        ("manifest", f"{summary.hash}, version {summary.version}"),
        ("samples", f"{summary.samples:,} in {output.counted(summary.locations, 'location')}"),
        ("sizes", sizes + _unless_all(summary.sized, summary.samples, "have one")),
        ("checksums", _share(summary.checked, summary.samples)),
        ("labels", _share(summary.labelled, summary.samples)),
    ]


def _share(count: int, total: int) -> str:
    if count == 0:
        return "none"
    return "every sample has one" if count == total else f"{count:,} of {total:,} samples have one"


def _unless_all(count: int, total: int, what: str) -> str:
    return "" if count in {0, total} else f"; {count:,} of {total:,} samples {what}"


def _bars(histogram: list[Bin]) -> list[tuple[str, str, str]]:
    most = max(part.samples for part in histogram)
    return [
        (
            f"{format_bytes(part.start_bytes)} -",
            f"{part.samples:,}",
            "#" * -(-part.samples * _BAR_WIDTH // most),
        )
        for part in histogram
    ]


def _example(example: Example) -> tuple[str, ...]:
    crc = f"{example.crc32c:08x}" if example.crc32c >= 0 else "-"
    numbers = (example.length, example.label_id, example.offset)
    length, label, offset = (str(number) if number >= 0 else "-" for number in numbers)
    return (str(example.sample_id), length, label, crc, offset, example.location)
