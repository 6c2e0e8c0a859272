"""What all measurements share: fresh processes, warm files, turns, spreads, tables, and the line about the machine.

A contestant is measured in a process of its own that ends after one measurement, so that no one inherits another's
warm allocator or open files. Contestants run in turn (A B C, A B C, ...), so that what else the machine does hits
all alike. Memory is watched in runs whose times don't count, for watching takes time from who is watched.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import mmap
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
OUT = ROOT / "out" / "bench"
_READ_BYTES = 4 << 20
_WATCH_S = 0.02
_MAP_LOCKED = 0x2000  # of Linux; the module mmap doesn't name it


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some runs, and how far they lie apart."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = sorted(values)
        return cls(statistics.median(found), found[0], found[-1])

    def show(self, form: str = "{:,.0f}") -> str:
        median, low, high = (form.format(value) for value in (self.median, self.low, self.high))
        return f"{median} ({low}-{high})"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one process came to: the dict that it printed last, or the reason why there is none."""

    result: dict[str, Any] | None
    reason: str | None = None
    peak_pss_bytes: int | None = None  # of the process and all its children; None when nobody watched


def run_child(command: Sequence[str], *, timeout_s: float, watch_memory: bool = False) -> Outcome:
    """Run a command whose last line on stdout is a JSON object; it and its children are gone when this returns."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(command, stdout=out, stderr=err, cwd=ROOT, start_new_session=True)
        watch = _MemoryWatch(child.pid) if watch_memory else None
        try:
            code: int | None = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            peak_bytes = watch.stop() if watch else None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        printed, complaint = _text(out), _text(err)
    if code is None:
        return Outcome(None, f"took longer than {timeout_s:g} s", peak_bytes)
    if code != 0:
        return Outcome(None, _last_line(complaint) or f"exit code {code}", peak_bytes)
    return Outcome(json.loads(_last_line(printed)), None, peak_bytes)


def in_turn(names: Sequence[str], rounds: int, run: Callable[[str], Outcome]) -> dict[str, list[Outcome]]:
    """Run each contestant once a round; one that fails isn't asked again."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names:
            if outcomes[name] and outcomes[name][-1].result is None:
                continue
            say(f"round {turn + 1} of {rounds}: {name}")
            outcomes[name].append(run(name))
    return outcomes


def prewarm(paths: Iterable[Path]) -> int:
    """Read files so that the page cache holds them; returns their bytes."""
    buffer = bytearray(_READ_BYTES)
    total = 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total


@contextlib.contextmanager
def kept_warm(paths: Iterable[Path]) -> Iterator[None]:
    """Hold files in the page cache while the block runs; where that isn't allowed they are only read into it."""
    paths = list(paths)
    prewarm(paths)
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE | _MAP_LOCKED
    with contextlib.ExitStack() as locks:
        for path in paths:
            with contextlib.suppress(OSError, ValueError), path.open("rb") as file:  # no right to lock; an empty file
                locks.enter_context(mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ))
        yield


def drop_from_cache(paths: Iterable[Path]) -> None:
    """Write files out and let the page cache forget them."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def pss_bytes() -> int:
    """Memory of this process, shared pages counted in proportion."""
    return int(psutil.Process().memory_full_info().pss)


def environment(*packages: str) -> dict[str, str]:
    """The machine and the versions that a figure belongs to."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    facts = {
        "cpu": cpu.partition(":")[2].strip() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": _commit(),
    }
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts[package] = importlib.metadata.version(package)
    return facts


def environment_line(facts: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned: the first to the left, figures to the right."""
    widths = [max(len(row[column]) for row in [headers, *rows]) for column in range(len(headers))]
    lines = [_line(headers, widths), "|" + "|".join(_rule(column, width) for column, width in enumerate(widths)) + "|"]
    return "\n".join(lines + [_line(row, widths) for row in rows])


def write_report(name: str, document: dict[str, Any]) -> Path:
    """Keep a measurement's whole data as out/bench/<name>.json; dataclasses become objects."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{name}.json"
    path.write_text(json.dumps(document, indent=1, default=asdict) + "\n")
    return path


def say(text: str) -> None:
    """Progress, beside the figures."""
    print(text, file=sys.stderr, flush=True)


class _MemoryWatch:
    """Samples the memory of a process tree until it is stopped."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._peak_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> int:
        self._ended.set()
        self._thread.join()
        return self._peak_bytes

    def _run(self) -> None:
        while not self._ended.wait(_WATCH_S):
            total = 0
            with contextlib.suppress(psutil.Error):
                for process in [self._root, *self._root.children(recursive=True)]:
                    with contextlib.suppress(psutil.Error):
                        total += process.memory_full_info().pss
            self._peak_bytes = max(self._peak_bytes, total)


def _text(file: Any) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def _commit() -> str:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    return found.stdout.strip() or "unknown"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        f"{cell:<{width}}" if column == 0 else f"{cell:>{width}}"
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "| " + " | ".join(padded) + " |"


def _rule(column: int, width: int) -> str:
    return "-" * (width + 2) if column == 0 else "-" * (width + 1) + ":"


class Timer:
    """``with Timer() as timer: ...`` then ``timer.seconds``."""

    seconds = 0.0

    def __enter__(self) -> Timer:
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._started
