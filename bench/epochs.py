"""Epochs: how soon the next one begins, and what the ways to get there cost, against torch's DataLoader.

    .venv/bin/python bench/epochs.py [--quick] [--rounds 3]

2,000 photographs (400 when quick) to shuffled 64 x 64 batches of 32, three epochs in one process, files in the page
cache. ``next epoch`` is the time from iter() to the first batch of epochs two and three; memory is the process tree's
peak (PSS) above what it was after the imports, in runs of their own. The rows with "Pillow" are what people write by
hand: a map-style dataset over the same files. Where workers are forked, imports cost them nothing; spawned ones import
torch first.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from _common import (
    OUT,
    Outcome,
    Spread,
    environment,
    environment_line,
    files_below,
    in_turn,
    kept_warm,
    pss_bytes,
    run_child,
    table,
    write_report,
)  # fmt: skip

BATCH, SIDE, EPOCHS = 32, 64, 3
DATA = OUT / "epochs"


def ours(data: Path, **arguments: Any) -> tuple[Any, ...]:
    """What EpochLoader and EpochDataset are made of."""
    from penstock.vision import ImageFolderLoader

    store = {"manifest_store_root": str(data / "store"), "max_inflight_bytes": "64MiB"}
    how = {"batch_size_samples": BATCH, "resize_hw": (SIDE, SIDE), "shuffle": True, "prefetch_batches": 2}
    return functools.partial(ImageFolderLoader, str(data / "packed"), **store, **how, **arguments)


def epoch_loader(data: Path, **arguments: Any) -> Iterable[Any]:
    from penstock.torch import EpochLoader

    return EpochLoader(ours(data, **arguments))


def epoch_dataset(data: Path, count: int, **arguments: Any) -> Iterable[Any]:
    from torch.utils.data import DataLoader

    from penstock.torch import EpochDataset

    return DataLoader(EpochDataset(ours(data)), batch_size=None, num_workers=count, **arguments)


class Files:
    """Pictures by number, decoded by Pillow."""

    def __init__(self, folder: Path) -> None:
        self._paths = files_below(folder)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        import numpy as np
        import torch
        from PIL import Image

        with Image.open(self._paths[number]) as picture:
            pixels = np.asarray(
                picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float32
            )
        return torch.from_numpy(pixels / 255).permute(2, 0, 1), number


def pillow(data: Path, count: int, **arguments: Any) -> Iterable[Any]:
    import PIL.Image  # noqa: F401 - before workers are forked, as a program would
    from torch.utils.data import DataLoader

    return DataLoader(Files(data / "photographs"), batch_size=BATCH, shuffle=True, num_workers=count, **arguments)


WAYS: dict[str, Callable[[Path], Iterable[Any]]] = {
    "EpochLoader": epoch_loader,
    "EpochLoader, persistent_workers": functools.partial(epoch_loader, persistent_workers=True),
    **{
        f"{name}, {count} workers{', persistent' if persistent else ''}": functools.partial(
            way, count=count, **({"persistent_workers": True} if persistent else {})
        )
        for name, way in (("EpochDataset", epoch_dataset), ("Pillow", pillow))
        for count, persistent in ((0, False), (2, False), (2, True), (8, False))
    },
}


def measure(name: str, data: Path) -> dict[str, float]:
    """Three epochs in this process."""
    import torch

    torch.set_num_threads(1)
    loader = WAYS[name](data)
    before_bytes, begun = pss_bytes(), []
    started, cpu = time.perf_counter(), cpu_seconds()
    images = 0
    for _ in range(EPOCHS):
        asked = time.perf_counter()
        for number, (pictures, _) in enumerate(loader):
            if number == 0:
                begun.append(time.perf_counter() - asked)
            images += len(pictures)
    seconds = time.perf_counter() - started
    del loader
    return {
        "first_s": begun[0],
        "next_s": sorted(begun[1:])[0] / 2 + sorted(begun[1:])[-1] / 2,
        "images_per_s": images / seconds,
        "cpu_us": (cpu_seconds() - cpu) / images * 1e6,
        "before_bytes": before_bytes,
    }


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def make_data(quick: bool) -> Path:
    """The examples' photographs, once as files and once packed."""
    import penstock

    sys.path.append(str(Path(__file__).parent.parent / "examples" / "demo"))
    import photographs

    data = DATA / ("quick" if quick else "full")
    data.mkdir(parents=True, exist_ok=True)
    folder = photographs.image_folder(data, print, 50 if quick else 250)
    if not (data / "packed" / "_mx8").is_dir():
        penstock.pack_dir(folder, out=data / "packed", label_mode="imagefolder")
    return data


def row(name: str, outcomes: list[Outcome], watched: Outcome) -> list[str]:
    found = [outcome.result for outcome in outcomes if outcome.result is not None]
    if not found or watched.result is None or watched.peak_pss_bytes is None:
        return [name, *(f"failed: {outcome.reason}" for outcome in outcomes[:1]), "", "", "", ""]
    of = {key: Spread.of(result[key] for result in found) for key in found[0]}
    over_mb = (watched.peak_pss_bytes - watched.result["before_bytes"]) / 1e6
    return [
        name, of["first_s"].show("{:.3f}"), of["next_s"].show("{:.3f}"), of["images_per_s"].show(),
        of["cpu_us"].show(), f"{over_mb:,.0f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--ways", help="some of the rows, separated by semicolons")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], Path(arguments.measure[1]))))
        return
    data = make_data(arguments.quick)
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    names = [name.strip() for name in arguments.ways.split(";")] if arguments.ways else list(WAYS)

    def run(name: str, *, watch: bool = False) -> Outcome:
        command = [sys.executable, "-W", "ignore", __file__, "--measure", name, str(data)]
        return run_child(command, timeout_s=600, watch_memory=watch)

    with kept_warm([*files_below(data / "photographs"), *files_below(data / "packed")]):
        outcomes = in_turn(names, rounds, run)
        watched = {name: run(name, watch=True) for name in names}
    facts = environment("torch", "pillow") | {"load": f"{psutil.getloadavg()[0]:.1f}"}
    headers = ["way", "first batch s", "next epoch s", "images/s", "CPU us/image", "MB over imports"]
    print(table(headers, [row(name, outcomes[name], watched[name]) for name in names]))
    print(environment_line(facts))
    write_report("epochs", {"environment": facts, "outcomes": outcomes, "watched": watched})


if __name__ == "__main__":
    main()
