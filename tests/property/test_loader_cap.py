"""A real loader over real shards with random knobs: the cap holds, nothing stalls, nothing is lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import penstock

SIZES = [int(size) for size in np.random.default_rng(3).integers(1, 6000, 150)] + [1, 1, 60_000, 1]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("knobs")
    random = np.random.default_rng(4)
    (root / "in").mkdir()
    samples = []
    for index, size in enumerate(SIZES):
        samples.append(random.bytes(size))
        (root / "in" / f"{index:04d}.bin").write_bytes(samples[-1])
    penstock.pack_dir(str(root / "in"), out=str(root / "out"), shard_mb=1)
    return str(root / "out"), str(root / "store"), samples


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 40),
    cap=st.integers(120_000, 400_000),
    target=st.one_of(st.none(), st.integers(1, 60_000)),
    queue=st.integers(1, 20),
    prefetch=st.integers(0, 9),
    shuffle=st.booleans(),
    seed=st.integers(0, 5),
    keep_views=st.booleans(),
)
def test_any_knobs(dataset, batch, cap, target, queue, prefetch, shuffle, seed, keep_views):
    link, store, samples = dataset
    loader = penstock.load(
        link,
        manifest_store_root=store,
        batch_size_samples=batch,
        max_inflight_bytes=cap,
        target_batch_bytes=target,
        max_batch_bytes=cap // 2,
        max_queue_batches=queue,
        prefetch_batches=prefetch,
        shuffle=shuffle,
        seed=seed,
    )
    found: dict[int, bytes] = {}
    for delivered in loader:
        assert len(delivered) <= batch and delivered.payload_bytes <= cap // 2
        found |= {i: bytes(sample) for i, sample in zip(delivered.sample_ids, delivered, strict=True)}
        assert loader.stats()["inflight_bytes"] <= cap
        view = delivered.view if keep_views else None
    assert [found[i] for i in range(len(samples))] == samples
    assert loader.stats()["ram_high_water_bytes"] <= cap
    del delivered, view
    assert loader.stats()["inflight_bytes"] == 0
    loader.close()
