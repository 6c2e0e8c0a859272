"""Byte loading: packed shards against plain reads, WebDataset, MosaicML Streaming and mx8.

    make setup-bench && .venv/bin/python bench/load.py [--samples 100000] [--rounds 3] [--readers penstock,pread]

100,000 samples of 4 to 100 KiB (2 GB), in order and shuffled, batches of 512, nothing decoded. Each measurement is one
process that goes through one epoch, construction included and imports not, and touches every sample; that it saw all
of them whole is checked. The files are held in the page cache meanwhile. Contestants run in turn, ``--rounds``
times; the table has the median and the lowest and highest, out/bench/load.json everything.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import shlex
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
    table,
    write_report,
)
from _load_data import Dataset, Seen, dataset
from _load_readers import READERS

MODES = ("in order", "shuffled")
_CHILD_TIMEOUT_S = 300
_WARM_SHARE = 0.99  # of the data must have come from the page cache
_WARM_TRIES = 3
_SPREAD = ("samples_per_s", "bytes_per_s", "cpu_us_per_sample", "first_batch_s")
_COLUMNS = (
    "samples/s",
    "GB/s",
    "CPU us/sample",
    "first batch s",
    "peak MB (over imports)",
    "x fastest peer",
    "x pread",
)


def measure(name: str, mode: str, folder: str) -> dict[str, Any]:
    """One epoch, in this process."""
    data = Dataset(Path(folder))
    epoch = READERS[name].open(data, mode == "shuffled")
    before_bytes, read_before, cpu_before = pss_bytes(), _disk_bytes(), _cpu_s()
    seen, first_s = Seen(), 0.0
    started = time.perf_counter()
    for batch in epoch():
        first_s = first_s or time.perf_counter() - started
        seen += batch
    seconds = time.perf_counter() - started
    cpu_s = _cpu_s() - cpu_before
    whole = data.whole
    if seen != whole:
        raise SystemExit(f"saw {seen}, the dataset is {whole}")
    return {
        "seconds": seconds,
        "first_batch_s": first_s,
        "samples_per_s": whole.samples / seconds,
        "bytes_per_s": whole.bytes / seconds,
        "cpu_us_per_sample": cpu_s / whole.samples * 1e6,
        "pss_after_imports_bytes": before_bytes,
        "warm": _disk_bytes() - read_before <= (1 - _WARM_SHARE) * whole.bytes,
    }


def _disk_bytes() -> int:
    """Bytes that this process and its ended children had to fetch from a disk."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def _cpu_s() -> float:
    """Processor time of this process and its ended children."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def run_reader(name: str, mode: str, data: Dataset, *, watch_memory: bool) -> Outcome:
    """Measure in a fresh process; again when something drove the files out of the page cache meanwhile."""
    command = [sys.executable, __file__, "--measure", name, "--mode", mode, "--folder", str(data.folder)]
    for _ in range(_WARM_TRIES):
        with kept_warm(files_below(data.mds if name.startswith("streaming") else data.packed)):
            outcome = run_child(command, timeout_s=_CHILD_TIMEOUT_S, watch_memory=watch_memory)
        if outcome.result is None or outcome.result["warm"]:
            break
    return outcome


def compare(mode: str, names: list[str], data: Dataset, rounds: int) -> dict[str, dict[str, Any]]:
    """Measure the readers in one mode; for each either spreads or the reason why not."""
    able = [name for name in names if READERS[name].shuffles or mode == MODES[0]]
    report: dict[str, dict[str, Any]] = {
        name: {"reason": "has no shuffled mode" if READERS[name].kind == "peer" else ""} for name in names
    }
    say(f"-- {mode}: memory")
    watched = in_turn(able, 1, functools.partial(run_reader, mode=mode, data=data, watch_memory=True))
    say(f"-- {mode}: time")
    fit = [name for name in able if watched[name][0].result is not None]
    timed = in_turn(fit, rounds, functools.partial(run_reader, mode=mode, data=data, watch_memory=False))
    for name in able:
        outcomes = [*watched[name], *timed.get(name, [])]
        broken = next((outcome.reason for outcome in outcomes if outcome.result is None), None)
        report[name] = {"reason": broken} if broken else summary(watched[name][0], timed[name])
    return report


def summary(watched: Outcome, timed: list[Outcome]) -> dict[str, Any]:
    runs = [outcome.result for outcome in timed if outcome.result is not None]
    assert watched.result is not None and watched.peak_pss_bytes is not None
    spreads = {
        key: Spread.of(run[key] for run in runs)
        for key in ("samples_per_s", "bytes_per_s", "cpu_us_per_sample", "first_batch_s")
    }
    return {
        **spreads,
        "peak_pss_bytes": watched.peak_pss_bytes,
        "grown_pss_bytes": watched.peak_pss_bytes - watched.result["pss_after_imports_bytes"],
        "warm": all(run["warm"] for run in runs),
        "runs": runs,
    }


def rate(report: dict[str, dict[str, Any]], name: str) -> float | None:
    return report[name]["samples_per_s"].median if "runs" in report.get(name, {}) else None


def show(mode: str, report: dict[str, dict[str, Any]]) -> str:
    peers = [value for name in report if READERS[name].kind == "peer" and (value := rate(report, name))]
    fastest_peer, plain = max(peers, default=None), rate(report, "pread")
    rows = []
    for name, found in report.items():
        if "runs" not in found:
            continue
        own = found["samples_per_s"]
        rows.append(
            [
                READERS[name].title,
                own.show(),
                f"{found['bytes_per_s'].median / 1e9:.2f}",
                f"{found['cpu_us_per_sample'].median:.1f}",
                f"{found['first_batch_s'].median:.3f}",
                f"{found['peak_pss_bytes'] / 1e6:,.0f} (+{found['grown_pss_bytes'] / 1e6:,.0f})",
                _times(own.median, fastest_peer),
                _times(own.median, plain),
            ]
        )
    headers = [
        mode,
        "samples/s",
        "GB/s",
        "CPU us/sample",
        "first batch s",
        "peak MB (over imports)",
        "x fastest peer",
        "x pread",
    ]
    lines = [table(headers, rows)]
    lines += [f"- {READERS[name].title}: {found['reason']}" for name, found in report.items() if found.get("reason")]
    lines += [
        f"- {READERS[name].title}: part of the data came from the disk, don't rely on its figures"
        for name, found in report.items()
        if not found.get("warm", True)
    ]
    return "\n".join(lines)


def _times(value: float, other: float | None) -> str:
    return f"{value / other:.2f}" if other else "-"


def arguments(argv: Iterable[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--readers", default=",".join(READERS), help="some of " + ", ".join(READERS))
    parser.add_argument("--quick", action="store_true", help="20,000 samples, one round")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args(list(argv))


def main() -> int:
    options = arguments(sys.argv[1:])
    if options.measure:
        print(json.dumps(measure(options.measure, options.mode, options.folder)))
        return 0
    samples, rounds = (20_000, 1) if options.quick else (options.samples, options.rounds)
    data = dataset(samples)
    names = options.readers.split(",")
    facts = environment("numpy", "torch", "webdataset", "mosaicml-streaming", "mx8")
    command = shlex.join(["python", "bench/load.py", *sys.argv[1:]])
    reports = {mode: compare(mode, names, data, rounds) for mode in MODES}
    whole = data.whole
    print(f"\n{whole.samples:,} samples, {whole.bytes / 1e9:.2f} GB, median (lowest-highest) of {rounds}: {command}")
    print(environment_line(facts))
    for mode, report in reports.items():
        print(f"\n{show(mode, report)}")
    path = write_report("load", {"command": command, "environment": facts, "dataset": whole, "reports": reports})
    say(f"\neverything: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
