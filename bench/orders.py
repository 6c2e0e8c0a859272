"""What an order costs: processor time of one sample id, by kind, evaluated 8,192 and 256 at a time.

    python bench/orders.py [--samples 10000000] [--rounds 200]

Medians of the rounds, in nanoseconds; the kinds take turns, so that what else the machine does hits them alike.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

import _common as common
from penstock.dataset.joined import Source
from penstock.order.draws import AliasTable, Weighted, WithReplacement
from penstock.order.interleave import Interleave
from penstock.order.mixed import Mixed, Recipe, Segment
from penstock.order.order import Order, Sequential, Shuffled

KEY = {"manifest_hash": "bench", "seed": 1, "epoch": 2}


def mixed(source_count: int, samples: int) -> Mixed:
    size = samples // source_count
    sources = [Source(str(at), at * size, size, str(at), "") for at in range(source_count)]
    recipe = Recipe(tuple(map(str, range(source_count))), (Segment(0, (1,) * source_count),), 1, "first", "random")

    def visit(source: Source, _: int) -> Order:
        return Shuffled(source.first_id, source.count, **KEY)

    return Mixed(sources, recipe, visit, key="bench")


def median_ns(order: Order, count: int, rounds: int) -> float:
    taken = []
    for at in range(rounds):
        positions = np.arange(at * count, (at + 1) * count) % order.count
        started = time.process_time_ns()
        order.at(positions)
        taken.append((time.process_time_ns() - started) / count)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10**7)
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    samples = arguments.samples
    started = time.process_time()
    table = AliasTable(np.random.default_rng(0).random(samples))
    table_s = time.process_time() - started
    orders: dict[str, Order] = {
        "sequential": Sequential(0, samples),
        "a permutation": Shuffled(0, samples, **KEY),
        "with replacement": WithReplacement(0, samples, **KEY),
        "weighted": Weighted(0, table, **KEY),
        **{f"a mixture of {count}, shuffled": mixed(count, samples) for count in (2, 4, 8, 100)},
    }
    facts = common.environment("numpy")
    print(common.environment_line(facts))
    found = {
        name: [median_ns(order, together, arguments.rounds) for together in (8192, 256)]
        for name, order in orders.items()
    }
    lines = [[name, *(f"{value:.0f}" for value in values)] for name, values in found.items()]
    print(common.table(["ns a sample id", "8,192 together", "256 together"], lines))
    print(f"the table of {samples:,} weights: {table_s:.2f} s")
    for count in (2, 8, 100):
        print(f"counts of {count} equal sources stray by at most {Interleave([1] * count, '').most_error.max():.2f}")
    common.write_report("orders", {"environment": facts, "samples": samples, "table_s": table_s, "results": found})


if __name__ == "__main__":
    main()
