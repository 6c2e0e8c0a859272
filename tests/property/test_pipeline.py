"""The pipeline against its promises: order, the cap, no stall, whatever the sizes and threads."""

from __future__ import annotations

import gc
import random
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.budget import Budget
from penstock.errors import BudgetHeld, ClosedError, DeadlineExceeded, UnitTooLarge
from penstock.loader import pipeline as pipelines
from penstock.loader.pipeline import Pipeline
from penstock.loader.plan import Unit
from penstock.loader.work import CostChanged, Delivery


def unit(index: int, size: int) -> Unit:
    one = np.array([index], dtype=np.int64)
    return Unit(index, one, one * 0, one * 0, np.array([size], dtype=np.int64), one * 0 - 1, None)


class FillWork:
    """Fills a region with the unit's number, after a random pause; remembers the most that was ever charged."""

    def __init__(self, budget: Budget, jitter: random.Random | None = None) -> None:
        self.budget = budget
        self.jitter = jitter
        self.worst = 0
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def cost_bytes(self, unit):
        return unit.payload_bytes

    def build(self, unit, charge):
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        if self.jitter:
            threading.Event().wait(self.jitter.random() * 0.002)
        with self.lock:
            self.at_once -= 1
        region = charge.region()
        np.frombuffer(region, dtype=np.uint8)[:] = unit.index % 251
        self.worst = max(self.worst, self.budget.charged_bytes)
        return Delivery.of(unit, (unit.index, region))


class Loop:
    """Takes results out of a pipeline, as a loader does."""

    def __init__(self, pipeline):
        self.pipeline = pipeline
        self.close = pipeline.close

    def __iter__(self):
        return self

    def __next__(self):
        result = self.pipeline.peek().result
        self.pipeline.mine.undelivered = None
        return result


def run(units, budget, work, *, concurrency=1, depth=4, stall_timeout_s=20.0, **more):
    pipeline = Pipeline(
        iter(units),
        work,
        budget,
        builders=concurrency,
        depth=depth,
        cancel=lambda: None,
        release=lambda: None,
        stall_timeout_s=stall_timeout_s,
        **more,
    )
    return Loop(pipeline)


@settings(max_examples=60, deadline=None)
@given(
    total=st.integers(1, 100_000),
    shares=st.lists(st.floats(0, 0.5), min_size=1, max_size=60),
    concurrency=st.sampled_from([1, 2, 3, 8]),
    depth=st.integers(1, 10),
    seed=st.integers(0, 1000),
)
def test_never_above_the_cap_never_stalled_always_in_order(total, shares, concurrency, depth, seed):
    budget = Budget(total)
    work = FillWork(budget, random.Random(seed))
    sizes = [int(share * total) for share in shares]
    pipeline = run([unit(i, size) for i, size in enumerate(sizes)], budget, work, concurrency=concurrency, depth=depth)
    held = None  # like a loop variable: the last batch lives while the next one is asked for
    for expected, size in enumerate(sizes):
        index, region = next(pipeline)
        assert index == expected
        assert bytes(memoryview(region)) == bytes([index % 251]) * size
        held = region
    with pytest.raises(StopIteration):
        next(pipeline)
    assert work.worst <= total
    assert budget.peak_bytes <= total
    del held, region
    pipeline.close()
    assert budget.charged_bytes == 0


@settings(max_examples=40, deadline=None)
@given(
    total=st.integers(1, 100_000),
    shares=st.lists(st.floats(0, 0.3), min_size=1, max_size=60),
    turns=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 10)), min_size=1, max_size=12),
    alone=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_builders_and_queue_that_change_all_the_time_lose_and_reorder_nothing(total, shares, turns, alone, seed):
    budget = Budget(total)
    work = FillWork(budget, random.Random(seed))
    units = [unit(i, int(share * total)) for i, share in enumerate(shares)]
    pipeline = run(units, budget, work, concurrency=2, most_builders=8, first_alone=alone)
    seen = []
    for index, region in pipeline:
        assert bytes(memoryview(region)) == bytes([index % 251]) * units[index].payload_bytes
        del region
        seen.append(index)
        builders, depth = turns[index % len(turns)]
        pipeline.pipeline.resize(builders=builders, depth=depth)
    assert seen == list(range(len(shares)))
    assert work.most_at_once <= 8
    assert budget.peak_bytes <= total
    pipeline.close()
    assert budget.charged_bytes == 0


def test_no_more_build_at_once_than_the_last_resize_says():
    budget = Budget(1000)
    work = FillWork(budget, random.Random(1))
    pipeline = run((unit(i, 1) for i in range(200)), budget, work, concurrency=8, depth=4)
    for _ in range(20):
        next(pipeline)
    pipeline.pipeline.resize(builders=1, depth=1)
    for _ in range(40):  # what eight had in hand is through by then
        next(pipeline)
    work.most_at_once = 0
    assert [index for index, _ in pipeline] == list(range(60, 200))
    assert work.most_at_once == 1
    pipeline.close()


def test_the_first_unit_is_built_alone_when_asked_for():
    entered, release, others = threading.Event(), threading.Event(), []

    class First(FillWork):
        def build(self, unit, charge):
            if unit.index == 0:
                entered.set()
                release.wait(10)
            elif not release.is_set():
                others.append(unit.index)
            return super().build(unit, charge)

    budget = Budget(1000)
    pipeline = run([unit(i, 10) for i in range(9)], budget, First(budget), concurrency=4, first_alone=True)
    assert entered.wait(10)
    while len(pipeline.pipeline._slots) < 8:
        time.sleep(0.001)
    release.set()
    assert [index for index, _ in pipeline] == list(range(9))
    assert others == []
    pipeline.close()


def test_kept_batches_raise_at_once_and_dropping_one_resumes(monkeypatch):
    # A thread that an earlier test left could let go of something, as far as the pipeline knows.
    monkeypatch.setattr(pipelines, "_user_threads", lambda: False)
    budget = Budget(100)
    pipeline = run([unit(i, 40) for i in range(5)], budget, FillWork(budget))
    kept = [next(pipeline), next(pipeline)]
    started = time.monotonic()
    with pytest.raises(BudgetHeld) as raised:
        next(pipeline)
    assert time.monotonic() - started < 5
    assert (raised.value.held_bytes, raised.value.needed_bytes, raised.value.total_bytes) == (80, 40, 100)
    assert "80" in str(raised.value) and "40" in str(raised.value) and "100" in str(raised.value)
    del raised
    kept.pop()
    assert next(pipeline)[0] == 2
    kept.clear()
    assert [index for index, _ in pipeline] == [3, 4]
    pipeline.close()


def test_batches_in_dead_cycles_are_held_by_nobody():
    budget = Budget(100)
    pipeline = run([unit(i, 60) for i in range(3)], budget, FillWork(budget))
    gc.disable()
    try:
        for expected in range(3):
            batch = list(next(pipeline))
            assert batch[0] == expected
            batch.append(batch)  # only the cyclic collector can find this one
            del batch
    finally:
        gc.enable()
    pipeline.close()


def test_another_thread_that_drops_a_batch_is_back_pressure_not_an_error():
    budget = Budget(100)
    pipeline = run([unit(i, 60) for i in range(2)], budget, FillWork(budget))
    held = [next(pipeline)]
    hungry = threading.Event()

    def drop_when_the_loop_is_hungry():
        hungry.wait(10)
        while not budget.waiting_count:
            time.sleep(0.001)
        held.clear()

    dropper = threading.Thread(target=drop_when_the_loop_is_hungry)
    dropper.start()
    hungry.set()
    assert next(pipeline)[0] == 1
    dropper.join()
    pipeline.close()


class Broken(FillWork):
    def __init__(self, budget, at):
        super().__init__(budget)
        self.at = at

    def build(self, unit, charge):
        if unit.index == self.at:
            raise OSError("the disk is on fire")
        return super().build(unit, charge)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_batches_before_a_failure_come_first_then_the_error_once_then_the_end(concurrency):
    budget = Budget(1000)
    pipeline = run([unit(i, 10) for i in range(9)], budget, Broken(budget, at=3), concurrency=concurrency)
    assert [next(pipeline)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="on fire"):
        next(pipeline)
    for _ in range(3):
        with pytest.raises(StopIteration):
            next(pipeline)
    pipeline.close()


def test_a_plan_that_fails_delivers_what_was_planned_first():
    def units():
        yield unit(0, 1)
        yield unit(1, 1)
        raise ValueError("the plan is wrong")

    budget = Budget(10)
    pipeline = run(units(), budget, FillWork(budget))
    assert [next(pipeline)[0], next(pipeline)[0]] == [0, 1]
    with pytest.raises(ValueError, match="plan is wrong"):
        next(pipeline)
    with pytest.raises(StopIteration):
        next(pipeline)
    pipeline.close()


def test_a_unit_larger_than_the_budget_is_an_error_with_both_numbers():
    budget = Budget(10)
    pipeline = run([unit(0, 11)], budget, FillWork(budget))
    with pytest.raises(UnitTooLarge) as raised:
        next(pipeline)
    assert (raised.value.needed_bytes, raised.value.total_bytes) == (11, 10)
    pipeline.close()


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_source_that_hangs_ends_at_the_deadline_and_names_the_batch(concurrency):
    release = threading.Event()

    class Hanging(FillWork):
        def build(self, unit, charge):
            release.wait(30)
            return super().build(unit, charge)

    budget = Budget(10)
    pipeline = run([unit(0, 1)], budget, Hanging(budget), concurrency=concurrency, stall_timeout_s=0.2)
    with pytest.raises(DeadlineExceeded, match="batch 0"):
        next(pipeline)
    release.set()
    pipeline.close()


@pytest.mark.parametrize("concurrency", [1, 2])
def test_close_at_any_time_leaves_no_thread_and_no_charge(concurrency):
    before = set(threading.enumerate())
    for taken in range(4):
        budget = Budget(100)
        pipeline = run((unit(i, 30) for i in range(1000)), budget, FillWork(budget), concurrency=concurrency)
        kept = [next(pipeline)[0] for _ in range(taken)]
        assert kept == list(range(taken))
        pipeline.close()
        pipeline.close()
        with pytest.raises(ClosedError):
            next(pipeline)
        assert budget.charged_bytes == 0
    assert set(threading.enumerate()) <= before


def test_close_wakes_a_consumer_that_waits():
    entered, release = threading.Event(), threading.Event()

    class Hanging(FillWork):
        def build(self, unit, charge):
            entered.set()
            release.wait(30)
            return super().build(unit, charge)

    budget = Budget(10)
    pipeline = run([unit(0, 1)], budget, Hanging(budget), concurrency=2)
    outcome = []

    def consume():
        try:
            next(pipeline)
        except ClosedError as error:
            outcome.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    entered.wait(10)
    closer = threading.Thread(target=pipeline.close)
    closer.start()
    consumer.join(10)
    release.set()
    closer.join(10)
    assert len(outcome) == 1


def test_a_changed_cost_is_charged_anew_before_the_unit_is_built_again():
    class Growing(FillWork):
        known = 0

        def cost_bytes(self, unit):
            return unit.payload_bytes + self.known

        def build(self, unit, charge):
            if charge.size_bytes < unit.payload_bytes + 50:
                self.known = 50
                raise CostChanged(self.cost_bytes(unit))
            return super().build(unit, charge)

    budget = Budget(130)
    work = Growing(budget)
    pipeline = run([unit(i, 10) for i in range(4)], budget, work)
    assert [index for index, _ in pipeline] == [0, 1, 2, 3]
    assert budget.peak_bytes <= 130
    pipeline.close()
