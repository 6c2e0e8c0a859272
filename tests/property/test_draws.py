"""Orders that draw: evaluable anywhere, and as likely as they say. Seeds are fixed, so that nothing here is luck."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigError
from penstock.order.draws import AliasTable, Weighted, WithReplacement
from penstock.order.keyed import Keyed, scaled


def replacement(size, count=None, *, first=0, seed=0, epoch=0, manifest_hash="ab"):
    return WithReplacement(first, size, count, manifest_hash=manifest_hash, seed=seed, epoch=epoch)


def weighted(weights, count=None, *, first=0, seed=0, epoch=0, manifest_hash="ab"):
    return Weighted(first, AliasTable(weights), count, manifest_hash=manifest_hash, seed=seed, epoch=epoch)


def drawn(order):
    return order.at(np.arange(order.count))


def is_unlikely(counts, probabilities):
    """Whether chi-square says that counts aren't of these probabilities, at odds of one in a million.

    Its quantile is that of Wilson and Hilferty, "The Distribution of Chi-Square", 1931.
    """
    expected = probabilities * counts.sum()
    assert expected.min() >= 5
    freedom = len(counts) - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    limit = freedom * (1 - 2 / (9 * freedom) + 4.753 * math.sqrt(2 / (9 * freedom))) ** 3
    return statistic > limit


def test_draws_with_replacement_are_uniform_and_a_biased_one_would_be_seen():
    size = 100
    counts = np.bincount(drawn(replacement(size, 200_000, seed=3)), minlength=size)
    assert not is_unlikely(counts, np.full(size, 1 / size))
    biased = np.full(size, 1 / size)
    biased[0] *= 1.2  # one id in a hundred comes a fifth too rarely
    assert is_unlikely(counts, biased / biased.sum())


def test_draws_with_replacement_repeat_as_often_as_chance_does():
    # Of n draws from n, n / e ids never come; the standard deviation is sqrt(n (1/e - 2/e^2)).
    size = 100_000
    missing = size - len(np.unique(drawn(replacement(size, seed=5))))
    assert abs(missing - size / math.e) < 5 * math.sqrt(size * (1 / math.e - 2 / math.e**2))


def test_neighbouring_draws_and_epochs_are_not_related():
    size, count = 20, 200_000
    ids = drawn(replacement(size, count + 1, seed=1))
    other = drawn(replacement(size, count + 1, seed=1, epoch=1))
    for pairs in (ids[:-1] * size + ids[1:], ids[:-1] * size + other[:-1]):
        assert not is_unlikely(np.bincount(pairs, minlength=size * size), np.full(size * size, size**-2))


def test_large_sets_are_drawn_from_their_whole_range():
    size = 10**10
    tenths = np.bincount(drawn(replacement(size, 100_000, first=7)) * 10 // (size + 7), minlength=10)
    assert len(tenths) == 10
    assert not is_unlikely(tenths, np.full(10, 0.1))


@given(bits=st.lists(st.integers(0, 2**64 - 1), min_size=1), size=st.integers(1, 2**63 - 1))
def test_scaled_is_the_upper_half_of_the_product(bits, size):
    found = scaled(np.array(bits, dtype=np.uint64), np.uint64(size))
    assert found.tolist() == [number * size >> 64 for number in bits]


WEIGHTS = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6), st.integers(1, 5)), min_size=1, max_size=60)


@given(weights=WEIGHTS.filter(any))
def test_an_alias_table_has_the_probabilities_of_its_weights(weights):
    exact = np.array(weights, dtype=float) / math.fsum(weights)
    found = AliasTable(weights).probabilities()
    assert abs(found - exact).max() < 2**-32
    assert ((found > 0) == (exact > 0)).all()


def test_extreme_weights_neither_overflow_nor_vanish():
    found = AliasTable([1e-300, 1e308, 1e308, 0, 5e-324]).probabilities()
    assert found[1:4].tolist() == pytest.approx([0.5, 0.5, 0])
    assert 0 < found[0] < 2**-31
    assert AliasTable([1, 3, 1, 3]).probabilities().tolist() == [1 / 8, 3 / 8, 1 / 8, 3 / 8]  # pairs that fit exactly
    assert AliasTable([3]).probabilities().tolist() == [1]
    assert AliasTable([7] * 1000).probabilities().tolist() == [1 / 1000] * 1000


def test_weighted_draws_are_as_likely_as_their_weights_and_others_would_be_seen():
    weights = 1.0 + np.arange(50) % 7
    weights[10] = 0
    table = AliasTable(weights)
    order = Weighted(1000, table, 300_000, manifest_hash="ab", seed=2, epoch=1)
    counts = np.bincount(drawn(order) - 1000, minlength=50)
    assert counts[10] == 0
    some, exact = weights > 0, weights / weights.sum()
    assert not is_unlikely(counts[some], exact[some])
    biased = weights.copy()
    biased[11] *= 1.2
    assert is_unlikely(counts[some], (biased / biased.sum())[some])


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([1, -2], r"weights\[1\] is -2.0, one of 1 that are negative"),
        ([1, math.nan, math.inf], r"weights\[1\] is nan, one of 2"),
        ([0, 0], "all 2 weights are 0"),
        ([], "have shape"),
        ([[1, 2]], "have shape"),
        (["a"], "aren't numbers"),
    ],
)
def test_weights_that_cannot_be_drawn_by_are_refused(weights, says):
    with pytest.raises(ConfigError, match=says):
        AliasTable(weights)


@pytest.mark.parametrize(("size", "count"), [(0, 1), (5, -1)])
def test_what_cannot_be_drawn_is_refused(size, count):
    with pytest.raises(ConfigError, match="can't be drawn"):
        replacement(size, count)


def test_nothing_can_be_drawn_from_nothing():
    assert drawn(replacement(0)).tolist() == []


@given(count=st.integers(1, 10**12), data=st.data(), by_weight=st.booleans())
def test_any_position_can_be_asked_alone_and_in_any_order(count, data, by_weight):
    order = weighted([3, 0, 1, 2], count, first=50) if by_weight else replacement(10**9, count, first=50)
    positions = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=20)))
    together = order.at(positions)
    assert together.dtype == np.int64
    assert together.tolist() == [int(order.at(positions[at : at + 1])[0]) for at in range(len(positions))]
    assert (together >= 50).all()


@pytest.mark.parametrize("make", [replacement, lambda size, **key: weighted(np.arange(1, size + 1), **key)])
def test_draws_depend_on_manifest_seed_and_epoch_and_on_nothing_else(make):
    base = drawn(make(1000))
    assert np.array_equal(base, drawn(make(1000)))
    for other in ({"seed": 1}, {"epoch": 1}, {"manifest_hash": "cd"}):
        assert (drawn(make(1000, **other)) != base).sum() > 980


def test_the_draws_are_the_ones_that_states_were_saved_in():
    # See test_order.py: whoever changes these raises the version in state.py.
    positions = np.array([0, 1, 500, 10**9])
    assert replacement(10**7, 10**10, seed=1, epoch=2).at(positions).tolist() == [3816168, 7602289, 6155195, 7516681]
    assert weighted(np.arange(10**4), 10**10, seed=1, epoch=2).at(positions).tolist() == [9908, 8489, 5953, 563]
    assert AliasTable(np.arange(10**4)).hash == "18195773e5d2fcfb"
    assert Keyed("golden").bits(np.array([0, 1, 2**40])).tolist() == [
        7716956766348326761,
        17429957948907721335,
        11912589006275013226,
    ]
