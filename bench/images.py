"""Images: JPEG files to batches of pixels; Penstock, its peers, and what libjpeg-turbo alone could do.

    make setup-bench && .venv/bin/python bench/images.py [--images 4000] [--rounds 3] [--readers penstock,torch-cv2]

The same photographs for all, batches of 64, shuffled, two threads or two worker processes each. Two tasks: decode and
resize to 224 x 224 uint8; RandomResizedCrop 224, flip and normalise to float32 NCHW. Each measurement is one process
that goes through one epoch, with the files in the page cache. ``images/s`` counts from the ninth batch on, which is
kinder to those who start slowly; ``first batch`` runs from construction, imports not counted. Contestants run in turn,
``--rounds`` times. Memory is the process tree's peak (PSS) above what it was after the imports, in runs of their own:
once as fast as it goes, once with 50 ms of "training" a batch. CPU counts all processes, construction included.

out/bench/images.json has everything, out/bench/images.md a page with plots.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from _common import (
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
    write_report,
)
from _image_data import Photographs, photographs
from _image_page import tables, write_page
from _image_readers import BATCH, READERS, WORKERS, CannotRun
from _image_work import SIDE, TASKS

MODES = ("speed", "fast consumer", "slow consumer", "threads")
PARTS = ("speed", "memory", "scaling")
_WARM_UP = 8  # batches; fewer when there are few
_TRAINING_S = 0.05
_MOST_S = 15.0  # a slower contestant is stopped; its rate is known by then
_CHILD_TIMEOUT_S = 120
_PREPARE_TIMEOUT_S = 600
_ONE_THREAD_EACH = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_PACKAGES = (
    "torch",
    "pillow",
    "opencv-python-headless",
    "simplejpeg",
    "grain",
    "spdl-core",
    "nvidia-dali-cuda120",
    "webdataset",
    "mosaicml-streaming",
    "litdata",
    "ffcv",
    "mx8",
)


@dataclass(slots=True)
class Seen:
    """What came out so far: enough to notice a photograph that is missing or repeated."""

    images: int = 0
    labels: int = 0  # summed

    def add(self, images: Any, labels: Any, task: str) -> None:
        numbers = np.asarray(labels)
        self.images += len(numbers)
        self.labels += int(numbers.sum())
        if images is not None:
            _check(images, len(numbers), task)


def _check(images: Any, count: int, task: str) -> None:
    shapes = [(count, SIDE, SIDE, 3), (count, 3, SIDE, SIDE)] if task == "whole" else [(count, 3, SIDE, SIDE)]
    kind = "uint8" if task == "whole" else "float32"
    if tuple(images.shape) not in shapes or not str(images.dtype).endswith(kind):
        raise SystemExit(f"a batch is {images.dtype} {tuple(images.shape)}; {task} means {kind} of {shapes}")


def measure(name: str, task: str, mode: str, root: str) -> dict[str, Any]:
    """One epoch, in this process."""
    data = Photographs(Path(root))
    try:
        epoch = READERS[name].open(data, task)
    except CannotRun as reason:
        raise SystemExit(str(reason)) from None
    base_bytes, disk_before, cpu_before = pss_bytes(), _disk_bytes(), _tree_cpu_s()
    warm_up = min(_WARM_UP, len(data.paths) // (4 * BATCH))
    seen, warm_images, times, first_mean = Seen(), 0, [time.perf_counter()], 0.0
    threads_before, threads_after = _thread_cpu_ns(), {}
    for images, labels in epoch():
        seen.add(images, labels, task)
        times.append(time.perf_counter())
        if len(times) == 2 and images is not None:
            first_mean = float(np.asarray(images).mean(dtype=np.float64))  # without a copy, which memory would show
        if len(times) == warm_up + 1:
            warm_images, threads_before = seen.images, _thread_cpu_ns()
        if mode == "slow consumer":
            time.sleep(_TRAINING_S)
        if mode == "threads":
            threads_after = _thread_cpu_ns()
        if times[-1] - times[0] > _MOST_S:
            break
    ended = time.perf_counter()
    whole = Seen(len(data.labels), sum(data.labels))
    if seen != whole and ended - times[0] <= _MOST_S:
        raise SystemExit(f"saw {seen}, the folder holds {whole}")
    result = {
        "images_per_s": (seen.images - warm_images) / (times[-1] - times[warm_up]),
        "epoch_images_per_s": seen.images / (ended - times[0]),
        "first_batch_s": times[1] - times[0],
        "cpu_s_per_1000": (_tree_cpu_s() - cpu_before) / seen.images * 1000,
        "base_pss_bytes": base_bytes,
        "disk_bytes": _disk_bytes() - disk_before,
        "first_mean": first_mean,
    }
    if mode == "threads":
        result["python_share"] = _python_share(threads_before, threads_after)
    return result


def _disk_bytes() -> int:
    """Bytes that this process and its ended children had to fetch from a disk."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def _tree_cpu_s() -> float:
    """Processor time of this process, of its ended children, and of all that still run."""
    own = psutil.Process()
    total = 0.0
    for process in [own, *own.children(recursive=True)]:
        used = process.cpu_times()
        total += used.user + used.system + used.children_user + used.children_system
    return total


def _thread_cpu_ns() -> dict[int, int]:
    """Processor time by thread."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            found[int(task.name)] = int((task / "schedstat").read_text().split()[0])
        except OSError:
            continue  # it has just ended
    return found


def _python_share(before: dict[int, int], after: dict[int, int]) -> float:
    """Share of the processor time that went to threads that Python knows.

    They read the files, too, with the GIL released: what needs the GIL is less than this.
    """
    known = {thread.native_id for thread in threading.enumerate()}
    used = {thread: after[thread] - before.get(thread, 0) for thread in after}
    return sum(time_ns for thread, time_ns in used.items() if thread in known) / sum(used.values())


# -- the parent


def child(name: str, data: Photographs, *options: str) -> list[str]:
    return [sys.executable, __file__, "--measure", name, "--root", str(data.root), *options]


def prepare(names: Iterable[str], data: Photographs) -> dict[str, str]:
    """Bring the photographs into each contestant's format; returns why some can't."""
    reasons = {}
    for name in names:
        outcome = run_child(child(name, data, "--mode", "prepare"), timeout_s=_PREPARE_TIMEOUT_S)
        if outcome.result is None:
            reasons[name] = outcome.reason or "unknown"
    return reasons


def run_reader(name: str, *, task: str, mode: str, data: Photographs) -> Outcome:
    """Measure in a fresh process."""
    command = child(name, data, "--task", task, "--mode", mode)
    with kept_warm(files_below(data.root / READERS[name].reads)):
        return run_child(command, timeout_s=_CHILD_TIMEOUT_S, watch_memory="consumer" in mode)


def compare(
    task: str, names: list[str], data: Photographs, rounds: dict[str, int], reasons: dict[str, str]
) -> dict[str, Any]:
    """Measure the readers at one task; for each either what was found or the reason why not."""
    names = [name for name in names if READERS[name].kind != "floor" or task == "whole"]
    able = [name for name in names if name not in reasons]
    found: dict[str, dict[str, Any]] = {name: {"reason": reasons[name]} if name in reasons else {} for name in names}
    for mode, times in rounds.items():
        say(f"-- {task}: {mode}")
        outcomes = in_turn(able, times, functools.partial(run_reader, task=task, mode=mode, data=data))
        for name, runs in outcomes.items():
            _note(found[name], mode, runs)
        able = [name for name in able if "reason" not in found[name]]
    return found


def _note(entry: dict[str, Any], mode: str, outcomes: list[Outcome]) -> None:
    broken = next((outcome.reason for outcome in outcomes if outcome.result is None), None)
    if broken:
        entry["reason"] = broken
    elif mode == "speed":
        entry["runs"] = [outcome.result for outcome in outcomes]
        for key in ("images_per_s", "epoch_images_per_s", "first_batch_s", "cpu_s_per_1000"):
            entry[key] = Spread.of(run[key] for run in entry["runs"])
    else:
        (outcome,) = outcomes
        assert outcome.result is not None and outcome.peak_pss_bytes is not None
        entry[f"{mode} grown bytes"] = outcome.peak_pss_bytes - outcome.result["base_pss_bytes"]
        entry[f"{mode} images/s"] = outcome.result["images_per_s"]


def scaling(task: str, names: list[str], data: Photographs, rounds: int) -> dict[str, Any]:
    """Rates with one thread and with two, and how much of the time Python's threads took."""

    def run(key: str) -> Outcome:
        name, threads = key.rsplit(" ", 1)
        os.environ.update(BENCH_WORKERS=threads, PENSTOCK_DECODE_THREADS=threads)
        return run_reader(name, task=task, mode="threads", data=data)

    say(f"-- {task}: scaling")
    keys = [f"{name} {threads}" for name in names for threads in (1, 2)]
    outcomes = in_turn(keys, rounds, run)
    os.environ.update(BENCH_WORKERS="2", PENSTOCK_DECODE_THREADS="2")
    return {
        key: {
            measured: Spread.of(outcome.result[measured] for outcome in runs if outcome.result)
            for measured in ("images_per_s", "python_share")
        }
        for key, runs in outcomes.items()
        if all(outcome.result for outcome in runs)
    }


def arguments(argv: Iterable[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--readers", default=",".join(READERS), help="some of " + ", ".join(READERS))
    parser.add_argument("--tasks", default=",".join(TASKS), help="some of " + ", ".join(TASKS))
    parser.add_argument("--parts", default=",".join(PARTS), help="some of " + ", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="1,024 images, one round")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--mode", choices=(*MODES, "prepare"), help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    return parser.parse_args(list(argv))


def main() -> int:
    options = arguments(sys.argv[1:])
    if options.mode == "prepare":
        READERS[options.measure].prepare(Photographs(Path(options.root)))
        print("{}")
        return 0
    if options.measure:
        print(json.dumps(measure(options.measure, options.task, options.mode, options.root)))
        return 0
    os.environ.update(dict.fromkeys(_ONE_THREAD_EACH, "1"), PENSTOCK_DECODE_THREADS=str(WORKERS))
    images, rounds = (1024, 1) if options.quick else (options.images, options.rounds)
    data, names, tasks = photographs(images), options.readers.split(","), options.tasks.split(",")
    reasons = prepare(names, data)
    parts = options.parts.split(",")
    turns = {"speed": rounds} if "speed" in parts else {}
    turns |= {"fast consumer": 1, "slow consumer": 1} if "memory" in parts else {}
    reports = {task: compare(task, names, data, turns, reasons) for task in tasks}
    scaled = [name for name in names if READERS[name].kind != "peer" and name not in reasons]
    sizes = [path.stat().st_size for path in data.paths]
    document = {
        "command": shlex.join(["python", "bench/images.py", *sys.argv[1:]]),
        "environment": environment(*_PACKAGES),
        "dataset": {"images": len(sizes), "mean_bytes": sum(sizes) / len(sizes)},
        "rounds": rounds,
        "readers": {name: {"title": READERS[name].title, "kind": READERS[name].kind} for name in names},
        "reports": reports,
        "scaling": scaling(tasks[0], scaled, data, rounds) if "scaling" in parts else {},
    }
    path = write_report("images" if set(parts) == set(PARTS) else f"images-{'-'.join(parts)}", document)
    document = json.loads(path.read_text())  # the page is made from what was kept, and from nothing else
    print(f"\n{tables(document)}")
    print(environment_line(document["environment"]))
    say(f"\neverything: {path}; with plots: {write_page(document, path.stem)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
