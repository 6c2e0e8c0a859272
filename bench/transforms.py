"""What a Python transform costs: Penstock's threads and processes, and torch's DataLoader, side by side.

    make setup && .venv/bin/python bench/transforms.py [--images 2000] [--rounds 3] [--quick]

The same JPEG files for all, in the page cache, read in batches of 64 in order. Two transforms: *nothing* copies the
first KiB of a file, which leaves only what the loader itself costs; *decode* is Pillow and a resize to 224 x 224 uint8.
Each measurement is one process that goes through one epoch; samples/s counts from the ninth batch on, CPU all
processes from construction on. Contestants run in turn. Memory is the peak PSS of all processes together, above what
this one had before the loader was made, in runs of their own: with 0 workers (all in the loop's own process, one
thread), 2 and 8.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
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
    say,
    table,
    write_report,
)
from _transform_work import RESULT_BYTES, TASKS, Files, Transform

BATCH = 64
_WARM_UP = 8
_CAP_BYTES = 128 << 20
_SEED = 1
READERS = {
    "penstock threads": "Penstock, threads",
    "penstock processes": "Penstock, processes",
    "penstock packed": "Penstock, processes, packed shards",
    "torch": "torch DataLoader, processes",
}


def pictures(count: int) -> Path:
    """A folder of JPEG files of 500 x 375, smooth with some noise, 30 to 40 KB each; made once."""
    from PIL import Image

    folder = OUT / f"transforms-{count}"
    if folder.exists():
        return folder
    making = folder.with_suffix(".making")
    making.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(_SEED)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        picture = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(np.int16)
        picture += random.integers(-12, 13, picture.shape, dtype=np.int16)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(making / f"{number:05}.jpg", quality=85)
    making.rename(folder)
    return folder


def batches(name: str, task: str, workers: int, folder: str) -> Iterator[Any]:
    if name == "torch":
        return _torch(task, workers, folder)
    return _penstock(name, task, workers, folder)


def _torch(task: str, workers: int, folder: str) -> Iterator[Any]:
    from torch.utils.data import DataLoader

    yield from DataLoader(Files(folder, task), batch_size=BATCH, num_workers=workers)


def _penstock(name: str, task: str, workers: int, folder: str) -> Iterator[Any]:
    import penstock

    link = f"{folder}-packed" if name.endswith("packed") else folder
    with penstock.load(
        link,
        manifest_store_root=f"{folder}-manifests",
        batch_size=BATCH,
        transform=Transform(task),
        transform_bytes=RESULT_BYTES[task] + 8,
        workers="threads" if name.endswith("threads") or workers == 0 else "processes",
        num_workers=max(1, workers),
        prefetch_batches=2,
        max_queue_batches=2,
        max_inflight_bytes=_CAP_BYTES,
    ) as loader:
        yield from loader


def measure(name: str, task: str, workers: int, folder: str) -> dict[str, Any]:
    """One epoch, in this process."""
    import torch  # noqa: F401 - in the base of all
    from PIL import Image  # noqa: F401

    if name != "torch":
        import penstock.loader  # noqa: F401
    base_bytes, cpu_before = pss_bytes(), _tree_cpu_s()
    times, counts, total = [time.perf_counter()], [0], 0
    for arrays, ids in batches(name, task, workers, folder):
        counts.append(counts[-1] + len(ids))
        total += int(np.asarray(ids).sum()) + 0 * int(np.asarray(arrays)[0, 0].sum())
        times.append(time.perf_counter())
    if total != sum(range(counts[-1])):
        raise SystemExit(f"{name} gave samples that sum up to {total}")
    warm = min(_WARM_UP, len(times) // 4)
    return {
        "samples_per_s": (counts[-1] - counts[warm]) / (times[-1] - times[warm]),
        "first_batch_s": times[1] - times[0],
        "cpu_s_per_1000": (_tree_cpu_s() - cpu_before) / counts[-1] * 1000,
        "base_pss_bytes": base_bytes,
    }


def _tree_cpu_s() -> float:
    """Processor time of this process, of its ended children, and of all that still run."""
    own = psutil.Process()
    total = 0.0
    for process in [own, *own.children(recursive=True)]:
        used = process.cpu_times()
        total += used.user + used.system + used.children_user + used.children_system
    return total


# -- the parent


def run(key: str, *, task: str, folder: Path, watch: bool = False) -> Outcome:
    name, workers = key.rsplit(" ", 1)
    command = [
        sys.executable,
        __file__,
        "--measure",
        name,
        "--task",
        task,
        "--workers",
        workers,
        "--folder",
        str(folder),
    ]
    with kept_warm(files_below(folder)):
        return run_child(command, timeout_s=300, watch_memory=watch)


def prepare(folder: Path) -> None:
    import penstock

    packed = Path(f"{folder}-packed")
    if not packed.exists():
        penstock.pack_dir(str(folder), out=str(packed), shard_mb=64)
    for link in (folder, packed):
        penstock.resolve_manifest_hash(f"{link}@refresh", manifest_store_root=f"{folder}-manifests")


def speeds(task: str, folder: Path, rounds: int) -> dict[str, dict[str, Spread]]:
    say(f"-- {task}")
    keys = [f"{name} 2" for name in READERS]
    outcomes = in_turn(
        [*keys, "torch 0", "penstock threads 0"], rounds, functools.partial(run, task=task, folder=folder)
    )
    found = {}
    for key, runs in outcomes.items():
        broken = [outcome.reason for outcome in runs if outcome.result is None]
        if broken:
            raise SystemExit(f"{key}: {broken[0]}")
        results = [outcome.result for outcome in runs if outcome.result]
        measured = ("samples_per_s", "first_batch_s", "cpu_s_per_1000")
        found[key] = {name: Spread.of(result[name] for result in results) for name in measured}
    return found


def memory(folder: Path) -> dict[str, dict[int, float]]:
    say("-- memory")
    found: dict[str, dict[int, float]] = {}
    for name in ("penstock processes", "torch"):
        for workers in (0, 2, 8):
            outcome = run(f"{name} {workers}", task="decode", folder=folder, watch=True)
            assert outcome.result is not None and outcome.peak_pss_bytes is not None, outcome.reason
            found.setdefault(name, {})[workers] = outcome.peak_pss_bytes - outcome.result["base_pss_bytes"]
    return found


def speed_table(report: dict[str, dict[str, Spread]]) -> str:
    base = report["torch 2"]["samples_per_s"].median
    rows = []
    for key, found in report.items():
        name, workers = key.rsplit(" ", 1)
        rows.append(
            [
                f"{READERS[name]}, {workers}",
                found["samples_per_s"].show(),
                f"{found['samples_per_s'].median / base:.2f}",
                found["cpu_s_per_1000"].show("{:.2f}"),
                found["first_batch_s"].show("{:.2f}"),
            ]
        )
    return table(["loader, workers", "samples/s", "of torch's 2", "CPU s per 1000", "first batch, s"], rows)


def memory_table(report: dict[str, dict[int, float]]) -> str:
    rows = [
        [READERS[name], *(f"{found[workers] / 2**20:.0f}" for workers in (0, 2, 8))] for name, found in report.items()
    ]
    return table(["MiB grown, of all processes", "0 workers", "2", "8"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="600 images, one round")
    for name in ("--measure", "--task", "--folder"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.task, options.workers, options.folder)))
        return 0
    os.environ.update(OMP_NUM_THREADS="1")
    images, rounds = (600, 1) if options.quick else (options.images, options.rounds)
    folder = pictures(images)
    prepare(folder)
    reports = {task: speeds(task, folder, rounds) for task in TASKS}
    held = memory(folder)
    facts = environment("torch", "pillow", "numpy")
    write_report("transforms", {"environment": facts, "rounds": rounds, "speeds": reports, "memory": held})
    for task, report in reports.items():
        print(f"\n{task}\n\n{speed_table(report)}")
    print(f"\n{memory_table(held)}\n\n{environment_line(facts)}, load {os.getloadavg()[0]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
