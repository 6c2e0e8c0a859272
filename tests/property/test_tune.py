"""The rules of tuning: bounds, one change at a time, coming to rest, and finding what a loader needs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from penstock.loader.tune import (
    FIRST_PAUSE,
    KNOBS,
    LONGEST_PAUSE,
    RSS_ROOM,
    Decision,
    Knobs,
    Limits,
    Observation,
    Range,
    State,
    decide,
)

MIB = 1 << 20
WIDE = Limits(Range(1, 16), Range(1, 8), Range(1, 64), room_bytes=1 << 40)
START = State(Knobs(prefetch=2, threads=4, queue=4))
CALM = Observation(1.0, 10, data_wait_s=0.05, queue_wait_s=0.5, decode_s=0.5, p50_bytes=MIB, p95_bytes=MIB)
HUNGRY = replace(CALM, data_wait_s=0.5, queue_wait_s=0.0)
SERVED = replace(CALM, data_wait_s=0.0, queue_wait_s=4.0)


@st.composite
def ranges(draw, least=1):
    low = draw(st.integers(least, 8))
    return Range(low, draw(st.integers(low, 64)))


@st.composite
def situations(draw):
    """Limits and a state inside of them."""
    limits = Limits(
        draw(ranges()),
        draw(st.one_of(st.just(Range(0, 0)), ranges())),
        draw(ranges()),
        room_bytes=draw(st.integers(0, 1 << 40)),
        rss_limit_bytes=draw(st.none() | st.integers(1, 1 << 40)),
    )
    values = {knob: draw(st.integers(limits.range(knob).least, limits.range(knob).most)) for knob in KNOBS}
    return limits, State(Knobs(**values))


seconds = st.floats(0.0, 100.0)
observations = st.builds(
    Observation,
    seconds=st.floats(0.01, 100.0),
    batches=st.integers(0, 10_000),
    data_wait_s=seconds,
    queue_wait_s=seconds,
    decode_s=seconds,
    p50_bytes=st.integers(0, 1 << 30),
    p95_bytes=st.integers(0, 1 << 32),
    rss_bytes=st.integers(0, 1 << 40),
)


def run(state, limits, seen) -> tuple[State, list[Decision | None]]:
    decisions = []
    for each in seen:
        state, decision = decide(each, state, limits)
        decisions.append(decision)
    return state, decisions


@given(situations(), st.lists(observations, max_size=80))
def test_one_knob_at_a_time_always_in_its_range_and_the_decision_is_the_change(situation, seen):
    limits, state = situation
    for each in seen:
        after, decision = decide(each, state, limits)
        changed = [knob for knob in KNOBS if state.knobs.value(knob) != after.knobs.value(knob)]
        assert changed == ([] if decision is None else [decision.knob])
        if decision is not None:
            now = after.knobs.value(decision.knob)
            assert (decision.before, decision.after) == (state.knobs.value(decision.knob), now)
            assert limits.range(decision.knob).least <= now <= limits.range(decision.knob).most
            assert decision.reason
        assert (after, decision) == decide(each, state, limits), "the rules have no memory but the state"
        state = after


@given(situations(), st.lists(observations, max_size=80))
def test_after_a_change_there_is_time_to_see_what_it_does(situation, seen):
    limits, state = situation
    _, decisions = run(state, limits, seen)
    for first, second in zip(decisions, decisions[1:], strict=False):
        assert first is None or second is None


@given(situations(), observations)
def test_who_is_fed_the_same_for_hours_comes_to_rest(situation, seen):
    limits, state = situation
    intervals = 4000
    _, decisions = run(state, limits, [seen] * intervals)
    made = [decision for decision in decisions if decision is not None]
    for knob in KNOBS:
        steps = [decision.direction for decision in made if decision.knob == knob]
        turns = sum(1 for one, other in zip(steps, steps[1:], strict=False) if one != other)
        # A turn and the one that takes it back, each time after a pause twice as long; at the end every LONGEST_PAUSE.
        pauses = math.log2(LONGEST_PAUSE / FIRST_PAUSE) + intervals / LONGEST_PAUSE
        assert turns <= 2 * (pauses + 1)


@given(situations(), st.lists(observations, max_size=60))
def test_a_process_near_its_limit_is_never_given_more_memory(situation, seen):
    limits, state = situation
    limit = 1 << 30
    limits = replace(limits, rss_limit_bytes=limit)
    near = [replace(each, rss_bytes=int(RSS_ROOM * limit) + 1 + each.rss_bytes) for each in seen]
    _, decisions = run(state, limits, near)
    assert all(decision.direction < 0 for decision in decisions if decision is not None)


@given(st.integers(1, 64), st.integers(1, 200))
def test_a_hungry_loop_gets_no_more_builders_than_the_cap_holds_batches(batches, intervals):
    limits = replace(WIDE, prefetch=Range(1, 64), room_bytes=batches * MIB)
    state = State(Knobs(prefetch=1, threads=0, queue=4))
    for number in range(intervals):
        faster = replace(HUNGRY, batches=10 * 2**number if number < 40 else 10, decode_s=0.0)
        state, _ = decide(faster, state, limits)
        assert state.knobs.prefetch == 1 or (state.knobs.prefetch + 1) * MIB <= limits.room_bytes


@dataclass
class Plant:
    """A loader as a formula: a batch takes ``build_s`` on one builder, and the loop ``step_s``."""

    build_s: float
    step_s: float
    cores: int = 64

    def observe(self, knobs: Knobs) -> Observation:
        rate = min(knobs.prefetch, self.cores) / self.build_s
        waiting = max(0.0, 1 - self.step_s * rate)
        ready = float(knobs.queue) if waiting == 0 else 0.0
        return Observation(
            seconds=1.0,
            batches=round(1000 * min(rate, 1 / max(self.step_s, 1e-9))),
            data_wait_s=waiting,
            queue_wait_s=ready,
            decode_s=0.0,
            p50_bytes=MIB,
            p95_bytes=MIB,
        )

    def settle(self, state: State, limits: Limits, intervals: int = 400) -> tuple[State, list[Decision]]:
        made = []
        for _ in range(intervals):
            state, decision = decide(self.observe(state.knobs), state, limits)
            made += [decision] if decision is not None else []
        return state, made


@given(build_s=st.floats(0.01, 1.0), needed=st.integers(1, 12), start=st.integers(1, 16))
def test_it_finds_the_builders_that_a_loop_needs_and_keeps_them(build_s, needed, start):
    plant = Plant(build_s, step_s=build_s / needed)
    state, made = plant.settle(State(Knobs(start, 0, 4)), replace(WIDE, threads=Range(0, 0)))
    assert plant.observe(state.knobs).waiting <= 0.10
    assert len(made) < 40


def test_builders_that_bring_nothing_are_taken_back():
    plant = Plant(build_s=1.0, step_s=0.0, cores=2)
    state, made = plant.settle(State(Knobs(2, 0, 4)), replace(WIDE, threads=Range(0, 0)), intervals=40)
    assert state.knobs.prefetch == 2
    assert [(decision.before, decision.after) for decision in made[:2]] == [(2, 3), (3, 2)]
    assert "no more batches" in made[1].reason


def test_a_loop_that_never_waits_is_given_less_and_gets_back_what_it_needed():
    plant = Plant(build_s=1.0, step_s=0.52)  # two builders are enough, one isn't
    state, made = plant.settle(START, WIDE, intervals=20)
    assert (state.knobs.queue, state.knobs.prefetch) == (1, 2)
    assert [(decision.knob, decision.after) for decision in made] == [
        ("queue", 2),
        ("queue", 1),
        ("prefetch", 1),
        ("prefetch", 2),
    ]


def test_busy_decoders_get_threads_and_no_builders():
    busy = replace(HUNGRY, decode_s=1.8)
    _, decisions = run(START, WIDE, [busy] * 3)
    assert [decision.knob for decision in decisions if decision] == ["threads"]
    at_most = State(Knobs(prefetch=2, threads=8, queue=4))
    assert run(at_most, WIDE, [busy] * 20)[1] == [None] * 20


def test_what_comes_in_bursts_gets_a_longer_queue():
    _, decisions = run(START, WIDE, [replace(HUNGRY, queue_wait_s=2.0)] * 3)
    assert [(decision.knob, decision.after) for decision in decisions if decision] == [("queue", 6)]


def test_one_bad_interval_changes_nothing():
    _, decisions = run(START, WIDE, [HUNGRY, CALM, HUNGRY, CALM] * 10)
    assert decisions == [None] * 40


def test_uneven_batches_are_planned_with_as_their_larger_ones():
    tight = replace(WIDE, room_bytes=5 * MIB)
    even = replace(HUNGRY, decode_s=0.0, p95_bytes=int(1.2 * MIB))
    uneven = replace(even, p95_bytes=3 * MIB)
    assert run(START, tight, [even] * 3)[1][1] == Decision(
        "prefetch", 2, 3, "next() waited 50% of the time and builders could begin more"
    )
    assert run(START, tight, [uneven] * 3)[1][0] == Decision(
        "prefetch", 2, 1, "the cap has no room for so many batches"
    )


def test_a_process_near_its_limit_gives_back_its_queue_first():
    limits = replace(WIDE, rss_limit_bytes=100)
    _, decisions = run(START, limits, [replace(HUNGRY, rss_bytes=95)] * 9)
    assert [(each.knob, each.after) for each in decisions if each] == [("queue", 2), ("queue", 1), ("prefetch", 1)]
