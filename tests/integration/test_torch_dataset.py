"""EpochDataset inside of torch's own DataLoader and torchdata's StatefulDataLoader: real workers, real pipes."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

pytest.importorskip("torch")
from torch.utils.data import DataLoader

import penstock
from penstock.errors import ConfigError, ResumeError, UnitTooLarge
from penstock.torch import EpochDataset, EpochLoader

SAMPLES, BATCH, STEPS = 203, 10, 21
LARGEST = 400

pytestmark = [
    pytest.mark.usefixtures("ended_data_loaders"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # more workers than cores
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),  # forks on purpose
]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Random bytes in two classes."""
    root = tmp_path_factory.mktemp("dataset")
    random = np.random.default_rng(6)
    for i in range(SAMPLES):
        path = root / "in" / f"class {i % 2}" / f"{i:04d}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.bytes(int(random.integers(1, LARGEST))))
    penstock.pack_dir(root / "in", out=str(root / "packed"), shard_mb=1)
    return root


@pytest.fixture
def how(packed):
    return {"manifest_store_root": str(packed / "store"), "shuffle": True, "seed": 4, "batch_size_samples": BATCH}


@pytest.fixture
def dataset(packed, how):
    return lambda **arguments: EpochDataset(penstock.load, str(packed / "packed"), **(how | arguments))


@pytest.fixture
def expected(packed, how):
    """The sample ids of an epoch's batches, by the loader alone."""

    def ids(epoch, **arguments):
        with penstock.load(str(packed / "packed"), **(how | {"epoch": epoch} | arguments)) as loader:
            return [batch.sample_ids for batch in loader]

    return ids


def workers(count: int, **arguments):
    """Arguments of a DataLoader; the tests' machine may have fewer cores, and what it is told is its own affair."""
    return (
        {"batch_size": None, "num_workers": count} | ({"multiprocessing_context": "fork"} if count else {}) | arguments
    )


def ids(loader, batches: int | None = None) -> list[list[int]]:
    """Of some or all batches, whose parts belong together."""
    found = []
    for payload, offsets, sample_ids, labels in loader:
        assert offsets[-1] == len(payload)
        assert len(labels) == len(sample_ids)
        found.append(sample_ids.tolist())
        if len(found) == batches:
            break
    return found


def flat(batches):
    return [sample for batch in batches for sample in batch]


def through_json(state):
    return json.loads(json.dumps(state))


@pytest.mark.parametrize(("count", "persistent"), [(0, False), (1, False), (2, False), (2, True), (3, True)])
def test_any_number_of_workers_gives_the_same_order_and_each_loop_the_next_epoch(dataset, expected, count, persistent):
    loader = DataLoader(dataset(), **workers(count, persistent_workers=persistent))
    assert len(loader) == STEPS
    orders = [ids(loader) for _ in range(3)]
    assert orders == [expected(epoch) for epoch in range(3)]
    assert len({str(order) for order in orders}) == 3


def test_spawned_workers_do_the_same(dataset, expected):
    given = dataset()
    loader = DataLoader(given, **workers(2, multiprocessing_context="spawn", persistent_workers=True))
    assert ids(loader) == expected(0)
    given.set_epoch(7)
    assert ids(loader, 4) == expected(7)[:4]
    assert ids(loader) == expected(8)


@pytest.mark.parametrize("persistent", [False, True])
def test_set_epoch_reaches_workers_that_live_on(dataset, expected, persistent):
    given = dataset(epoch=2)
    loader = DataLoader(given, **workers(2, persistent_workers=persistent))
    assert ids(loader) == expected(2)
    given.set_epoch(2)
    assert given.epoch == 2
    assert ids(loader) == expected(2)
    assert (given.epoch, ids(loader)) == (3, expected(3))


@pytest.mark.parametrize("count", [0, 2])
def test_a_seed_that_is_the_same_for_each_loop_changes_nothing(dataset, expected, count):
    import torch

    loader = DataLoader(dataset(), **workers(count))
    for epoch in range(3):
        torch.manual_seed(0)
        assert ids(loader, 3) == expected(epoch)[:3]


@pytest.mark.parametrize("count", [0, 2])
def test_ranks_and_workers_together_take_each_sample_once(dataset, expected, count):
    found = []
    for rank in range(2):
        loader = DataLoader(dataset(rank=rank, world_size=2), **workers(count))
        batches = ids(loader)
        assert len(batches) == len(loader) == 11
        assert batches == expected(0, rank=rank, world_size=2)
        found += flat(batches)
    assert sorted(found) == list(range(SAMPLES))


def test_payloads_are_the_files_and_labels_the_folders(dataset, packed):
    files = sorted((packed / "in").rglob("*.bin"), key=os.fsencode)
    for payload, offsets, sample_ids, labels in DataLoader(dataset(), **workers(2)):
        for i, sample in enumerate(sample_ids.tolist()):
            assert bytes(payload[offsets[i] : offsets[i + 1]].numpy()) == files[sample].read_bytes()
            assert f"class {labels[i]}" == files[sample].parent.name


def test_samples_without_labels_are_three_tensors(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.bin").write_bytes(b"abc")
    penstock.pack_dir(tmp_path / "in", out=str(tmp_path / "packed"), label_mode="none")
    dataset = EpochDataset(penstock.load, str(tmp_path / "packed"), manifest_store_root=str(tmp_path / "store"))
    ((payload, offsets, sample_ids),) = dataset
    assert (bytes(payload.numpy()), offsets.tolist(), sample_ids.tolist()) == (b"abc", [0, 3], [0])


def test_a_loader_in_the_parent_goes_on_beside_forked_workers(dataset, packed, how, expected):
    with penstock.load(str(packed / "packed"), **how, prefetch_batches=2) as ours:
        begun = [next(ours).sample_ids for _ in range(3)]
        assert ids(DataLoader(dataset(), **workers(2))) == expected(0)
        assert begun + [batch.sample_ids for batch in ours] == expected(0)


def test_the_cap_is_shared_out_and_what_is_too_little_is_said_with_numbers(dataset):
    enough = 4 * BATCH * LARGEST
    assert len(ids(DataLoader(dataset(max_inflight_bytes=enough), **workers(2)))) == STEPS
    batches = iter(DataLoader(dataset(max_inflight_bytes=BATCH * LARGEST // 4), **workers(2)))
    says = r"shared out between the 2 workers .* each has 500 bytes .* or fewer workers"
    for _ in range(2):
        with pytest.raises(UnitTooLarge, match=says):
            next(batches)
    assert list(batches) == []


@pytest.mark.parametrize("knob", ["pin_memory", "persistent_workers"])
def test_what_torch_does_is_for_torch_to_be_told(dataset, knob):
    with pytest.raises(ConfigError, match=f"{knob} is True, .* give DataLoader"):
        dataset(**{knob: True})
    with pytest.raises(ConfigError, match=knob):
        dataset(options={knob: True})


@pytest.mark.parametrize("stop_at", [1, 6, STEPS])
def test_without_workers_the_dataset_knows_where_the_loop_is(dataset, expected, stop_at):
    first = dataset()
    begun = ids(DataLoader(first, batch_size=None), None if stop_at == STEPS else stop_at)
    second = dataset()
    second.load_state_dict(through_json(first.state_dict()))
    loader = DataLoader(second, batch_size=None)
    if stop_at < STEPS:
        assert begun + ids(loader) == expected(0)
    assert ids(loader) == expected(1)
    with pytest.raises(ResumeError, match="batches is 2, and the loop has taken"):
        ids(loader, 3)
        second.state_dict(batches=2)


@pytest.mark.parametrize("stop_at", [0, 1, 6, STEPS])
def test_with_workers_the_loop_says_how_much_it_took(dataset, expected, stop_at):
    first = dataset()
    loader = DataLoader(first, **workers(2))
    ids(loader)
    begun = ids(loader, max(1, stop_at))[:stop_at]
    with pytest.raises(ResumeError, match=r"state_dict\(batches=n\).*StatefulDataLoader.*EpochLoader"):
        first.state_dict()
    with pytest.raises(ResumeError, match="batches is 22; this loop has 21"):
        first.state_dict(batches=STEPS + 1)
    state = through_json(first.state_dict(batches=stop_at))
    second = dataset()
    second.load_state_dict(state)
    again = DataLoader(second, **workers(3 if stop_at == 6 else 2))
    if stop_at < STEPS:
        assert begun + ids(again) == expected(1)
        with EpochLoader(second._maker.make, *second._maker.args, **second._maker.arguments, resume=state) as loader:
            assert begun + [batch.sample_ids for batch in loader] == expected(1)
    assert ids(again) == expected(2)


def test_loops_with_and_without_workers_may_take_turns(dataset, expected):
    given = dataset()
    with pytest.raises(ResumeError, match="batches is 3, and no loop has begun"):
        given.state_dict(batches=3)
    begun = ids(DataLoader(given, batch_size=None), 3)
    assert given.state_dict()["batches"] == 3
    loader = DataLoader(given, **workers(2))
    assert ids(loader, 5) == expected(1)[:5]
    with pytest.raises(ResumeError, match="read ahead"):
        given.state_dict()
    assert given.state_dict(batches=5)["epoch"] == 1
    assert ids(DataLoader(given, batch_size=None)) == expected(2)
    assert given.state_dict() == given.state_dict(batches=STEPS) == {"epoch": 3, "batches": 0, "loader": None}
    assert begun == expected(0)[:3]


def test_a_state_reaches_workers_that_live_on(dataset, expected):
    given = dataset()
    loader = DataLoader(given, **workers(2, persistent_workers=True))
    begun = ids(loader, 5)
    state = given.state_dict(batches=5)
    ids(loader)
    given.load_state_dict(state)
    given.set_epoch(0)  # as a loop that calls it for every epoch does
    rest = ids(loader, 6)
    state = given.state_dict(batches=6)
    given.load_state_dict(state)
    assert begun + rest + ids(loader) == expected(0)
    assert ids(loader) == expected(1)
