"""What a block shuffle asks an object store for, counted by a proxy in front of a real server."""

from __future__ import annotations

import numpy as np
import pytest

import penstock
from penstock.errors import StoreUnavailable
from penstock.loader import BlockSampler
from penstock.testing.fault_proxy import Fault

pytestmark = pytest.mark.s3

SAMPLES, BYTES = 480, 40_000
BLOCK, WINDOW = 10, 80  # samples: 48 blocks, 6 windows
SAMPLER = BlockSampler(BLOCK * BYTES, WINDOW * BYTES)


@pytest.fixture(scope="module")
def contents():
    random = np.random.default_rng(5)
    return [random.bytes(BYTES) for _ in range(SAMPLES)]


@pytest.fixture
def packed(tmp_path, contents, s3_root):
    (tmp_path / "in").mkdir()
    for index, data in enumerate(contents):
        (tmp_path / "in" / f"{index:04d}.bin").write_bytes(data)
    penstock.pack(str(tmp_path / "in"), out=f"{s3_root}/train", shard_mb=4, label_mode="none")
    return f"{s3_root}/train"


@pytest.fixture
def load(tmp_path, packed, s3_proxy):
    def make(**arguments):
        arguments = {"batch_size_samples": 16, "max_inflight_bytes": "12MB"} | arguments
        return penstock.load(packed, manifest_store_root=str(tmp_path / "store"), **arguments)

    with make():
        pass  # the link is resolved now
    return make


def reads(proxy):
    """How many requests for shards there were, and for how many bytes."""
    ranges = [request.byte_range for request in proxy.requests if request.method == "GET" and ".tar" in request.path]
    ends = [each.removeprefix("bytes=").split("-") for each in ranges]
    return len(ranges), sum(int(end) - int(start) + 1 for start, end in ends)


def read_all(loader, proxy):
    proxy.clear()
    with loader:
        found = {i: bytes(sample) for batch in loader for i, sample in zip(batch.sample_ids, batch, strict=True)}
    return found, *reads(proxy)


@pytest.mark.parametrize("prefetch", [1, 3])
def test_an_epoch_is_one_read_for_each_block(load, s3_proxy, contents, prefetch):
    found, requests, read_bytes = read_all(load(sampler=SAMPLER, prefetch_batches=prefetch), s3_proxy)
    assert [found[i] for i in range(SAMPLES)] == contents
    shards = -(-SAMPLES * (BYTES + 1024) // (4 << 20))
    blocks = SAMPLES // BLOCK
    assert requests <= blocks + shards, "a block that goes on in the next shard is two reads"
    assert read_bytes <= 1.03 * SAMPLES * BYTES, "tar headers come along, nothing else"
    _, one_by_one, _ = read_all(load(shuffle=True), s3_proxy)
    assert one_by_one > 6 * requests


def test_going_on_reads_only_what_is_left_of_a_window(load, s3_proxy, contents):
    with load(sampler=SAMPLER) as loader:
        for _ in range(SAMPLES * 9 // 10 // 16):  # 432: 48 are left of 80
            next(loader)
        state = loader.state_dict()
    found, requests, read_bytes = read_all(load(sampler=SAMPLER, resume=state), s3_proxy)
    assert len(found) == 48 and all(contents[i] == sample for i, sample in found.items())
    assert requests <= WINDOW // BLOCK + 1
    assert read_bytes <= WINDOW * (BYTES + 1024)


def test_a_rank_asks_once_for_each_block_or_only_for_its_samples(load, s3_proxy, contents):
    found, requests, read_bytes = {}, 0, 0
    for rank in range(4):
        loader = load(sampler=SAMPLER, rank=rank, world_size=4, batch_size_samples=4)
        some, asked, size = read_all(loader, s3_proxy)
        found |= some
        requests, read_bytes = max(requests, asked), max(read_bytes, size)
        assert loader.stats()["ram_high_water_bytes"] <= (2 * WINDOW / 4 + 4 + SAMPLES / 4) * (BYTES + 64)
    assert [found[i] for i in range(SAMPLES)] == contents
    assert requests <= SAMPLES // 4, "no more than one for each of its samples"
    assert read_bytes <= SAMPLES * (BYTES + 1024), "and no byte twice"


def test_bad_answers_are_tried_again(load, s3_proxy, contents):
    loader = load(sampler=SAMPLER, prefetch_batches=2)
    s3_proxy.fail_next(2, Fault(status=503), method="GET")
    s3_proxy.fail_next(2, Fault(cut_after_bytes=50_000), method="GET")
    s3_proxy.fail_next(1, Fault(cut_after_bytes=100, reset=True), method="GET")
    with loader:
        found = {i: bytes(sample) for batch in loader for i, sample in zip(batch.sample_ids, batch, strict=True)}
    assert [found[i] for i in range(SAMPLES)] == contents


def test_a_server_that_fails_for_good_fails_the_first_batch_that_needs_it(load, s3_proxy, monkeypatch):
    monkeypatch.setenv("PENSTOCK_STORE_RETRIES", "1")
    with load(sampler=SAMPLER, max_queue_batches=1) as loader:
        taken = [*next(loader).sample_ids]
        s3_proxy.fail_next(10_000, Fault(status=503), method="GET")
        with pytest.raises(StoreUnavailable):
            for batch in loader:
                taken += batch.sample_ids
    assert WINDOW <= len(taken) <= 3 * WINDOW and len(taken) % 16 == 0


def test_closing_does_not_wait_for_a_window_that_hangs(load, s3_proxy):
    loader = load(sampler=SAMPLER, max_queue_batches=1, max_inflight_bytes="9MB")
    next(loader)
    s3_proxy.fail_next(10_000, Fault(hang=True), method="GET")
    for _ in range(WINDOW // 16 - 1):  # the first window is there, the second one may hang
        next(loader)
    loader.close()  # pytest's limit on the whole would end a wait
