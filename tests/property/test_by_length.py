"""Samples of like length side by side, and batches cut by cost: against a plain model, and through loaders."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.property.test_plan import manifest, no_size

import penstock
from penstock.errors import ConfigError, ManifestError, ResumeError
from penstock.loader.plan import BatchLimits, plan_units
from penstock.order.by_length import ByLength
from penstock.order.order import Sequential, Shuffled


@given(
    lengths=st.lists(st.integers(0, 50), min_size=1, max_size=300),
    group=st.integers(1, 120),
    picked=st.lists(st.integers(0, 10**6), max_size=20),
    shuffled=st.booleans(),
)
def test_each_group_is_a_permutation_of_itself_at_any_position(lengths, group, picked, shuffled):
    count = len(lengths)
    whole = Shuffled(0, count, manifest_hash="x", seed=1, epoch=2) if shuffled else Sequential(0, count)
    order = ByLength(whole, np.array(lengths, dtype=np.int32), group, "key")
    everything = order.at(np.arange(count))
    plain = whole.at(np.arange(count))
    for start in range(0, count, group):
        assert sorted(everything[start : start + group]) == sorted(plain[start : start + group])
    positions = np.array([number % count for number in picked], dtype=np.int64)
    assert order.at(positions).tolist() == everything[positions].tolist()


def test_neighbours_are_of_like_length_and_runs_are_mixed():
    lengths = np.random.default_rng(1).integers(1, 10_000, 4096)
    order = ByLength(Sequential(0, 4096), lengths, 1024, "key")
    found = lengths[order.at(np.arange(4096))].reshape(-1, 64)  # a run is a 16th of a group
    spans = np.ptp(found, axis=1)
    assert spans.max() < 10_000 / 16 * 2
    means = found.mean(axis=1).reshape(4, 16)
    assert all((np.diff(each) < 0).any() and (np.diff(each) > 0).any() for each in means)
    assert len({tuple(np.argsort(each)) for each in means}) == 4


def test_a_sample_without_a_length_is_named():
    with pytest.raises(ManifestError, match="sample 2 has none"):
        ByLength(Sequential(0, 3), np.array([1, 2, -1]), 64, "key").at(np.arange(3))


@given(
    lengths=st.lists(st.integers(0, 100), max_size=200),
    samples=st.integers(1, 30),
    most=st.integers(100, 1000),
    together=st.integers(1, 60),
)
def test_batches_by_cost_are_as_long_as_the_cost_allows(lengths, samples, most, together):
    limits = BatchLimits(samples, None, 10**6, penstock.padded_bytes, most)
    source, order = manifest(lengths), Sequential(0, len(lengths))
    found = [unit.lengths.tolist() for unit in plan_units(source, order, limits, no_size, together=together)]
    expected, batch = [], []
    for length in lengths:
        if batch and (len(batch) == samples or max([*batch, length]) * (len(batch) + 1) > most):
            expected.append(batch)
            batch = []
        batch.append(length)
    assert found == expected + ([batch] if batch else [])


def test_a_sample_that_costs_too_much_and_a_bad_function_are_errors():
    def plan(cost):
        limits = BatchLimits(4, None, 10**6, cost, 10)
        return list(plan_units(manifest([1, 11]), Sequential(0, 2), limits, no_size))

    with pytest.raises(ConfigError, match="sample 1 .* alone costs 11, more than max_batch_cost 10"):
        plan(penstock.padded_bytes)
    with pytest.raises(ConfigError, match=r"batch_cost returned int64 \[\] for 2 lengths"):
        plan(lambda lengths: lengths.sum())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("lengths")
    (root / "in").mkdir()
    sizes = np.random.default_rng(5).integers(1, 500, 300)
    for index, size in enumerate(sizes.tolist()):
        (root / "in" / f"{index:03d}.bin").write_bytes(bytes(size))
    penstock.pack_dir(str(root / "in"), out=str(root / "out"))
    return str(root / "out"), str(root / "store")


@settings(max_examples=20)
@given(
    stop=st.integers(0, 20),
    by_cost=st.booleans(),
    shuffle=st.booleans(),
    group=st.booleans(),
    more=st.sampled_from([{}, {"collate_buffer_size": 64}]),
)
def test_going_on_is_exact(dataset, stop, by_cost, shuffle, group, more):
    cut = {"batch_cost": penstock.padded_bytes, "max_batch_cost": 5000} if by_cost else {}
    arguments = {"manifest_store_root": dataset[1], "batch_size": 16, "shuffle": shuffle, "group_by_length": group}

    def ids(**resume):
        with penstock.load(dataset[0], **arguments, **cut, **more, **resume) as loader:
            return [batch.sample_ids for batch in loader]

    whole = ids()
    assert sorted(i for batch in whole for i in batch) == list(range(300))
    with penstock.load(dataset[0], **arguments, **cut, **more) as loader:
        first = [batch.sample_ids for batch in itertools.islice(loader, stop)]
        state = loader.state_dict()
    assert first + ids(resume=state) == whole


def test_ranks_share_the_sorted_order_and_another_one_is_refused(dataset):
    def loader(**arguments):
        return penstock.load(dataset[0], manifest_store_root=dataset[1], batch_size=10, shuffle=True, **arguments)

    with loader(group_by_length=True) as whole, loader(group_by_length=True, rank=0, world_size=2) as zero:
        with loader(group_by_length=True, rank=1, world_size=2) as one:
            shared = [i for pair in zip(zero, one, strict=True) for batch in pair for i in batch.sample_ids]
        assert shared == [i for batch in whole for i in batch.sample_ids]
        state = zero.state_dict()
    with pytest.raises(ResumeError, match="by length in 8192"):
        loader(resume=state)
    with pytest.raises(ConfigError, match="cut by bytes or cost"):
        loader(batch_cost=penstock.padded_bytes, max_batch_cost=100, world_size=2)
    with pytest.raises(ConfigError, match="give both"):
        loader(batch_cost=penstock.padded_bytes)
