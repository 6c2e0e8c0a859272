"""Packing a folder of small files: Penstock against GNU tar, WebDataset's ShardWriter and the seed system.

Every contestant packs the same tree, which lies in the page cache, into an empty folder on the same disk. Penstock
flushes what it writes to the disk, checksums every sample and hashes the manifest; tar does none of it, so it runs
twice: as it is, and with its archive flushed to the disk. CPU is user and system time of the process and its
children; memory is the process tree's peak (PSS), watched in a run whose time doesn't count.

    python bench/pack.py --files 20000 --rounds 5
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import _common as common

_TIMEOUT_S = 900.0
_SHARD_BYTES = 512 << 20


def with_penstock(source: Path, out: Path) -> None:
    from penstock.packing import pack_dir

    pack_dir(source, out=out)


def with_tar(source: Path, out: Path) -> None:
    out.mkdir()
    subprocess.run(["tar", "-C", source, "--format=ustar", "-cf", out / "all.tar", "."], check=True)


def with_flushed_tar(source: Path, out: Path) -> None:
    with_tar(source, out)
    with open(out / "all.tar", "rb") as file:
        os.fsync(file.fileno())


def with_webdataset(source: Path, out: Path) -> None:
    import webdataset

    out.mkdir()
    files = sorted(path for folder in source.iterdir() for path in folder.iterdir())
    pattern = f"{out}/shard-%05d.tar"
    with webdataset.ShardWriter(pattern, maxsize=_SHARD_BYTES, maxcount=1 << 40, verbose=0) as writer:
        for index, path in enumerate(files):
            writer.write({"__key__": f"{index:020d}", "jpg": path.read_bytes()})


def with_mx8(source: Path, out: Path) -> None:
    import mx8

    mx8.pack_dir(str(source), out=str(out))


CONTESTANTS: dict[str, Callable[[Path, Path], None]] = {
    "penstock": with_penstock,
    "tar": with_tar,
    "tar, flushed": with_flushed_tar,
    "webdataset": with_webdataset,
    "mx8": with_mx8,
}
_PACKAGES = {"penstock": "penstock.packing", "webdataset": "webdataset", "mx8": "mx8"}


def make_tree(root: Path, files: int, least: int, most: int) -> int:
    """Write the files; returns their bytes."""
    dice = random.Random(0)
    noise = dice.randbytes(most)
    total = 0
    for index in range(files):
        folder = root / f"class-{index % 100:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        size = dice.randint(least, most)
        (folder / f"{index:08d}.jpg").write_bytes(noise[most - size :])
        total += size
    return total


def run_contestant(name: str, source: Path, out: Path) -> None:
    """What a child process does: pack once, and print what it took, without what importing a package takes."""
    importlib.import_module(_PACKAGES.get(name, "os"))
    before = os.times()
    with common.Timer() as timer:
        CONTESTANTS[name](source, out)
    after = os.times()
    print(json.dumps({"seconds": timer.seconds, "cpu_s": sum(after[:4]) - sum(before[:4])}))


def measure(source: Path, out: Path, rounds: int) -> dict[str, list[common.Outcome]]:
    missing = [name for name, package in _PACKAGES.items() if importlib.util.find_spec(package) is None]
    names = [name for name in CONTESTANTS if name not in missing]

    def run(name: str, *, watch_memory: bool = False) -> common.Outcome:
        shutil.rmtree(out, ignore_errors=True)
        os.sync()
        command = [sys.executable, __file__, "--contestant", name, "--work", str(source), str(out)]
        return common.run_child(command, timeout_s=_TIMEOUT_S, watch_memory=watch_memory)

    outcomes = common.in_turn(names, rounds, run)
    for name in names:
        outcomes[name].append(run(name, watch_memory=True))
    not_installed = common.Outcome(None, "isn't installed; make setup-bench")
    return outcomes | {name: [not_installed, not_installed] for name in missing}


def report(outcomes: dict[str, list[common.Outcome]], files: int, total_bytes: int) -> None:
    rows, documents = [], {}
    own = None
    for name, (*timed, watched) in outcomes.items():
        results = [outcome.result for outcome in timed if outcome.result]
        if len(results) < len(timed):
            rows.append([name, timed[-1].reason or "failed", *[""] * 5])
            continue
        seconds = common.Spread.of(result["seconds"] for result in results)
        cpu_s = statistics.median(result["cpu_s"] for result in results)
        own = seconds.median if own is None else own
        peak = (watched.peak_pss_bytes or 0) / 2**20
        rate, mb_s = files / seconds.median, total_bytes / seconds.median / 1e6
        ratio = f"{seconds.median / own:.2f}"
        rows.append(
            [name, seconds.show("{:.2f}"), ratio, f"{rate:,.0f}", f"{mb_s:,.0f}", f"{cpu_s:.2f}", f"{peak:.0f}"]
        )
        documents[name] = {"seconds": seconds, "cpu_s": cpu_s, "peak_mib": peak, "runs": results}
    facts = common.environment(*_PACKAGES)
    columns = ["packer", "seconds (low-high)", "against penstock", "files/s", "MB/s", "CPU s", "peak MiB"]
    print(f"{files:,} files, {total_bytes / 1e6:,.0f} MB; {common.environment_line(facts)}\n")
    print(common.table(columns, rows))
    common.write_report("pack", {"environment": facts, "files": files, "bytes": total_bytes, "packers": documents})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--least", type=int, default=4_000, help="bytes of the smallest file")
    parser.add_argument("--most", type=int, default=100_000, help="bytes of the largest file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="where to work: a folder on the disk to measure")
    parser.add_argument("--quick", action="store_true", help="2,000 files, one round")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        run_contestant(options.contestant, *options.work)
        return
    files, rounds = (2_000, 1) if options.quick else (options.files, options.rounds)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = Path(folder, "in")
        total_bytes = make_tree(source, files, options.least, options.most)
        common.prewarm(common.files_below(source))
        outcomes = measure(source, Path(folder, "out"), rounds)
        report(outcomes, files, total_bytes)


if __name__ == "__main__":
    main()
