"""The cap, proved from outside: the kernel kills the process if it is a byte too large."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.cgroup import memory_cgroup

import penstock

CAP = 24 << 20
OVERHEAD = 4 << 20  # what docs/memory_contract.md states for one loader of local shards
SAMPLES_BYTES = 10 * CAP

pytestmark = pytest.mark.cgroup


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """A dataset of ten times the cap with samples from 1 byte to half the cap, and a small one to warm up with."""
    root = tmp_path_factory.mktemp("cap")
    random = np.random.default_rng(7)
    sizes = [1, CAP // 2, *np.exp(random.uniform(0, np.log(CAP // 2), 4000)).astype(int).tolist()]
    total = count = 0
    for name, limit in (("warm", CAP), ("all", SAMPLES_BYTES)):
        folder = root / "in" / name
        folder.mkdir(parents=True)
        total = count = 0
        while total < limit:
            size = sizes[count % len(sizes)]
            (folder / f"{count:06d}.bin").write_bytes(random.bytes(size))
            total += size
            count += 1
        penstock.pack_dir(folder, out=str(root / name), shard_mb=64, label_mode="none")
    return root, count, total


def run_in_cgroup(root: Path, how: str, **arguments) -> subprocess.CompletedProcess[str]:
    with memory_cgroup() as group:
        if group is None:
            pytest.skip("no memory cgroup can be made here (needs root, or a delegated memory controller)")
        options = {
            "how": how,
            "cap_bytes": CAP,
            "overhead_bytes": OVERHEAD,
            "link": f"{root}/all",
            "warm_link": f"{root}/warm",
            "stat_file": str(group.stat_file),
            "limit_file": str(group.limit_file),
            "arguments": {"manifest_store_root": f"{root}/store", **arguments},
        }
        join = f'echo $$ > {group.procs_file} && exec "$0" "$@"'
        return subprocess.run(
            ["/bin/sh", "-c", join, sys.executable, "-m", "tests.stress.consume", json.dumps(options)],
            capture_output=True,
            text=True,
            timeout=170,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PENSTOCK_CACHE_DIR": f"{root}/cache"},
        )


@pytest.mark.parametrize(
    ("how", "arguments"),
    [
        ("fast", {"max_batch_bytes": CAP // 2}),
        ("slow", {"max_batch_bytes": CAP // 2, "prefetch_batches": 4}),
        ("bursty", {"batch_size_samples": 8, "max_batch_bytes": CAP // 2, "prefetch_batches": 8}),
        ("fast", {"batch_size_samples": 1, "shuffle": True, "max_queue_batches": 512}),
    ],
)
def test_an_epoch_of_ten_times_the_cap_finishes(datasets, how, arguments):
    root, count, total = datasets
    done = run_in_cgroup(root, how, **arguments)
    assert done.returncode == 0, f"exit {done.returncode} (-9 is the OOM killer)\n{done.stderr}"
    outcome = json.loads(done.stdout)
    assert (outcome["samples"], outcome["payload"]) == (count, total)
    assert CAP // 2 <= outcome["high_water"] <= CAP


def test_keeping_every_batch_is_an_error_and_not_a_kill(datasets):
    root, _, _ = datasets
    done = run_in_cgroup(root, "keep", max_batch_bytes=CAP // 2)
    assert done.returncode == 0, f"exit {done.returncode} (-9 is the OOM killer)\n{done.stderr}"
    outcome = json.loads(done.stdout)
    assert "Let go of them before next()" in outcome["held"]
    assert outcome["high_water"] <= CAP
