"""Loaders that stop and go on: the same samples as without, whatever changed in between."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from packing import pack_random

import penstock
from penstock.errors import BudgetHeld, ClosedError, ConfigError, ResumeError

SAMPLES = 203


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack_random(tmp_path_factory.mktemp("resume"), SAMPLES, least=0) / "packed"


@pytest.fixture
def load(packed, tmp_path):
    def open_loader(**arguments):
        arguments = {"shuffle": True, "seed": 4, "epoch": 2, "batch_size_samples": 10} | arguments
        return penstock.load(str(packed), manifest_store_root=str(tmp_path / "store"), **arguments)

    return open_loader


def ids(loader, batches: int | None = None) -> list[list[int]]:
    found = []
    while batches is None or len(found) < batches:
        batch = next(loader, None)
        if batch is None:
            break
        found.append(list(batch.sample_ids))
    return found


def flat(batches: list[list[int]]) -> list[int]:
    return [sample for batch in batches for sample in batch]


def through_json(state: dict) -> dict:
    return json.loads(json.dumps(state))


@pytest.mark.parametrize("stop_at", [0, 1, 7, 20, 21])
@pytest.mark.parametrize("later", [{}, {"prefetch_batches": 4}, {"profile": "throughput", "tune": True}])
def test_going_on_is_the_same_as_never_stopping(load, stop_at, later):
    with load() as whole:
        expected = ids(whole)
    with load(prefetch_batches=3) as first:
        begun = ids(first, stop_at)
        state = through_json(first.state_dict())
    with load(resume=state, **later) as second:
        assert len(second) == len(expected) - stop_at
        assert begun + ids(second) == expected


def test_other_batches_and_ranks_take_what_is_left(load):
    with load(rank=0, world_size=1) as whole:
        expected = flat(ids(whole))
    with load(batch_size_samples=12) as first:
        begun = flat(ids(first, 5))
        state = first.state_dict()
    rest = []
    for rank in range(4):
        with load(batch_size_samples=3, rank=rank, world_size=4, resume=state) as loader:
            rest.append(ids(loader))
    assert len({len(batches) for batches in rest}) == 1
    assert flat([batches[0] for batches in rest]) == expected[60:72]
    assert sorted(begun + [sample for batches in rest for sample in flat(batches)]) == sorted(expected)


def test_ranks_that_came_differently_far_are_merged(load):
    taken, states = [], []
    for rank, steps in enumerate([4, 2, 3]):
        with load(rank=rank, world_size=3) as loader:
            taken += flat(ids(loader, steps))
            states.append(through_json(loader.state_dict()))
    merged = penstock.merge_states(states)
    with load(batch_size_samples=7, resume=merged) as loader:
        rest = flat(ids(loader))
    assert sorted(taken + rest) == list(range(SAMPLES))


def test_batches_cut_by_bytes_go_on_where_they_were(load):
    cut = {"target_batch_bytes": 2000, "batch_size_samples": 50}
    with load(**cut) as whole:
        expected = ids(whole)
    with load(**cut) as first:
        begun = ids(first, 6)
        state = through_json(first.state_dict())
    with load(**cut, resume=state) as second:
        assert begun + ids(second) == expected


def test_a_state_can_be_loaded_into_a_loader_that_has_not_begun(load):
    with load() as first:
        begun = ids(first, 3)
        state = first.state_dict()
    with load() as whole:
        expected = ids(whole)
    with load(prefetch_batches=2) as loader:
        loader.load_state_dict(state)
        assert loader.state_dict()["done"] == state["done"]
        assert begun + ids(loader) == expected
        with pytest.raises(ResumeError, match="batches were handed out already"):
            loader.load_state_dict(state)


def test_a_loader_that_cannot_load_a_state_stays_what_it_was(load):
    with load(batch_size_samples=100) as nearly:
        ids(nearly, 2)
        state = nearly.state_dict()
    with load(rank=1, world_size=8) as whole:
        expected = ids(whole)
    with load(rank=1, world_size=8) as loader:
        with pytest.raises(ConfigError, match="3 samples can't be shared by 8 ranks"):
            loader.load_state_dict(state)
        assert loader.state_dict()["done"] == []
        assert ids(loader) == expected


def test_a_closed_loader_loads_no_state(load):
    with load() as loader:
        state = loader.state_dict()
    with pytest.raises(ClosedError):
        loader.load_state_dict(state)


def test_a_trace_goes_on_when_a_state_is_loaded(load, tmp_path):
    with load() as first:
        begun = len(ids(first, 3))
        state = first.state_dict()
    with load() as loader:
        loader.trace(tmp_path / "trace.json")
        loader.load_state_dict(state)
        left = len(ids(loader))
    spans = [event["name"] for event in json.loads((tmp_path / "trace.json").read_text())]
    assert begun + left == 21
    assert spans.count("data_wait") == left


def test_a_finished_epoch_has_nothing_left(load):
    with load() as loader:
        ids(loader)
        state = loader.state_dict()
    assert state["done"] == [[0, SAMPLES]]
    with load(resume=state) as loader:
        assert len(loader) == 0
        assert ids(loader) == []


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"seed": 5}, "seed was 4 and is 5 now"),
        ({"epoch": 3}, "epoch was 2 and is 3 now"),
        ({"shuffle": False}, "order was 'random' and is 'sequential' now"),
        ({"start_id": 0, "end_id": 100}, "end_id was 203 and is 100 now"),
    ],
)
def test_another_order_is_refused_with_the_reason(load, other, says):
    with load() as loader:
        state = loader.state_dict()
    with pytest.raises(ResumeError, match=says):
        load(resume=state, **other)


def test_a_state_of_files_that_changed_since_says_which_link_still_means_them(tmp_path):
    store = {"manifest_store_root": str(tmp_path / "store"), "shuffle": True, "batch_size": 2}
    (tmp_path / "files").mkdir()
    for name in "abcdef":
        (tmp_path / "files" / name).write_text(name)
    with penstock.load(str(tmp_path / "files"), **store) as first:
        begun = ids(first, 1)
        state = through_json(first.state_dict())
    (tmp_path / "files" / "g").write_text("new")
    with pytest.raises(ResumeError, match="make the loader as it was .its dataset's link with @sha256:") as refused:
        penstock.load(f"{tmp_path}/files@refresh", resume=state, **store)
    pin = re.search(r"@sha256:\w+", str(refused.value))
    assert pin is not None
    with penstock.load(f"{tmp_path}/files{pin[0]}", resume=state, **store) as again:
        assert sorted(flat(begun + ids(again))) == list(range(6))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"rank": 2, "world_size": 2}, "from 0 to 1"),
        ({"world_size": -1}, "world_size"),
        ({"worker_id": 2, "num_workers_pytorch": 2}, "from 0 to 1"),
        ({"world_size": 2, "target_batch_bytes": 1000}, "cut by count"),
        ({"world_size": 300}, "give drop_last=True"),
    ],
)
def test_a_split_that_cannot_be_is_refused(load, arguments, says):
    with pytest.raises(ConfigError, match=says):
        load(**arguments)


def test_drop_last_leaves_out_what_fills_no_step(load):
    taken = []
    for rank in range(2):
        with load(rank=rank, world_size=2, drop_last=True) as loader:
            batches = ids(loader)
            assert [len(batch) for batch in batches] == [10] * 10
            taken += flat(batches)
    assert len(set(taken)) == len(taken) == 200


KILLED = """
import json, os, signal, sys
import penstock
link, store, state, out, take = sys.argv[1:6]
resume = json.loads(state)
epoch = {"shuffle": True, "seed": 4, "epoch": 2, "manifest_store_root": store}
loader = penstock.load(link, **epoch, batch_size_samples=int(sys.argv[6]), prefetch_batches=3, resume=resume)
with open(out, "a") as file:
    for number, batch in enumerate(loader):
        # What a training step does at once: take the batch, and keep the state that counts it.
        file.write(json.dumps({"ids": list(batch.sample_ids), "state": loader.state_dict()}) + "\\n")
        file.flush()
        if number + 1 == int(take):
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_chain_of_kills_takes_each_sample_once(packed, tmp_path):
    log = tmp_path / "log"
    log.touch()
    random = np.random.default_rng(8)
    for _ in range(60):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        state = lines[-1]["state"] if lines else None
        done = subprocess.run(
            [
                sys.executable, "-c", KILLED, str(packed), str(tmp_path / "store"), json.dumps(state), str(log),
                str(random.integers(1, 6)), str(random.integers(1, 14)),
            ],
            timeout=60,
            env=os.environ,
        )  # fmt: skip
        if done.returncode == 0:
            break
    assert done.returncode == 0
    taken = [sample for line in log.read_text().splitlines() for sample in json.loads(line)["ids"]]
    assert sorted(taken) == list(range(SAMPLES))


def test_workers_of_one_rank_in_turn_give_what_one_loader_gives(load):
    whole = ids(load())
    workers = [load(worker_id=worker, num_workers_pytorch=3) for worker in range(3)]
    assert sum(len(worker) for worker in workers) == len(whole)
    assert [ids(workers[step % 3], 1)[0] for step in range(len(whole))] == whole


def test_a_worker_goes_on_with_its_own_state_and_all_of_them_merge(load):
    arguments = [{"worker_id": worker, "num_workers_pytorch": 2} for worker in range(2)]
    whole = ids(load())
    loaders = [load(**each) for each in arguments]
    took = [ids(loaders[0], 4), ids(loaders[1], 3)]
    states = [through_json(loader.state_dict()) for loader in loaders]
    again = [load(resume=state, **each) for state, each in zip(states, arguments, strict=True)]
    assert [len(loader) for loader in again] == [len(loaders[0]) - 4, len(loaders[1]) - 3]
    assert through_json(again[0].state_dict()) == states[0]
    assert took[0] + ids(again[0]) == whole[0::2]
    assert took[1] + ids(again[1]) == whole[1::2]
    with pytest.raises(ResumeError, match="worker 0 of 2 alone"):
        load(resume=states[0])
    rest = load(resume=penstock.merge_states(states), batch_size_samples=7)
    assert sorted(flat(took[0] + took[1] + ids(rest))) == list(range(SAMPLES))


def test_set_epoch_begins_another_epoch_wherever_the_loader_is(load):
    expected = [ids(load(epoch=epoch)) for epoch in range(3)]
    with load(epoch=0, prefetch_batches=2) as loader:
        assert ids(loader) == expected[0]
        loader.set_epoch(1)
        assert (loader.epoch, ids(loader, 5)) == (1, expected[1][:5])
        held = next(loader)
        loader.set_epoch(2)
        assert (len(loader), ids(loader)) == (len(expected[2]), expected[2])
        assert held.sample_ids == expected[1][5]
        assert sum(map(len, held)) == held.payload_bytes  # its bytes are there still
        loader.set_epoch(1)
        state = through_json(load(epoch=1, resume=None).state_dict())
        assert through_json(loader.state_dict()) == state
        with pytest.raises(ConfigError, match="epoch is 'two'"):
            loader.set_epoch("two")
    with pytest.raises(ClosedError):
        loader.set_epoch(3)


def test_set_epoch_of_the_epoch_that_is_resumed_keeps_the_state(load):
    # The usual loop says its epoch in every round; a state that it lost in silence would repeat what was done.
    whole, following = (ids(load(epoch=epoch)) for epoch in (1, 2))
    first = load(epoch=1)
    taken = ids(first, 4)
    state = through_json(first.state_dict())
    loader = load(epoch=1, resume=state)
    rounds = []
    for epoch in (1, 2):
        loader.set_epoch(epoch)
        rounds.append(ids(loader))
    assert rounds == [whole[4:], following]
    assert taken == whole[:4]
    later = load(epoch=1)
    later.load_state_dict(state)
    later.set_epoch(1)
    next(later)
    later.set_epoch(1)  # something was handed out since: from the beginning
    assert ids(later) == whole


def test_batches_of_the_last_epoch_count_in_the_next(load):
    with load(epoch=0, max_inflight_bytes=20_000) as loader:
        held = next(loader)
        before = held.payload_bytes
        loader.set_epoch(1)
        first = next(loader)
        assert loader.stats()["inflight_bytes"] >= before + first.payload_bytes
        keep = [held, first]
        with pytest.raises(BudgetHeld):
            while True:
                keep.append(next(loader))
        assert loader.stats()["ram_high_water_bytes"] <= 20_000
