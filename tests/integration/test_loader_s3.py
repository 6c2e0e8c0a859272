"""Loading from a real S3 server, well and badly behaved."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import penstock
from penstock.errors import AccessDenied, ClosedError, ObjectNotFound, ShardCorrupt, StoreUnavailable
from penstock.store import open_store
from penstock.testing.fault_proxy import Fault

pytestmark = pytest.mark.s3


@pytest.fixture
def contents(tmp_path) -> list[bytes]:
    random = np.random.default_rng(5)
    files = [random.bytes(int(random.integers(1, 40_000))) for _ in range(120)]
    for index, data in enumerate(files):
        path = tmp_path / "in" / f"class{index % 3}" / f"{index:03d}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    order = sorted(range(120), key=lambda index: (index % 3, index))
    return [files[index] for index in order]


@pytest.fixture
def packed(tmp_path, contents, s3_root) -> str:
    penstock.pack(str(tmp_path / "in"), out=f"{s3_root}/train", shard_mb=1)
    return f"{s3_root}/train"


@pytest.fixture
def load(tmp_path):
    loaders = []

    def make(link, **arguments):
        loaders.append(penstock.load(link, manifest_store_root=str(tmp_path / "store"), **arguments))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


def samples_of(loader) -> list[bytes]:
    return [bytes(sample) for batch in loader for sample in batch]


@pytest.mark.parametrize("arguments", [{}, {"prefetch_batches": 4, "batch_size_samples": 9}])
def test_packed_shards_load_in_order(load, packed, contents, arguments):
    loader = load(packed, **arguments)
    assert samples_of(loader) == contents
    assert loader.stats()["ram_high_water_bytes"] <= loader.stats()["max_inflight_bytes"]


def test_shuffled_shards_load_whole(load, packed, contents):
    found = {}
    for batch in load(packed, batch_size_samples=16, shuffle=True, seed=3, prefetch_batches=2):
        found |= {i: bytes(sample) for i, sample in zip(batch.sample_ids, batch, strict=True)}
    assert [found[i] for i in range(len(contents))] == contents


def test_a_listed_prefix_loads_with_labels(load, tmp_path, contents, s3_root):
    store = open_store(f"{s3_root}/raw")
    for path in sorted((tmp_path / "in").rglob("*.bin")):
        store.put(path.relative_to(tmp_path / "in").as_posix(), path.read_bytes())
    loader = load(f"{s3_root}/raw@refresh", batch_size_samples=50)
    labels, samples = [], []
    for batch in loader:
        labels += batch.label_ids
        samples += [bytes(sample) for sample in batch]
    assert samples == contents
    assert labels == [0] * 40 + [1] * 40 + [2] * 40


def test_the_py_minio_gate_order_of_samples_and_labels(load, tmp_path, s3_root):
    for label in ("cat", "dog"):
        for index in range(2):
            path = tmp_path / "gate" / label / f"{index}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{label}{index}")
    penstock.pack(str(tmp_path / "gate"), out=f"{s3_root}/gate", label_mode="imagefolder")
    batch = next(load(f"{s3_root}/gate@refresh"))
    assert list(zip(batch.sample_ids, batch.label_ids, strict=True)) == [(0, 0), (1, 0), (2, 1), (3, 1)]
    assert batch.payload == b"cat0cat1dog0dog1"


def test_e2_50_bad_answers_are_tried_again_and_the_order_is_kept(load, packed, contents, s3_proxy):
    s3_proxy.fail_next(1, Fault(status=503), method="GET")
    loader = load(packed, batch_size_samples=9, prefetch_batches=4)
    s3_proxy.fail_next(2, Fault(status=503), method="GET")
    s3_proxy.fail_next(1, Fault(status=429), method="GET")
    s3_proxy.fail_next(2, Fault(cut_after_bytes=5000), method="GET")
    s3_proxy.fail_next(1, Fault(cut_after_bytes=100, reset=True), method="GET")
    assert samples_of(loader) == contents


def test_a_server_that_never_recovers_is_an_error_after_the_last_try(load, packed, s3_proxy, monkeypatch):
    monkeypatch.setenv("PENSTOCK_STORE_RETRIES", "2")
    loader = load(packed)
    list(loader)
    s3_proxy.fail_next(1000, Fault(status=503), method="GET")
    with pytest.raises(StoreUnavailable):
        list(load(packed))


def test_credentials_that_expire_during_an_epoch_are_named_at_once(load, packed, contents, s3_proxy):
    loader = load(packed, batch_size_samples=5, max_queue_batches=1, max_inflight_bytes="400KiB")
    samples = [bytes(sample) for sample in next(loader)]
    s3_proxy.fail_next(1000, Fault(status=403, body=b"<Error><Code>ExpiredToken</Code></Error>"), method="GET")
    with pytest.raises(AccessDenied):
        for batch in loader:
            samples += [bytes(sample) for sample in batch]
    assert samples == contents[: len(samples)], "what came before the error is right"


def test_a_damaged_object_is_found_by_its_checksum(load, packed):
    store = open_store(f"{packed}/shards")
    data = bytearray(
        b"".join(bytes(piece) for piece in store.stream("shard-00000.tar", 0, store.size("shard-00000.tar")))
    )
    data[700] ^= 4
    store.put("shard-00000.tar", bytes(data))
    with pytest.raises(ShardCorrupt, match=r"sample 0 in s3://.*shard-00000\.tar"):
        next(load(packed))


def test_a_missing_shard_is_named(load, packed):
    open_store(f"{packed}/shards").delete("shard-00000.tar")
    with pytest.raises(ObjectNotFound, match=r"shard-00000\.tar"):
        next(load(packed))


def test_closing_while_slow_answers_are_under_way_leaves_no_thread(load, packed, s3_proxy):
    before = set(threading.enumerate())
    loader = load(packed, batch_size_samples=4, prefetch_batches=4)
    next(loader)
    loader.close()
    left = [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("penstock-")]
    assert left == []


def test_closing_does_not_wait_for_a_server_that_hangs(load, packed, s3_proxy):
    loader = load(packed, batch_size_samples=4, max_queue_batches=1, max_inflight_bytes="400KiB")
    next(loader)
    s3_proxy.fail_next(1000, Fault(hang=True), method="GET")
    with pytest.raises(ClosedError):
        threading.Timer(0.5, loader.close).start()
        for _ in loader:
            pass
    started = time.monotonic()
    loader.close()
    assert time.monotonic() - started < 5


def test_a_program_that_ends_while_a_server_hangs_exits_soon(packed, s3_proxy, tmp_path):
    code = (
        "import sys, penstock\n"
        "loader = penstock.load(sys.argv[1], batch_size_samples=4, max_queue_batches=1, max_inflight_bytes='400KiB',\n"
        "                       prefetch_batches=2, manifest_store_root=sys.argv[2])\n"
        "next(loader)\n"
        "print('up', flush=True)\n"
        "input()\n"
    )
    command = [sys.executable, "-c", code, packed, str(tmp_path / "store")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    s3_proxy.fail_next(1000, Fault(hang=True), method="GET")
    started = time.monotonic()
    _, errors = process.communicate(b"\n", timeout=60)
    assert process.returncode == 0, errors.decode()
    assert time.monotonic() - started < 20
