"""Pack photographs, train a small network on them under a memory cap, and show that the cap held.

``make demo`` runs this on photographs that ship inside scikit-learn and scikit-image; ``make demo DATA=folder``
on a folder of your own that has one folder of images for each class. Everything it writes lies under ``out/demo``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import photographs
import picture
from rich.console import Console
from rich.table import Table
from watch import Watch

import penstock
import training
from penstock.dataset.resolve import resolve
from penstock.errors import PenstockError
from penstock.sizes import format_bytes, parse_bytes
from penstock.vision import ImageFolderLoader

OUT = Path("out/demo")
MANIFESTS = OUT / "manifests"
BATCH_SIZE = 32
SIDE = 64


def main() -> int:
    """Run the demo; 1 if the cap didn't hold."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--data", type=Path, help="a folder with one folder of images for each class")
    parser.add_argument("--cap", help='the memory cap, such as "16MiB" (default: a few batches)')
    arguments = parser.parse_args()
    console = Console(highlight=False, markup=False, soft_wrap=True)
    os.environ.setdefault("PENSTOCK_CACHE_DIR", str(OUT / "cache"))
    started = time.monotonic()

    folder = arguments.data or photographs.image_folder(OUT, console.print)
    packed = OUT / "packed"
    console.print(f"packing {folder} ...")
    result = penstock.pack_dir(folder, out=packed, label_mode="imagefolder")
    manifest = resolve(f"{packed}@refresh", manifest_store_root=str(MANIFESTS)).manifest
    dataset_bytes = int(manifest.length.sum())
    cap_bytes = parse_bytes(arguments.cap, name="--cap") if arguments.cap else few_batches(manifest.length)
    console.print(
        f"{result['samples']} images, {format_bytes(dataset_bytes)} in {result['shards']} shards; "
        f"training one epoch with max_inflight_bytes = {format_bytes(cap_bytes)}"
    )

    model = training.warm_model(int(manifest.label_id.max()) + 1, BATCH_SIZE, SIDE)
    with ImageFolderLoader(
        f"{packed}@sha256:{manifest.hash}",
        manifest_store_root=str(MANIFESTS),
        batch_size_samples=BATCH_SIZE,
        resize_hw=(SIDE, SIDE),
        max_inflight_bytes=cap_bytes,
        prefetch_batches=2,
        shuffle=True,
    ) as loader:
        classes = loader.classes or []
        with Watch(loader, cap_bytes, manifest.row_count) as watch:
            for images, labels in loader:
                watch.step(*model.step(images, labels), samples=len(labels))
                del images, labels  # a batch that is kept stays charged
        stats = loader.stats()

    plot = picture.draw(watch, cap_bytes, dataset_bytes, OUT / "memory.png")
    held = stats["ram_high_water_bytes"] <= cap_bytes
    report(
        console,
        {
            "classes": ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else ""),
            "images": f"{stats['delivered_samples_total']} of {manifest.row_count}, {watch.rate():.0f} a second",
            "accuracy": f"{model.recent_accuracy():.0%} on the last {model.recent} images, not trained on yet",
            "dataset": format_bytes(dataset_bytes),
            "cap": f"{format_bytes(cap_bytes)} ({dataset_bytes / cap_bytes:.1f} times smaller)",
            "most in flight": format_bytes(stats["ram_high_water_bytes"]),
            "process, before": format_bytes(watch.baseline_rss_bytes),
            "process, at most": f"{format_bytes(watch.most_rss_bytes)} (+{format_bytes(watch.growth_bytes)})",
            "waiting for data": f"{stats['data_wait_s'] / watch.elapsed_s:.0%} of the epoch",
            "plot": str(plot),
            "time": f"{time.monotonic() - started:.0f} s",
        },
    )
    console.print(verdict(held, int(stats["ram_high_water_bytes"]), cap_bytes, dataset_bytes))
    return 0 if held else 1


def few_batches(lengths: training.Int64Array) -> int:
    """A cap that fits three of the largest batches there can be, files and pixels, in whole MiB."""
    largest = lengths[lengths.argsort()[-BATCH_SIZE:]].sum()
    pixels = BATCH_SIZE * 3 * SIDE * SIDE * 4
    return -(-3 * int(largest + pixels) // (1 << 20)) << 20


def report(console: Console, facts: dict[str, str]) -> None:
    """Print the result as a table."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in facts.items():
        table.add_row(name, value)
    console.print()
    console.print(table, soft_wrap=False)
    console.print()


def verdict(held: bool, most_bytes: int, cap_bytes: int, dataset_bytes: int) -> str:
    """One sentence that says whether the cap held."""
    if held:
        return (
            f"The cap held: {format_bytes(dataset_bytes)} went through, and never more than "
            f"{format_bytes(most_bytes)} of it, files and pixels together, were in memory at once "
            f"(cap {format_bytes(cap_bytes)})."
        )
    return f"The cap did NOT hold: {format_bytes(most_bytes)} in flight, {format_bytes(cap_bytes)} allowed."


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PenstockError as error:
        sys.exit(f"demo: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
