"""Which way to read: pread, preadv, io_uring, mmap and Penstock's own, on files in the page cache and on cold ones.

    .venv/bin/python bench/read_methods.py [--samples 100000] [--rounds 5] [--cold-samples 20000]

The samples, shards and order are those of bench/load.py. Each measurement is one process of bench/read_methods.cpp,
which g++ builds first; contestants run in turn, the table has medians and lowest. Wall-clock and processor time are
per sample. Cold means that the page cache was told to forget the shards; what a hypervisor below keeps, it keeps.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from _common import (
    OUT,
    ROOT,
    Outcome,
    Spread,
    drop_from_cache,
    environment,
    environment_line,
    in_turn,
    kept_warm,
    run_child,
    say,
    table,
    write_report,
)
from _load_data import Dataset, dataset

_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class Way:
    """Arguments of the program; see there."""

    method: str
    depth: int = 1
    dest: str = "memfd"
    advice: str = "none"
    check: bool = False


CACHED = {
    "pread per sample, one place for all": Way("pread", dest="same"),
    "pread per sample": Way("pread"),
    "preadv": Way("preadv"),
    "preadv, huge pages (memfd)": Way("preadv", dest="memfd-huge"),
    "preadv, huge pages (anonymous)": Way("preadv", dest="anon-huge"),
    "preadv, willneed": Way("preadv", advice="willneed"),
    "preadv, crc32c": Way("preadv", check=True),
    "preadv, 2 threads": Way("preadv", 2),
    "preadv, 2 threads, crc32c": Way("preadv", 2, check=True),
    "preadv, scratch, streaming stores, crc32c": Way("scratch", check=True),
    "mmap and copy": Way("mmap"),
    "io_uring, depth 1": Way("uring", 1),
    "io_uring, depth 8": Way("uring", 8),
    "io_uring, depth 64": Way("uring", 64),
    "Penstock, 1 thread (crc32c)": Way("core"),
    "Penstock, 2 threads (crc32c)": Way("core", 2),
}
COLD = {
    "pread per sample": Way("pread"),
    "preadv": Way("preadv"),
    "preadv, willneed": Way("preadv", advice="willneed"),
    "preadv, random": Way("preadv", advice="random"),
    "preadv, sequential": Way("preadv", advice="sequential"),
    "preadv, 4 threads": Way("preadv", 4),
    "preadv, 16 threads": Way("preadv", 16),
    "mmap and copy": Way("mmap"),
    "mmap and copy, willneed": Way("mmap", advice="willneed"),
    "io_uring, depth 1": Way("uring", 1),
    "io_uring, depth 8": Way("uring", 8),
    "io_uring, depth 64": Way("uring", 64),
    "Penstock, 1 thread (crc32c)": Way("core"),
    "Penstock, 2 threads (crc32c)": Way("core", 2),
}


def build() -> Path:
    program = OUT / "read_methods"
    sources = [ROOT / "bench/read_methods.cpp", ROOT / "core/crc.cpp", ROOT / "core/gather.cpp"]
    options = ["-std=c++20", "-O3", "-Wall", "-Wextra", "-pthread", "-I", str(ROOT / "core")]
    subprocess.run(["g++", *options, *map(str, sources), "-o", str(program)], check=True)
    return program


def write_places(data: Dataset, samples: int, *, shuffled: bool) -> Path:
    """Where the samples lie, and their checksums, in the order of delivery."""
    index = data.index()
    rows = (data.packed / "_mx8" / "manifest.tsv").read_text().splitlines()[1:]
    crcs = np.array([int(row.split("\t")[5], 16) for row in rows], dtype=np.int64)
    places = np.stack([index.shard, index.offset, index.length, crcs], axis=1)
    if shuffled:
        places = np.random.default_rng(0).permutation(places)
    path = data.folder / f"places-{samples}-{'shuffled' if shuffled else 'in-order'}.bin"
    np.ascontiguousarray(places[:samples]).tofile(path)
    return path


def compare(ways: dict[str, Way], program: Path, places: Path, shards: list[Path], rounds: int, *, cold: bool) -> str:
    """Measure all ways in turn; a table of microseconds per sample."""

    def run(name: str) -> Outcome:
        if cold:
            drop_from_cache(shards)
        way = ways[name]
        words = [way.method, way.depth, way.dest, way.advice, int(way.check), places, *shards]
        return run_child([str(program), *map(str, words)], timeout_s=_TIMEOUT_S)

    outcomes = in_turn(list(ways), rounds, run)
    rows, reasons = [], []
    for name, found in outcomes.items():
        results = [outcome.result for outcome in found if outcome.result is not None]
        reasons += [f"- {name}: {outcome.reason}" for outcome in found if outcome.result is None]
        if results:
            spreads = [
                Spread.of(result[key] / result["samples"] * 1e6 for result in results)
                for key in ("seconds", "processor_s")
            ]
            rows.append([name, *(spread.show("{:.2f}") for spread in spreads)])
    return "\n".join([table(["", "us/sample", "processor us/sample"], rows), *reasons])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--cold-samples", type=int, default=20_000, help="of these")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", default="cached,cold")
    parser.add_argument("--quick", action="store_true", help="20,000 samples, one round")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    samples, rounds = (20_000, 1) if options.quick else (options.samples, options.rounds)
    data, program = dataset(samples), build()
    facts = environment()
    tables = {}
    for part in options.parts.split(","):
        count = samples if part == "cached" else min(samples, options.cold_samples)
        for shuffled in (False, True):
            title = f"{part}, {'shuffled' if shuffled else 'in order'}"
            say(f"-- {title}")
            places = write_places(data, count, shuffled=shuffled)
            ways, cold = (CACHED, False) if part == "cached" else (COLD, True)
            with contextlib.nullcontext() if cold else kept_warm(data.shards):
                tables[title] = compare(ways, program, places, data.shards, rounds, cold=cold)
            places.unlink()
    command = shlex.join(["python", "bench/read_methods.py", *sys.argv[1:]])
    print(f"\n{command}, median (lowest-highest) of {rounds}\n{environment_line(facts)}")
    for title, text in tables.items():
        print(f"\n{title}\n\n{text}")
    path = write_report("read_methods", {"command": command, "environment": facts, "tables": tables})
    say(f"\neverything: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
