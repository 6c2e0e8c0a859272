"""EpochLoader: one loader for many epochs, exact to stop and to go on with."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

import pytest
from packing import pack_random

pytest.importorskip("torch")
import torch

import penstock
from penstock import LoaderOptions
from penstock.errors import ClosedError, ConfigError, ResumeError
from penstock.torch import EpochLoader

SAMPLES, BATCH, STEPS = 203, 10, 21


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack_random(tmp_path_factory.mktemp("epochs"), SAMPLES)


@pytest.fixture
def epochs(packed):
    """Makes an EpochLoader; closes what it made."""
    made = []

    def make(**arguments):
        how = {"shuffle": True, "seed": 4, "batch_size_samples": BATCH} | arguments
        made.append(
            EpochLoader(penstock.load, str(packed / "packed"), manifest_store_root=str(packed / "store"), **how)
        )
        return made[-1]

    yield make
    for loader in made:
        loader.close()


@pytest.fixture
def expected(packed):
    """The batches of an epoch, by the loader alone."""

    def ids(epoch, **arguments):
        how = {"shuffle": True, "seed": 4, "batch_size_samples": BATCH, "epoch": epoch} | arguments
        with penstock.load(str(packed / "packed"), manifest_store_root=str(packed / "store"), **how) as loader:
            return [batch.sample_ids for batch in loader]

    return ids


def ids(loader, batches: int | None = None) -> list[list[int]]:
    found = []
    for batch in loader:
        found.append(batch.sample_ids)
        if len(found) == batches:
            break
    return found


def flat(batches: list[list[int]]) -> list[int]:
    return [sample for batch in batches for sample in batch]


def through_json(state):
    return json.loads(json.dumps(state))


@pytest.mark.parametrize("persistent", [False, True])
def test_every_loop_is_the_next_epoch(epochs, expected, persistent):
    loader = epochs(persistent_workers=persistent)
    assert len(loader) == STEPS
    first = loader.loader
    for epoch in range(3):
        assert loader.epoch == epoch
        assert ids(loader) == expected(epoch)
    assert loader.epoch == 3
    assert (loader.loader is first) == persistent


def test_a_loop_that_took_nothing_is_not_counted_and_one_that_was_left_is(epochs, expected):
    loader = epochs()
    iter(loader)
    iter(loader)
    assert ids(loader, 2) == expected(0)[:2]
    assert loader.epoch == 0
    assert ids(loader) == expected(1)


def test_a_new_loop_ends_the_one_before(epochs):
    loader = epochs()
    before = iter(loader)
    next(before)
    next(iter(loader))
    with pytest.raises(ClosedError):
        next(before)


def test_set_epoch_says_which_is_next(epochs, expected):
    loader = epochs(epoch=5)
    assert ids(loader, 3) == expected(5)[:3]
    loader.set_epoch(5)
    assert ids(loader) == expected(5)
    loader.set_epoch(9)
    assert (loader.epoch, ids(loader)) == (9, expected(9))
    with pytest.raises(ConfigError, match="epoch is -1"):
        loader.set_epoch(-1)


def test_set_epoch_of_a_resumed_epoch_and_after_iter_does_no_harm(epochs, expected):
    first = epochs()
    ids(first)
    begun = ids(first, 4)
    again = epochs(resume=first.state_dict())
    again.set_epoch(1)
    batches = iter(again)
    again.sampler.set_epoch(1)
    assert begun + ids(batches) == expected(1)
    batches = iter(again)
    again.set_epoch(8)
    assert ids(batches) == expected(8)
    assert again.epoch == 9


def test_a_loader_that_is_kept_forgets_a_state_that_another_replaced(epochs, expected):
    first = epochs()
    ids(first, 4)
    again = epochs(persistent_workers=True)
    again.load_state_dict(through_json(first.state_dict()))
    assert len(again.loader) == STEPS - 4
    again.load_state_dict({"epoch": 0, "batches": 0, "loader": None})
    assert ids(again) == expected(0)


@pytest.mark.parametrize("stop_at", [0, 1, 7, STEPS - 1, STEPS])
@pytest.mark.parametrize("persistent", [False, True])
def test_going_on_is_the_same_as_never_stopping(epochs, expected, stop_at, persistent):
    first = epochs(prefetch_batches=3)
    ids(first)
    begun = ids(first, stop_at) if stop_at else []
    state = through_json(first.state_dict())
    second = epochs(persistent_workers=persistent)
    second.load_state_dict(state)
    if stop_at == STEPS:
        assert second.epoch == 2
    else:
        assert (second.epoch, len(second)) == (1, STEPS)
        assert begun + ids(second) == expected(1)
    assert ids(second) == expected(2)
    assert len(second) == STEPS


def test_a_state_can_be_given_at_construction_and_close_keeps_it(epochs, expected):
    first = epochs()
    begun = ids(first, 4)
    again = epochs(resume=through_json(first.state_dict()))
    begun += ids(again, 3)
    again.close()
    assert begun + ids(again) == expected(0)
    with pytest.raises(ConfigError, match="epoch is 3, and resume is a state of epoch 0"):
        epochs(resume=first.state_dict(), epoch=3)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_going_on_with_other_ranks_takes_each_sample_once(epochs, before, after):
    taken, states = [], []
    for rank in range(before):
        loader = epochs(rank=rank, world_size=before)
        taken += flat(ids(loader, 4))
        states.append(through_json(loader.state_dict()))
    steps = []
    for rank in range(after):
        loader = epochs(rank=rank, world_size=after, resume=states[-1])
        assert len(loader) >= 4 + len(loader.loader)  # as many as a trainer that counts the four waits for
        rest = ids(loader)
        steps.append(len(rest))
        taken += flat(rest)
        assert len(ids(loader)) == -(-SAMPLES // (BATCH * after))  # the next epoch is a whole one
    assert len(set(steps)) == 1
    assert sorted(taken) == list(range(SAMPLES))


def test_states_of_loaders_and_merged_ones_are_taken_as_well(epochs, expected):
    loaders = [epochs(rank=rank, world_size=2, epoch=1) for rank in range(2)]
    taken = flat(ids(loaders[0], 5) + ids(loaders[1], 2))
    merged = penstock.merge_states([through_json(each.loader.state_dict()) for each in loaders])
    again = epochs()
    again.load_state_dict(merged)
    assert again.epoch == 1
    assert sorted(taken + flat(ids(again))) == list(range(SAMPLES))
    assert ids(again) == expected(2)


def test_nothing_left_because_of_drop_last_is_the_next_epoch(epochs):
    first = epochs()
    ids(first, 19)
    again = epochs(batch_size_samples=64, drop_last=True, resume=first.state_dict())
    assert again.epoch == 1
    assert len(ids(again)) == SAMPLES // 64


def test_batches_that_are_cut_by_bytes_have_no_length_and_go_on_all_the_same(epochs, expected):
    how = {"target_batch_bytes": 2000, "batch_size_samples": 50}
    first = epochs(**how)
    with pytest.raises(TypeError, match="cut by bytes"):
        len(first)
    begun = ids(first, 6)
    again = epochs(**how, resume=through_json(first.state_dict()))
    assert begun + ids(again) == expected(0, **how)
    assert (again.epoch, again.state_dict()["epoch"]) == (1, 1)


def test_a_state_of_something_else_is_refused(epochs):
    state = epochs(seed=5)
    ids(state, 2)
    loader = epochs(resume=state.state_dict())
    with pytest.raises(ResumeError, match="seed was 5 and is 4 now"):
        ids(loader)
    for nonsense in ({}, {"epoch": 1}, {"epoch": -1, "batches": 0, "loader": None}, {"loader": 3}):
        with pytest.raises(ResumeError, match="no state of a loader"):
            loader.load_state_dict(nonsense)


def test_what_makes_no_loader_is_refused(packed, epochs):
    with pytest.raises(ConfigError, match="give what makes a loader"):
        EpochLoader(str(packed / "packed"))
    with pytest.raises(ConfigError, match="worker_id is given"):
        epochs(worker_id=0)
    for options in (LoaderOptions(worker_id=1, num_workers_pytorch=3), {"worker_id": 1, "num_workers_pytorch": 3}):
        with pytest.raises(ConfigError, match="for worker 1 of 3"):
            epochs(options=options)


def test_rank_and_world_size_come_from_the_environment_unless_given(epochs, expected, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ids(epochs()) == expected(0, rank=1, world_size=2)
    assert ids(epochs(rank=0, world_size=1)) == expected(0)
    assert ids(epochs(shard_rank=0, shard_world_size=2)) == expected(0, rank=0, world_size=2)
    options = penstock.LoaderOptions(batch_size=BATCH, seed=4).distributed_optimized(0, 2)
    arguments = {"options": options.replace(pin_memory=False, non_blocking=False, memory_format="auto")}
    assert ids(epochs(**arguments)) == expected(0, rank=0, world_size=2)
    with pytest.raises(ConfigError, match="rank= is given without world_size="):
        len(epochs(rank=0))


def test_a_process_group_that_comes_after_construction_counts(epochs, expected, monkeypatch):
    loader = epochs()
    assert len(loader) == STEPS
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ids(loader) == expected(0, rank=1, world_size=2)


def test_any_function_that_passes_keywords_on_makes_loaders(packed, expected):
    link, store = str(packed / "packed"), str(packed / "store")
    make = partial(penstock.load, link, manifest_store_root=store, shuffle=True, seed=4, batch_size_samples=BATCH)
    with EpochLoader(make) as loader:
        assert [ids(loader), ids(loader)] == [expected(0), expected(1)]


def test_the_budget_is_one_however_many_epochs(epochs):
    loader = epochs(max_inflight_bytes="64KiB")
    for _ in range(3):
        for _ in loader:
            assert loader.loader.stats()["inflight_bytes"] <= 64 << 10


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so pin_memory acts")
def test_pin_memory_without_a_gpu_is_refused(epochs):
    with pytest.raises(ConfigError, match="pin_memory is True, and this build of torch has no CUDA"):
        iter(epochs(pin_memory=True))


def test_importing_penstock_imports_no_torch():
    code = "import sys, penstock, penstock.loader; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_torchs_data_loader_is_told_what_to_take_instead(epochs):
    with pytest.raises(ConfigError, match="give torch's DataLoader an EpochDataset, with batch_size=None"):
        next(iter(torch.utils.data.DataLoader(epochs(), batch_size=None)))
