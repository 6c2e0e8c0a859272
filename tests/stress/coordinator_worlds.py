"""Run many simulated jobs in which everything goes wrong, and say what did.

    python -m tests.stress.coordinator_worlds [--worlds 10000] [--first 0] [--processes 2]

A world follows from its seed (see ``coordinator_world``). A failure names the seed: run it alone with
``--first SEED --worlds 1``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter

from tests.stress.coordinator_world import Unfair, run_world


def try_world(seed: int) -> Counter[str] | str:
    try:
        return run_world(seed)
    except Unfair as error:
        return str(error)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    started, counts, failures = time.perf_counter(), Counter[str](), 0
    seeds = range(arguments.first, arguments.first + arguments.worlds)
    with multiprocessing.Pool(arguments.processes) as pool:
        for outcome in pool.imap(try_world, seeds, chunksize=50):
            if isinstance(outcome, str):
                failures += 1
                print(outcome)
            else:
                counts += outcome
    print(f"{arguments.worlds} worlds in {time.perf_counter() - started:.0f} s, {failures} failed")
    print(", ".join(f"{count:,} {kind}" for kind, count in counts.most_common()))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
