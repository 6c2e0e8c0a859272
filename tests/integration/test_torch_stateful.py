"""EpochDataset inside of torchdata's StatefulDataLoader: each worker saves and restores its own state."""

from __future__ import annotations

import pytest
from packing import pack_random

pytest.importorskip("torchdata")
from torchdata.stateful_dataloader import StatefulDataLoader

import penstock
from penstock.torch import EpochDataset

pytestmark = [
    pytest.mark.usefixtures("ended_data_loaders"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata's own affair
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),  # forks on purpose
]

SAMPLES, BATCH, STEPS = 203, 10, 21


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack_random(tmp_path_factory.mktemp("stateful"), SAMPLES)


@pytest.fixture
def how(packed):
    return {"manifest_store_root": str(packed / "store"), "shuffle": True, "seed": 4, "batch_size_samples": BATCH}


@pytest.fixture
def stateful(packed, how):
    def make(count: int, **arguments):
        dataset = EpochDataset(penstock.load, str(packed / "packed"), **how)
        context = {"multiprocessing_context": "fork"} if count else {}
        return StatefulDataLoader(dataset, batch_size=None, num_workers=count, **context, **arguments)

    return make


@pytest.fixture
def expected(packed, how):
    def ids(epoch):
        with penstock.load(str(packed / "packed"), epoch=epoch, **how) as loader:
            return [batch.sample_ids for batch in loader]

    return ids


def ids(loader, batches: int | None = None) -> list[list[int]]:
    found = []
    for _, _, sample_ids in loader:
        found.append(sample_ids.tolist())
        if len(found) == batches:
            break
    return found


@pytest.mark.parametrize("stop_at", [1, 2, 7, STEPS - 1, STEPS])
@pytest.mark.parametrize("count", [0, 2])
def test_going_on_is_the_same_as_never_stopping(stateful, expected, count, stop_at):
    first = stateful(count)
    assert ids(first) == expected(0)
    begun = ids(first, stop_at)
    state = first.state_dict()
    again = stateful(count)
    again.load_state_dict(state)
    assert begun + ids(again) == expected(1)
    assert ids(again) == expected(2)


@pytest.mark.parametrize(("count", "persistent"), [(0, False), (2, False), (2, True)])
def test_a_state_after_an_epoch_goes_on_with_the_next(stateful, expected, count, persistent):
    first = stateful(count, persistent_workers=persistent)
    assert [ids(first), ids(first)] == [expected(0), expected(1)]
    state = first.state_dict()
    again = stateful(count, persistent_workers=persistent)
    again.load_state_dict(state)
    assert [ids(again), ids(again)] == [expected(2), expected(3)]


@pytest.mark.parametrize("count", [0, 2])
def test_states_that_are_taken_now_and_then_are_as_exact(stateful, expected, count):
    first = stateful(count, snapshot_every_n_steps=5)
    begun = ids(first, 8)
    again = stateful(count, snapshot_every_n_steps=5)
    again.load_state_dict(first.state_dict())
    assert begun + ids(again) == expected(0)


def test_a_chain_of_stops_takes_each_batch_once(stateful, expected):
    state, taken = None, []
    for stop_at in (3, 1, 4, 5, 2):
        loader = stateful(2)
        if state is not None:
            loader.load_state_dict(state)
        taken += ids(loader, stop_at)
        state = loader.state_dict()
    loader = stateful(2)
    loader.load_state_dict(state)
    assert taken + ids(loader) == expected(0)
