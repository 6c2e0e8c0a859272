"""A real loader with a block shuffle and random knobs: the cap holds to the byte, nothing stalls, nothing is lost."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import penstock
from penstock.dataset.resolve import resolve
from penstock.errors import UnitTooLarge
from penstock.loader import BlockSampler
from penstock.loader.plan import LEAST_CHARGE_BYTES, BatchLimits, plan_units
from penstock.loader.window_plan import share_windows
from penstock.order.block_order import windows_of
from penstock.order.split import Split, Steps
from penstock.order.state import Epoch

SIZES = [int(size) for size in np.random.default_rng(3).integers(0, 3000, 200)] + [0, 1, 20_000, 1]

knobs = given(
    batch=st.integers(1, 60),
    block=st.integers(1, 20_000),
    blocks=st.integers(2, 12),
    queue=st.integers(1, 20),
    prefetch=st.integers(0, 6),
    seed=st.integers(0, 5),
)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Samples(list):
    """Quiet where a failure is shown."""

    def __repr__(self):
        return f"{len(self)} samples"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("block_cap")
    random = np.random.default_rng(4)
    (root / "in").mkdir()
    samples = Samples()
    for index, size in enumerate(SIZES):
        samples.append(random.bytes(max(1, size)))
        (root / "in" / f"{index:04d}.bin").write_bytes(samples[-1])
    penstock.pack_dir(str(root / "in"), out=str(root / "out"), shard_mb=1)
    return str(root / "out"), str(root / "store"), samples


def costs(link, store, sampler, batch, seed):
    """Of each unit: what its batch takes, and what the windows take that are held for it."""
    found = resolve(link, manifest_store_root=store)
    rows = found.manifest
    order = sampler.order_in(rows, Epoch(found.hash, 0, rows.row_count, sampler.text, seed, 0))
    units = plan_units(rows, order, BatchLimits(batch, None, 1 << 40), None, Steps(order.count, Split(batch)))
    shared = share_windows(units, windows_of(order))
    return [(max(LEAST_CHARGE_BYTES, unit.payload_bytes), unit.kept_bytes + unit.begun_bytes) for unit in shared]


@quick
@knobs
def test_the_cap_that_the_plan_comes_to_is_enough(dataset, batch, block, blocks, queue, prefetch, seed):
    link, store, samples = dataset
    sampler = BlockSampler(block, block * blocks)
    needs = costs(link, store, sampler, batch, seed)
    before = [0, *(cost for cost, _ in needs[:-1])]  # the loop variable's batch, while the next one is waited for
    cap = max(cost + windows + held for (cost, windows), held in zip(needs, before, strict=True))
    cap = max(cap, sampler.held_bytes(1) + 1)
    found: dict[int, bytes] = {}
    with penstock.load(
        link,
        manifest_store_root=store,
        sampler=sampler,
        seed=seed,
        batch_size_samples=batch,
        max_inflight_bytes=cap,
        max_queue_batches=queue,
        prefetch_batches=prefetch,
    ) as loader:
        for delivered in loader:
            found |= {i: bytes(sample) for i, sample in zip(delivered.sample_ids, delivered, strict=True)}
            assert loader.stats()["inflight_bytes"] <= cap
        assert all(found[i] == sample for i, sample in enumerate(samples))
        assert loader.stats()["ram_high_water_bytes"] <= cap
        del delivered
        assert loader.stats()["inflight_bytes"] == 0


@quick
@knobs
def test_a_byte_less_than_a_batch_and_its_windows_need_is_refused(dataset, batch, block, blocks, queue, prefetch, seed):
    link, store, _ = dataset
    sampler = BlockSampler(block, block * blocks)
    needs = costs(link, store, sampler, batch, seed)
    needed = [cost + windows for cost, windows in needs]
    cap = max(needed) - 1
    if cap <= sampler.held_bytes(1):
        return  # refused when the loader is made
    batches = 0
    with (
        penstock.load(
            link,
            manifest_store_root=store,
            sampler=sampler,
            seed=seed,
            batch_size_samples=batch,
            max_inflight_bytes=cap,
            max_queue_batches=queue,
            prefetch_batches=prefetch,
        ) as loader,
        pytest.raises(UnitTooLarge) as raised,
    ):
        while True:
            with next(loader):
                batches += 1
    assert batches == next(i for i, need in enumerate(needed) if need > cap), "what fits comes before"
    assert raised.value.total_bytes == cap
    assert raised.value.needed_bytes in (needed[batches], needs[batches][0])


@quick
@given(
    batch=st.integers(1, 40),
    block=st.integers(1, 10_000),
    blocks=st.integers(2, 12),
    stops=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 3), st.integers(1, 40)), max_size=4),
)
def test_stops_in_the_middle_of_windows_and_other_ranks_lose_nothing(dataset, batch, block, blocks, stops):
    link, store, samples = dataset
    sampler = BlockSampler(block, block * blocks)

    def load(**more):
        return penstock.load(link, manifest_store_root=store, sampler=sampler, max_inflight_bytes="4MiB", **more)

    with load(batch_size_samples=batch) as loader:
        expected = [sample for delivered in loader for sample in delivered.sample_ids]
    state, done = None, []
    for steps, world, size in stops:
        taken = {}
        for rank in range(world):
            with load(batch_size_samples=size, rank=rank, world_size=world, resume=state, drop_last=True) as loader:
                for step in range(min(steps, len(loader))):
                    taken[step, rank] = [*next(loader).sample_ids]
                after = json.loads(json.dumps(loader.state_dict()))
        done += [sample for _, ids in sorted(taken.items()) for sample in ids]
        state = after
        assert done == expected[: len(done)]
    found: dict[int, bytes] = {}
    with load(batch_size_samples=batch, resume=state) as loader:
        for delivered in loader:
            found |= {i: bytes(sample) for i, sample in zip(delivered.sample_ids, delivered, strict=True)}
            done += delivered.sample_ids
    assert done == expected and sorted(done) == list(range(len(samples)))
    assert all(samples[i] == sample for i, sample in found.items())
