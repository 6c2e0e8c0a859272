"""The cap, proved from outside: the kernel kills the process if it is a byte too large."""

from __future__ import annotations

import io
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


def run_in_cgroup(
    root: Path,
    how: str,
    *,
    cap: int = CAP,
    overhead: int = OVERHEAD,
    images: bool = False,
    transform: bool = False,
    **arguments,
) -> subprocess.CompletedProcess[str]:
    with memory_cgroup() as group:
        if group is None:
            pytest.skip("no memory cgroup can be made here (needs root, or a delegated memory controller)")
        options = {
            "how": how,
            "images": images,
            "transform": transform,
            "cap_bytes": cap,
            "overhead_bytes": overhead,
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


WORKER = 32 << 20  # what docs/transforms.md states for a worker's interpreter, and then some


@pytest.mark.parametrize(
    ("how", "overhead", "arguments"),
    [
        ("fast", OVERHEAD, {"transform_bytes": 1 << 20, "prefetch_batches": 2}),
        ("slow", OVERHEAD, {}),
        ("fast", OVERHEAD + 2 * WORKER, {"workers": "processes"}),
    ],
)
def test_results_of_transforms_count_as_well(datasets, how, overhead, arguments):
    root, count, _ = datasets
    sizes = {"batch_size_samples": 4, "max_batch_bytes": CAP // 2, "num_workers": 2}
    done = run_in_cgroup(root, how, overhead=overhead, transform=True, **sizes, **arguments)
    assert done.returncode == 0, f"exit {done.returncode} (-9 is the OOM killer)\n{done.stderr}"
    outcome = json.loads(done.stdout)
    assert (outcome["samples"], outcome["payload"]) == (count, count << 20)
    assert CAP // 2 <= outcome["high_water"] <= CAP


def test_keeping_every_batch_is_an_error_and_not_a_kill(datasets):
    root, _, _ = datasets
    done = run_in_cgroup(root, "keep", max_batch_bytes=CAP // 2)
    assert done.returncode == 0, f"exit {done.returncode} (-9 is the OOM killer)\n{done.stderr}"
    outcome = json.loads(done.stdout)
    assert "Let go of them before next()" in outcome["held"]
    assert outcome["high_water"] <= CAP


IMAGE_CAP = 32 << 20
IMAGE_COUNT = 640
SIDE = 224


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Pictures that take ten times the cap when they are decoded."""
    pytest.importorskip("torch")
    image = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("cap_images")
    random = np.random.default_rng(11)
    files = []
    for i in range(16):
        noise = random.normal(128, 40, (320 + 8 * i, 440 - 8 * i, 3)).clip(0, 255).astype(np.uint8)
        out = io.BytesIO()
        image.fromarray(noise).save(out, "JPEG", quality=60, progressive=i % 8 == 0)
        files.append(out.getvalue())
    for name, count in (("warm", 64), ("all", IMAGE_COUNT)):
        folder = root / "in" / name / "class"
        folder.mkdir(parents=True)
        for i in range(count):
            (folder / f"{i:04d}.jpg").write_bytes(files[i % len(files)])
        penstock.pack_dir(folder.parent, out=str(root / name), shard_mb=8, label_mode="imagefolder")
    return root


@pytest.mark.parametrize(
    ("how", "arguments"),
    [
        ("fast", {"batch_size_samples": 16, "prefetch_batches": 2, "dtype": "float32"}),
        ("slow", {"batch_size_samples": 16, "prefetch_batches": 4, "dtype": "float32"}),
    ],
)
def test_decoded_bytes_count_as_well(photographs, how, arguments):
    done = run_in_cgroup(
        photographs, how, cap=IMAGE_CAP, images=True, resize_hw=(SIDE, SIDE), shuffle=True, **arguments
    )
    assert done.returncode == 0, f"exit {done.returncode} (-9 is the OOM killer)\n{done.stderr}"
    outcome = json.loads(done.stdout)
    assert outcome["samples"] == IMAGE_COUNT
    assert outcome["payload"] == IMAGE_COUNT * 3 * SIDE * SIDE * 4 > 10 * IMAGE_CAP
    assert IMAGE_CAP // 3 <= outcome["high_water"] <= IMAGE_CAP


BLOCKS = {"kind": "block", "block_bytes": "200KB", "window_bytes": "1600KB"}


@pytest.mark.parametrize(
    ("how", "arguments"), [("fast", {"prefetch_batches": 4}), ("slow", {}), ("bursty", {"batch_size_samples": 1})]
)
def test_windows_of_a_block_shuffle_count_as_well(photographs, how, arguments):
    cap = 6 << 20  # two windows of 1.6 MB, two batches of 16, and what is read ahead
    arguments = {"batch_size_samples": 16, "sampler": BLOCKS} | arguments
    done = run_in_cgroup(photographs, how, cap=cap, **arguments)
    assert done.returncode == 0, f"exit {done.returncode} (-9 is the OOM killer)\n{done.stderr}"
    outcome = json.loads(done.stdout)
    assert outcome["samples"] == IMAGE_COUNT and outcome["payload"] > 4 * cap
    assert cap // 2 <= outcome["high_water"] <= cap


def test_images_out_of_windows_stay_within_the_cap(photographs):
    arguments = {"batch_size_samples": 16, "prefetch_batches": 2, "dtype": "float32", "sampler": BLOCKS}
    done = run_in_cgroup(photographs, "fast", cap=IMAGE_CAP, images=True, resize_hw=(SIDE, SIDE), **arguments)
    assert done.returncode == 0, f"exit {done.returncode} (-9 is the OOM killer)\n{done.stderr}"
    outcome = json.loads(done.stdout)
    assert outcome["samples"] == IMAGE_COUNT
    assert IMAGE_CAP // 3 <= outcome["high_water"] <= IMAGE_CAP
