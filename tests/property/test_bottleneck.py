"""The verdict on a run, from its shares alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cli.bottleneck import verdict_on
from penstock.observe.rates import Rates

IDLE = Rates(1.0, 1.0, 1.0, 1.0, data_wait=0.9, budget_wait=0.0, plan=0.0, fetch=0.0, decode=0.0)
share = st.floats(0, 1)


@st.composite
def runs(draw):
    """What a pipeline can measure: the producer's shares, and those of its builders, which work side by side."""
    builders = draw(st.integers(1, 8))
    plan = draw(share)
    budget_wait = draw(st.floats(0, 1 - plan))
    busy = draw(st.floats(0, 1 - plan - budget_wait if builders == 1 else 1)) * builders
    fetch = draw(st.floats(0, busy)) if busy else 0.0
    rates = replace(
        IDLE, data_wait=draw(share), plan=plan, budget_wait=budget_wait, fetch=fetch, decode=max(0.0, busy - fetch)
    )
    return rates, builders


@given(runs())
def test_it_is_one_of_four_with_one_sentence(run):
    verdict = verdict_on(*run)
    assert verdict.bottleneck in {"consumer", "storage", "decode", "budget"}
    assert verdict.reason.endswith(".") and "\n" not in verdict.reason and ". " not in verdict.reason


@given(runs())
def test_the_consumer_is_blamed_exactly_when_it_hardly_waits(run):
    rates, builders = run
    assert (verdict_on(rates, builders).bottleneck == "consumer") == (rates.data_wait < 0.10)


@given(runs(), st.sampled_from(["fetch", "decode"]))
def test_more_of_what_is_blamed_changes_nothing(run, stage):
    rates, builders = run
    blamed = {"fetch": "storage", "decode": "decode"}[stage]
    other = {"fetch": "decode", "decode": "fetch"}[stage]
    if rates.data_wait >= 0.10 and getattr(rates, stage) > getattr(rates, other):
        full = replace(rates, **{stage: builders - getattr(rates, other)})
        assert verdict_on(full, builders).bottleneck == blamed


@given(runs())
def test_who_does_not_work_is_not_blamed(run):
    rates, builders = run
    bottleneck = verdict_on(rates, builders).bottleneck
    if rates.decode == 0:
        assert bottleneck != "decode"
    if rates.budget_wait == 0 and rates.fetch + rates.plan > 0:
        assert bottleneck != "budget"


@pytest.mark.parametrize(
    ("shares", "builders", "bottleneck"),
    [
        ({"data_wait": 0.02, "fetch": 0.9}, 1, "consumer"),
        ({"fetch": 0.9, "decode": 0.05}, 1, "storage"),
        ({"fetch": 0.1, "decode": 0.85}, 1, "decode"),
        ({"fetch": 0.2, "budget_wait": 0.7}, 1, "budget"),
        ({"plan": 0.8, "fetch": 0.1}, 1, "storage"),
        ({"fetch": 3.6, "budget_wait": 0.99}, 4, "storage"),  # charged ahead, and all four are busy
        ({"fetch": 1.2, "budget_wait": 0.99}, 4, "budget"),  # the cap lets hardly more than one work
        ({"fetch": 0.5, "decode": 3.2, "budget_wait": 0.99}, 4, "decode"),
    ],
)
def test_cases_that_a_person_would_judge_so(shares, builders, bottleneck):
    assert verdict_on(replace(IDLE, **shares), builders).bottleneck == bottleneck
