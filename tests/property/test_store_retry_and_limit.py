from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from penstock import errors
from penstock.errors import PenstockError, StoreError, StoreUnavailable
from penstock.store.limit import RequestLimit, lowered, process_limit, raised
from penstock.store.retry import RetryPolicy, should_retry

WAIT_S = 10.0


def make(kind: type[PenstockError]) -> PenstockError:
    if kind is errors.BudgetHeld:
        return errors.BudgetHeld("x", held_bytes=1, needed_bytes=2, total_bytes=2)
    if kind is errors.CoordinatorRefused:
        return errors.CoordinatorRefused("x", code="NOT_FOUND")
    return kind("x")


ERRORS = st.sampled_from([getattr(errors, name) for name in errors.__all__]).map(make)
POLICIES = st.builds(
    RetryPolicy,
    tries=st.integers(1, 50),
    timeout_s=st.floats(0.1, 100),
    first_delay_s=st.floats(0.001, 10),
    longest_delay_s=st.floats(0.001, 100),
)


@given(ERRORS, st.integers(1, 100), POLICIES, st.floats(0, 1, exclude_max=True))
def test_a_decision(error: PenstockError, attempt: int, policy: RetryPolicy, drawn: float):
    retry, delay_s, reason = should_retry(error, attempt, policy=policy, uniform=lambda: drawn)
    assert retry == (error.retryable and attempt < policy.tries)
    assert reason
    if not retry:
        assert delay_s == 0
    else:
        assert 0 < delay_s <= policy.longest_delay_s
        cap_s = min(policy.longest_delay_s, policy.first_delay_s * 2 ** (attempt - 1))
        assert cap_s / 2 <= delay_s <= cap_s


@given(POLICIES, st.floats(0, 1, exclude_max=True))
def test_the_tries_end_in_time(policy: RetryPolicy, drawn: float):
    waited_s, attempt = 0.0, 1
    while True:
        decision = should_retry(StoreUnavailable("x"), attempt, policy=policy, uniform=lambda: drawn)
        if not decision.retry:
            break
        waited_s += decision.delay_s
        attempt += 1
    assert attempt == policy.tries
    assert waited_s + attempt * policy.timeout_s <= policy.total_s * (1 + 1e-9)


def test_credentials_and_absence_are_never_tried_again():
    for kind in (errors.AccessDenied, errors.ObjectNotFound, errors.PreconditionFailed, errors.StoreFull):
        assert not should_retry(kind("x"), 1, policy=RetryPolicy()).retry


def test_the_wait_is_drawn_anew_each_time():
    waits = {should_retry(StoreUnavailable("x"), 3, policy=RetryPolicy()).delay_s for _ in range(20)}
    assert len(waits) == 20


@given(st.floats(1, 1000), st.integers(1, 1000))
def test_the_limit_stays_between_one_and_its_ceiling(limit: float, ceiling: int):
    limit = min(limit, ceiling)
    assert limit <= raised(limit, ceiling) <= ceiling
    assert 1 <= lowered(limit) <= limit


@given(st.integers(1, 64))
def test_a_full_round_of_answers_raises_the_limit_by_about_one(start: int):
    limit = float(start)
    for _ in range(start):
        limit = raised(limit, 1000)
    assert start + 0.6 < limit <= start + 1


class LimitModel(RuleBasedStateMachine):
    """Any order of beginnings and ends, by one thread that never waits."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = RequestLimit(8)
        self.running: list[object] = []
        self.ended = 0

    @precondition(lambda self: self.limit.stats().in_flight < self.limit.stats().limit)
    @rule()
    def begin(self) -> None:
        holder = self.limit.slot(0.0)
        self.running.append((holder, holder.__enter__()))

    @precondition(lambda self: self.limit.stats().in_flight >= self.limit.stats().limit)
    @rule()
    def begin_too_many(self) -> None:
        with pytest.raises(StoreError, match="PENSTOCK_STORE_CONCURRENCY"), self.limit.slot(0.0):
            pass

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        holder, slot = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        slot.outcome = data.draw(st.sampled_from(["answered", "throttled", "failed"]))
        before = self.limit.stats().limit
        holder.__exit__(None, None, None)
        self.ended += 1
        after = self.limit.stats().limit
        if slot.outcome == "failed":
            assert after == before
        if slot.outcome == "answered":
            assert before <= after <= before + 1

    @rule(ceiling=st.integers(1, 12))
    def change_ceiling(self, ceiling: int) -> None:
        self.limit.set_ceiling(ceiling)

    @invariant()
    def counts_are_right(self) -> None:
        stats = self.limit.stats()
        assert stats.in_flight == len(self.running)
        assert stats.requests_total == self.ended
        assert 1 <= stats.limit <= stats.ceiling
        assert stats.waiting == 0


TestLimit = LimitModel.TestCase


def test_one_burst_of_refusals_halves_the_limit_once():
    limit = RequestLimit(16)
    holders = [limit.slot(0.0) for _ in range(10)]
    slots = [holder.__enter__() for holder in holders]
    for holder, slot in zip(holders, slots, strict=True):
        slot.outcome = "throttled"
        holder.__exit__(None, None, None)
    assert limit.stats().limit == 8
    assert limit.stats().throttled_total == 10
    with limit.slot(0.0) as late:
        late.outcome = "throttled"
    assert limit.stats().limit == 4


def test_a_waiter_goes_on_when_a_place_comes_free_and_never_before():
    limit = RequestLimit(1)
    entered = threading.Event()

    def wait_for_place() -> None:
        with limit.slot(6 * WAIT_S):  # a waiter that nobody wakes comes too late
            entered.set()

    with limit.slot(0.0):
        thread = threading.Thread(target=wait_for_place, daemon=True)
        thread.start()
        while limit.stats().waiting == 0:
            assert thread.is_alive()
        assert not entered.is_set()
    assert entered.wait(WAIT_S)
    thread.join(WAIT_S)


def test_a_raised_ceiling_lets_waiters_in():
    limit = RequestLimit(1)
    entered = threading.Event()

    def wait_for_place() -> None:
        with limit.slot(6 * WAIT_S):  # a waiter that nobody wakes comes too late
            entered.set()

    with limit.slot(0.0):
        thread = threading.Thread(target=wait_for_place, daemon=True)
        thread.start()
        while limit.stats().waiting == 0:
            assert thread.is_alive()
        limit.set_ceiling(2)
        assert entered.wait(WAIT_S)
    thread.join(WAIT_S)


def test_the_process_has_one_limit_and_the_environment_sets_its_ceiling(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PENSTOCK_STORE_CONCURRENCY", "3")
    limit = process_limit()
    assert limit.stats().ceiling == 3
    monkeypatch.delenv("PENSTOCK_STORE_CONCURRENCY")
    assert process_limit() is limit
    assert limit.stats().ceiling == 16
