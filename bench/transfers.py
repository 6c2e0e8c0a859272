"""Memory transfers between two processes: Penstock against NIXL and others, and against plain copies.

Every contestant is a pair of fresh processes that end after one round; contestants take turns (A B C, A B C, ...). All
move the same bytes between the same places. What arrived is compared with what was sent, gaps between rows as well, and
a round in which it differs counts as failed. A latency is one call after another, from before a transfer is posted
until it is known to be done; a figure is the median of the rounds' medians (p50), with the lowest and highest.

    .venv/bin/python bench/transfers.py --rounds 5
    .venv/bin/python bench/transfers.py --only penstock nixl --groups latency scatter

The groups: latency (8 B), notify, scatter (rows with gaps), bulk (one row), register, network (TCP between two network
namespaces that a veth joins; needs root).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import _common as common
from _transfers import networks, pair, quiet, report
from _transfers.contestants import CONTESTANTS, NETWORK, SAME_HOST

_TIMEOUT_S = 300.0
_PERFTEST = "ucx_perftest"
_TESTS = (
    ("ucp_put_lat", "write {}", 1),  # one at a time, there and back; half of it is told
    ("ucp_put_bw", "write {}, 4 at once", 4),  # as many at once as fit
    ("ucp_get", "read {}", 1),
    ("ucp_get", "read {}, 4 at once", 4),
)
_SIZES = {1 << 20: 1_000, 16 << 20: 60}  # of ucx_perftest, and how often


def measure(
    options: argparse.Namespace, names: Sequence[str], groups: Sequence[str]
) -> dict[str, list[common.Outcome]]:
    """Rounds of the contestants on one host."""

    def run(name: str) -> common.Outcome:
        wanted = [group for group in CONTESTANTS[name].groups if group in groups and group in SAME_HOST]
        if not wanted:
            return common.Outcome({"items": {}, "transport": "", "clock_ns": 0.0})
        command = _command(name, wanted, options)
        return _quietest(options, partial(common.run_child, command, timeout_s=_TIMEOUT_S))

    return common.in_turn(names, options.rounds, run)


def measure_network(options: argparse.Namespace, names: Sequence[str]) -> dict[str, list[common.Outcome]]:
    """Rounds between two network namespaces, UCX's own benchmark among them."""
    names = [name for name in names if set(NETWORK) & set(CONTESTANTS[name].groups)]
    with networks.two_hosts(os.getpid() % 200 + 1) as (here, there):

        def run(name: str) -> common.Outcome:
            if name == _PERFTEST:
                return _quietest(options, partial(_perftest, here, there, options.quick))
            ends = ["--address", here.address, "--target-address", there.address]
            ends += ["--target-prefix", " ".join(there.prefix)]
            command = [*here.prefix, *_command(name, NETWORK, options), *ends]
            return _quietest(options, partial(common.run_child, command, timeout_s=_TIMEOUT_S))

        return common.in_turn([*names, _PERFTEST], options.rounds, run)


def _quietest(options: argparse.Namespace, run: Callable[[], common.Outcome]) -> common.Outcome:
    return quiet.quietest(run, options.tries, options.other_cores)


def _perftest(here: networks.Place, there: networks.Place, quick: bool) -> common.Outcome:
    items: dict[str, Any] = {}
    try:
        for nbytes, count in _SIZES.items():
            for test, item, at_once in _TESTS:
                spent_us = networks.perftest(test, nbytes, here, there, count // 10 if quick else count)
                name = item.format(f"{nbytes >> 20} MB")
                items[name] = {"p50_us": spent_us * at_once, "bytes": nbytes * at_once}
    except (OSError, RuntimeError) as error:
        return common.Outcome(None, str(error))
    return common.Outcome({"items": items, "transport": "UCX_TLS=tcp,self", "clock_ns": 0.0})


def _command(name: str, groups: Sequence[str], options: argparse.Namespace) -> list[str]:
    pinned = options.pin and CONTESTANTS[name].pinned and groups != NETWORK
    budget = ["--budget-s", str(options.budget_s), *(["--pin"] if pinned else [])]
    return [
        sys.executable,
        __file__,
        "--contestant",
        name,
        "--side",
        "initiator",
        "--groups",
        ",".join(groups),
        *budget,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget-s", type=float, default=0.4, help="how long one figure of a round is measured")
    parser.add_argument("--tries", type=int, default=1, help="repeat a run with much other work, at most so often")
    parser.add_argument("--other-cores", type=float, default=0.2, help="so much other work is borne")
    parser.add_argument("--pin", action="store_true", help="one core for each end of those that have no busy threads")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="these contestants")
    parser.add_argument("--groups", default=",".join(SAME_HOST + NETWORK), help="such as latency,bulk")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--json", type=Path, default=None, help="also keep the whole data in this file")
    for name in ("--contestant", "--side", "--address", "--target-address"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--target-prefix", default="", help=argparse.SUPPRESS)
    parser.add_argument("--link", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        (pair.initiate if options.side == "initiator" else pair.attend)(options)
    if options.quick:
        options.rounds, options.budget_s = 1, 0.05
    groups = options.groups.split(",")
    load_before = os.getloadavg()[0]
    outcomes = measure(options, options.only, groups) if set(groups) & set(SAME_HOST) else {}
    network, reason = {}, ""
    if set(groups) & set(NETWORK):
        try:
            network = measure_network(options, options.only)
        except (OSError, RuntimeError) as error:
            reason = str(error)
    loads = (load_before, os.getloadavg()[0])
    report.show(outcomes, network, reason, loads=loads, command=sys.argv, keep=options.json)


if __name__ == "__main__":
    main()
