"""Splits, steps and states: over any ranks, interruptions and resumes, each sample once, and all ranks end together."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import ConfigError, ResumeError
from penstock.order.order import Remaining, Sequential, Shuffled
from penstock.order.split import Split, Steps
from penstock.order.state import Begun, Epoch, LoaderState, merge_states, united

COUNTS = st.integers(0, 300)
BATCHES = st.integers(1, 20)
WORLDS = st.integers(1, 7)


def all_steps(count: int, batch: int, world: int, drop_last: bool) -> list[Steps] | None:
    try:
        return [Steps(count, Split(batch, rank, world, drop_last)) for rank in range(world)]
    except ConfigError:
        return None


def positions(steps: list[Steps], first: int = 0, last: int | None = None) -> list[int]:
    return [
        position
        for rank in steps
        for step in range(first, rank.count if last is None else last)
        for position in range(*rank.batch(step))
    ]


@given(count=COUNTS, batch=BATCHES, world=WORLDS, drop_last=st.booleans())
def test_every_position_is_in_one_batch_and_all_ranks_end_together(count, batch, world, drop_last):
    steps = all_steps(count, batch, world, drop_last)
    if steps is None:
        assert not drop_last and 0 < count % (batch * world) < world and (batch == 1 or count < world)
        return
    assert len({rank.count for rank in steps}) == 1
    sizes = {end - start for rank in steps for start, end in map(rank.batch, range(rank.count))}
    assert all(1 <= size <= batch for size in sizes)
    taken = positions(steps)
    whole = count - count % (batch * world) if drop_last else count
    assert sorted(taken) == list(range(whole))
    assert not drop_last or sizes <= {batch}


@given(count=COUNTS, batch=BATCHES, world=WORLDS, drop_last=st.booleans(), data=st.data())
def test_what_is_done_after_a_step_is_what_its_batches_hold(count, batch, world, drop_last, data):
    steps = all_steps(count, batch, world, drop_last)
    if steps is None:
        return
    step = data.draw(st.integers(0, steps[0].count))
    assert sorted(positions(steps, 0, step)) == list(range(steps[0].end(step)))


@given(step=st.integers(1, 12), worlds=st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=2, max_size=4))
def test_whole_steps_hold_the_same_for_any_world_that_divides_them(step, worlds):
    size, count = 12 * step, 12 * step * 3
    held = [
        [sorted(positions(all_steps(count, size // world, world, True), at, at + 1)) for at in range(3)]
        for world in worlds
    ]
    assert all(other == held[0] for other in held)


INTERVALS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=6).map(
    lambda pairs: united([(min(pair), max(pair)) for pair in pairs])
)


@given(pairs=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8))
def test_united_intervals_hold_the_same_positions(pairs):
    pieces = [(min(pair), max(pair)) for pair in pairs]
    found = united(pieces)
    assert {at for piece in found for at in range(*piece)} == {at for piece in pieces for at in range(*piece)}
    assert all(a_end < b_start for (_, a_end), (b_start, _) in zip(found, found[1:], strict=False))


@given(done=INTERVALS, extra=st.integers(0, 20), data=st.data())
def test_what_remains_is_what_is_not_done(done, extra, data):
    count = max([end for _, end in done], default=0) + extra
    order = Shuffled(5, count, manifest_hash="m", seed=1, epoch=2)
    left = Remaining(order, done)
    expected = [at for at in range(count) if not any(start <= at < end for start, end in done)]
    assert left.count == len(expected)
    assert left.whole(np.arange(left.count)).tolist() == expected
    assert left.at(np.arange(left.count)).tolist() == order.at(np.array(expected, dtype=np.int64)).tolist()
    start = data.draw(st.integers(0, left.count))
    end = data.draw(st.integers(start, left.count))
    assert [at for piece in left.intervals(start, end) for at in range(*piece)] == expected[start:end]


def run(state: LoaderState, ranks_take: list[int]) -> list[int]:
    """Positions that ranks take, each so many steps."""
    left = Remaining(Sequential(0, state.epoch.count), state.begun_with)
    assert state.split is not None
    found = []
    for rank, take in enumerate(ranks_take):
        steps = Steps(left.count, Split(state.split.batch, rank, state.split.world_size, state.split.drop_last))
        for step in range(take):
            found += left.whole(np.arange(*steps.batch(step))).tolist()
    return found


@given(count=COUNTS, batch=BATCHES, world=WORLDS, workers=st.integers(1, 5))
def test_taking_steps_from_workers_in_turn_gives_the_steps_of_their_rank(count, batch, world, workers):
    steps = all_steps(count, batch, world, False)
    if steps is None:
        return
    for rank, whole in enumerate(steps):
        parts = [Steps(count, Split(batch, rank, world, False, worker, workers)) for worker in range(workers)]
        assert sum(part.count for part in parts) == whole.count
        in_turn = [parts[step % workers].batch(step // workers) for step in range(whole.count)]
        assert in_turn == [whole.batch(step) for step in range(whole.count)]


@settings(max_examples=200)
@given(count=COUNTS, batch=BATCHES, world=st.integers(1, 3), workers=st.integers(2, 4), data=st.data())
def test_merged_states_of_workers_are_what_each_of_them_took(count, batch, world, workers, data):
    if all_steps(count, batch, world, False) is None:
        return
    epoch = Epoch("m", 0, count, "random", 1, 2)
    states, taken = [], []
    for rank in range(world):
        for worker in range(workers):
            split = Split(batch, rank, world, False, worker, workers)
            steps = Steps(count, split)
            take = data.draw(st.integers(0, steps.count))
            taken += [position for step in range(take) for position in range(*steps.batch(step))]
            states.append(json.loads(json.dumps(LoaderState(epoch, (), split, take).to_dict())))
    done = LoaderState.from_dict(merge_states(data.draw(st.permutations(states)))).done()
    assert [position for start, end in done for position in range(start, end)] == sorted(taken)
    assert json.dumps(states[0]).count("[") <= 1  # one worker alone can't say what is done, and doesn't


def test_the_state_of_one_worker_is_for_that_worker_alone():
    split = Split(8, 0, 2, False, 1, 3)
    state = LoaderState(Epoch("m", 0, 100, "random", 1, 2), ((0, 4),), split, 1)
    assert LoaderState.from_dict(state.to_dict()).begun(split) == Begun(((0, 4),), 1)
    with pytest.raises(ResumeError, match="worker 1 of 3 alone"):
        state.begun(Split(8, 0, 2))


@settings(max_examples=200)
@given(count=COUNTS, data=st.data())
def test_any_chain_of_interruptions_takes_each_sample_once(count, data):
    epoch = Epoch("m", 0, count, "random", 1, 2)
    done, taken = (), []
    for _ in range(data.draw(st.integers(0, 5))):
        batch, world = data.draw(BATCHES), data.draw(WORLDS)
        states = [LoaderState(epoch, done, Split(batch, rank, world), 0) for rank in range(world)]
        steps = all_steps(Remaining(Sequential(0, count), done).count, batch, world, False)
        if steps is None:
            continue
        together = data.draw(st.booleans())
        most = st.integers(0, steps[0].count)
        take = [data.draw(most)] * world if together else [data.draw(most) for _ in range(world)]
        taken += run(states[0], take)
        finished = [
            json.loads(json.dumps(LoaderState(epoch, done, state.split, steps).to_dict()))
            for state, steps in zip(states, take, strict=True)
        ]
        merged = LoaderState.from_dict(merge_states(data.draw(st.permutations(finished))))
        if together:
            assert all(LoaderState.from_dict(state).done() == merged.done() for state in finished)
        done = merged.done()
    last = LoaderState(epoch, done, Split(7), 0)
    left = Remaining(Sequential(0, count), done)
    taken += run(last, [Steps(left.count, Split(7)).count])
    assert sorted(taken) == list(range(count))


def test_merging_takes_as_long_as_ranks_are_apart_not_as_they_have_come(count=10_000_000, world=8):
    epoch = Epoch("m", 0, count, "random", 1, 2)
    most = count // world
    states = [LoaderState(epoch, (), Split(1, rank, world), most - 5 * rank).to_dict() for rank in range(world)]
    started = time.process_time()
    done = LoaderState.from_dict(merge_states(states)).done()
    assert time.process_time() - started < 1  # with an interval for each step of each rank: 15 s
    assert sum(end - start for start, end in done) == count - 5 * sum(range(world))


def test_merging_over_many_gaps_looks_at_each_once(count=1_000_000, world=8):
    epoch = Epoch("m", 0, count, "random", 1, 2)
    begun_with = tuple((start, start + 1) for start in range(0, count, 100))
    states = [LoaderState(epoch, begun_with, Split(32, rank, world), 200 * rank).to_dict() for rank in range(world)]
    started = time.process_time()
    done = LoaderState.from_dict(merge_states(states)).done()
    assert time.process_time() - started < 3  # with all gaps for each step: 20 s
    assert sum(end - start for start, end in done) == len(begun_with) + 32 * 200 * sum(range(world))


def a_state(**changes) -> dict:
    state = LoaderState(Epoch("m", 0, 100, "random", 1, 2), (), Split(8, 0, 2), 3).to_dict()
    return {**state, **changes}


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({}, "no state of a loader"),
        ([], "no state of a loader"),
        ({"epoch": 1, "batches": 2, "loader": a_state()}, "state of an EpochLoader"),
        ({"format": 1, "manifest_hash": "m", "epoch": 0, "done": []}, "state of a shared job"),
        (a_state(version=9), "version 9"),
        (a_state(taken=4), "contradicts itself"),
        (a_state(taken="x"), "no state of a loader"),
        (a_state(taken=float("inf")), "no state of a loader"),
        (a_state(epoch={**a_state()["epoch"], "end_id": 1 << 70}), "no state of a loader"),
        (a_state(begun_with=[[5, 2]]), "don't exist"),
        (a_state(begun_with=[[0, 500]]), "don't exist"),
        (a_state(epoch={"manifest_hash": "m"}), "no state of a loader"),
        (a_state(split={"batch": 0, "rank": 0, "world_size": 1, "drop_last": False}), "no state of a loader"),
    ],
)
def test_what_is_no_state_is_refused(state, says):
    with pytest.raises(ResumeError, match=says):
        LoaderState.from_dict(state)


@pytest.mark.parametrize(
    ("states", "says"),
    [
        ([], "no states"),
        ([a_state()], r"ranks \[0\].*give one of each rank from 0 to 1"),
        ([a_state(), a_state()], r"ranks \[0, 0\]"),
        ([a_state(split=None, taken=48)], "merged already, or its batches are cut by bytes"),
    ],
)
def test_states_that_do_not_fit_together_are_refused(states, says):
    with pytest.raises(ResumeError, match=says):
        merge_states(states)


def test_another_epoch_is_refused_by_name():
    state = LoaderState.from_dict(a_state())
    with pytest.raises(ResumeError, match=r"seed was 1 and is 3 now, epoch was 2 and is 4 now"):
        state.require(Epoch("m", 0, 100, "random", 3, 4))
