"""Speeds out of two readings."""

import pytest

from penstock.observe.rates import rates_between


def test_rates_are_differences_by_seconds():
    before = {"delivered_samples_total": 100, "delivered_bytes_total": 1000, "data_wait_s": 1.0, "fetch_s": 2.0}
    after = {"delivered_samples_total": 300, "delivered_bytes_total": 5000, "data_wait_s": 2.0, "fetch_s": 10.0}
    rates = rates_between(before, after, 4.0)
    assert (rates.samples_per_s, rates.bytes_per_s) == (50, 1000)
    assert (rates.data_wait, rates.fetch) == (0.25, 2.0)
    assert (rates.decode, rates.budget_wait, rates.batches_per_s) == (0, 0, 0)


def test_a_counter_that_went_back_is_no_negative_rate():
    assert rates_between({"delivered_samples_total": 9}, {"delivered_samples_total": 3}, 1.0).samples_per_s == 0
    assert rates_between({}, {}, 2.0).seconds == pytest.approx(2.0)
