"""Going on in the middle of a long epoch: how long until the first batch, wherever the state was taken.

    python bench/resume.py [--rows 10000000] [--rounds 5] [--folder DIR]

Makes a dataset of ``rows`` samples of 100 bytes whose shards are holes, and so take no room; its manifest is real
(about 50 bytes a row, and as much again for its columns). For a shuffled epoch it measures, at 1 %, 50 % and 99 %:
``load_state_dict`` on a loader that is there, until its first batch; the same for a loader that begins at the
beginning; making a loader from nothing, with and without a state. The latter read and hash the manifest's text, which
takes as long whether there is a state or not. ``order`` is the cost of one id, evaluated 8,192 at a time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import _common as common
import penstock
from penstock._core import crc32c
from penstock.dataset.manifest_store import ManifestStore
from penstock.dataset.manifest_text import ManifestWriter
from penstock.order.order import Shuffled
from penstock.store import open_store

SHARD_SAMPLES = 100_000
SAMPLE_BYTES = 100
BATCH = 256
SHARES = (0.01, 0.5, 0.99)


def make_dataset(folder: Path, rows: int) -> str:
    """The dataset's link; ``folder / "store"`` is where its manifest lies."""
    base, text = folder / "data", folder / "text"
    (base / "shards").mkdir(parents=True)
    zeros = crc32c(bytes(SAMPLE_BYTES))
    with open(text, "wb") as file:
        writer = ManifestWriter(file)
        for start in range(0, rows, SHARD_SAMPLES):
            count = min(SHARD_SAMPLES, rows - start)
            name = f"shards/shard-{start // SHARD_SAMPLES:05d}.tar"
            with open(base / name, "wb") as shard:
                shard.truncate(count * 1024)
            offsets = 512 + 1024 * np.arange(count)
            writer.add(name, offsets, np.full(count, SAMPLE_BYTES), "", np.full(count, zeros))
        manifest_hash = writer.finish()
    with open(text, "rb") as file:
        ManifestStore(open_store(str(folder / "store"))).put(manifest_hash, file)
    text.unlink()
    return f"{base}@sha256:{manifest_hash}"


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def state_at(state: dict[str, Any], share: float, rows: int) -> dict[str, Any]:
    steps = int(share * rows) // BATCH
    done = [[0, steps * BATCH]] if steps else []
    return {**state, "done": done, "begun_with": [], "taken": steps}


def measure(link: str, store: str, rows: int, rounds: int) -> dict[str, list[float]]:
    def load(**arguments: Any) -> penstock.DataLoader:
        return penstock.load(link, manifest_store_root=store, shuffle=True, batch_size_samples=BATCH, **arguments)

    def first_batch(**arguments: Any) -> None:
        with load(**arguments) as loader:
            next(loader)

    first_batch()  # makes the columns, once
    found: dict[str, list[float]] = {}
    with load() as loader:
        blank = loader.state_dict()
        for _ in range(rounds):
            found.setdefault("new loader, at the beginning", []).append(seconds(first_batch))
            for share in SHARES:
                state = state_at(blank, share, rows)
                again = found.setdefault(f"new loader, state at {share:.0%}", [])
                again.append(seconds(lambda state=state: first_batch(resume=state)))
            for share in (0.0, *SHARES):
                loader.set_epoch(0)
                state = state_at(blank, share, rows)
                again = found.setdefault(f"load_state_dict, state at {share:.0%}", [])
                again.append(seconds(lambda state=state: (loader.load_state_dict(state), next(loader))))
    return found


def order_us(rows: int, rounds: int) -> list[float]:
    order = Shuffled(0, rows, manifest_hash="0" * 64, seed=0, epoch=0)
    starts = np.linspace(0, rows - 8192, 100).astype(np.int64)
    window = np.arange(8192)

    def evaluate() -> None:
        for start in starts:
            order.at(start + window)

    return [1e6 * seconds(evaluate) / (len(starts) * 8192) for _ in range(rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where dataset and columns go; 100 bytes for each row")
    parser.add_argument("--quick", action="store_true", help="100,000 rows, one round")
    arguments = parser.parse_args()
    rows, rounds = (100_000, 1) if arguments.quick else (arguments.rows, arguments.rounds)
    facts = common.environment("numpy", "pyarrow")
    print(common.environment_line(facts))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        os.environ["PENSTOCK_CACHE_DIR"] = f"{name}/cache"
        started = time.perf_counter()
        link = make_dataset(Path(name), rows)
        common.say(f"made {rows:,} rows in {time.perf_counter() - started:.0f} s")
        found = measure(link, f"{name}/store", rows, rounds)
    found["order, us an id"] = order_us(rows, rounds)
    lines = [
        [what, f"{statistics.median(took):.3f}", f"{min(took):.3f}-{max(took):.3f}"] for what, took in found.items()
    ]
    print(common.table(["what", "median (s)", "spread"], lines))
    common.write_report("resume", {"environment": facts, "rows": rows, "results": found})


if __name__ == "__main__":
    main()
