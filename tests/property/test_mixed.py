"""Mixtures: every source in its share at every prefix, each of its samples once a pass, from anywhere, also resumed."""

from __future__ import annotations

import json
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from penstock.dataset.joined import Source
from penstock.errors import ConfigError, ResumeError
from penstock.order.interleave import MOST_POSITIONS, MOST_SHARES, Interleave, _divided
from penstock.order.mixed import Mixed, Recipe, Segment
from penstock.order.mixture import mix, shares_of
from penstock.order.order import Remaining, Sequential, Shuffled
from penstock.order.split import Split, Steps

SHARE = st.one_of(st.integers(0, 5), st.integers(1, 1000), st.sampled_from([1, 2, 3, 5, 8, 13, 21, 34]))
SHARES = st.lists(SHARE, min_size=1, max_size=9).filter(any)


def turns_of(shares, key="k", count=2000):
    return Interleave(shares, key).at(np.arange(count))


# Which source: Interleave


@given(shares=SHARES, key=st.text(max_size=5))
def test_every_prefix_has_each_source_in_its_share(shares, key):
    count = 700
    sources, indexes = turns_of(shares, key, count)
    of_each = np.cumsum(np.eye(len(shares), dtype=np.int64)[sources], axis=0)
    assert np.array_equal(indexes, of_each[np.arange(count), sources] - 1)  # so many came before
    exact = np.arange(1, count + 1)[:, None] * (np.array(shares) / sum(shares))
    worst = abs(of_each - exact).max(axis=0)
    assert (worst <= Interleave(shares, key).most_error + 1e-9).all()
    periods = np.arange(sum(shares), count + 1, sum(shares))
    assert np.array_equal(of_each[periods - 1], np.outer(periods // sum(shares), shares))


@given(shares=SHARES)
def test_how_far_counts_stray_has_a_bound(shares):
    most_error = Interleave(shares, "k").most_error
    assert most_error.max() < 3
    if sum(share > 0 for share in shares) <= 2:
        assert most_error.max() < 1


BIG = st.lists(st.one_of(SHARE, st.integers(0, MOST_SHARES // 9)), min_size=1, max_size=9).filter(any)


@given(shares=BIG, positions=st.lists(st.integers(0, MOST_POSITIONS - 1), min_size=1, max_size=9))
def test_any_position_is_the_place_of_its_sample_and_as_counts_say(shares, positions):
    turns = Interleave(shares, "k")
    at = np.array(positions)
    sources, indexes = turns.at(at)
    assert np.array_equal(turns.position_of(sources, indexes), at)
    for position, source, index in zip(positions, sources.tolist(), indexes.tolist(), strict=True):
        before, after = turns.counts(position), turns.counts(position + 1)
        assert before[source] == index
        assert (after - before).tolist() == [int(number == source) for number in range(len(shares))]
        assert before.sum() == position
        for count, share in zip(before.tolist(), shares, strict=True):
            assert abs(count * sum(shares) - position * share) < 3 * sum(shares)


@given(by=st.integers(1, 2**49), times=st.integers(1, 2**48), value=st.integers(1, 2**49), more=st.integers(-1, 1))
def test_division_is_exact_where_float64_alone_is_not(by, times, value, more):
    near = min(value, 2**50 * by // times)  # a quotient that can be any, and two that are next to a whole number
    for numbers in ((near, times, by), (value, by, by), (1, by * min(value, 2**61 // by), by)):
        quotient = (numbers[0] * numbers[1] + more) // numbers[2]
        assume(0 <= quotient < 2**51)
        assert _divided(*(np.array([number]) for number in numbers), more).tolist() == [quotient]


@given(shares=BIG)
def test_a_whole_period_is_exact_however_long(shares):
    assert Interleave(shares, "k").counts(sum(shares)).tolist() == shares


def test_no_pattern_repeats():
    # Of the 216 arrangements of nine neighbours that three equal sources can have, 500 such show most, none very often.
    sources, _ = turns_of([1, 1, 1], count=9 * 500)
    arrangements = Counter(map(bytes, sources.astype(np.uint8).reshape(-1, 9)))
    assert len(arrangements) > 180
    assert max(arrangements.values()) < 15
    # The distance between neighbours of a rare source varies as much as it can: up to twice the mean.
    rare = np.flatnonzero(turns_of([99, 1], count=50_000)[0] == 1)
    gaps = np.diff(rare)
    assert gaps.min() < 20 and gaps.max() > 180
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1] + 0.5) < 0.1  # as of uniform places in strata: -1/2


def test_another_key_is_another_sequence():
    assert (turns_of([1, 1], "a")[0] != turns_of([1, 1], "b")[0]).mean() > 0.4


def test_the_turns_are_the_ones_that_states_were_saved_in():
    # See test_order.py: whoever changes these raises the version in state.py.
    sources, indexes = Interleave([7, 2, 1], "golden").at(np.array([0, 1, 2, 3, 1000, 10**12]))
    assert (sources.tolist(), indexes.tolist()) == ([0, 0, 1, 0, 0, 1], [0, 1, 0, 2, 700, 2 * 10**11])


# Weights


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ([0.7, 0.3], [7, 3]),
        ([2, 4, 0], [1, 2, 0]),
        ([1e-3, 1], [1, 1000]),
        ([np.float64(0.1), np.int64(1)], [1, 10]),
        ([0.5], [1]),
    ],
)
def test_weights_become_whole_numbers_in_the_same_proportion(weights, shares):
    assert shares_of(weights, ["s"] * len(weights)) == shares


@given(weights=st.lists(st.one_of(st.floats(0, 1e300), st.integers(0, 10**20)), min_size=1, max_size=9).filter(any))
def test_any_weights_come_to_shares_that_can_be_counted_in(weights):
    shares = shares_of(weights, ["s"] * len(weights))
    assert 1 <= sum(shares) <= MOST_SHARES
    total = sum(weights) or 1
    assume(total < float("inf"))
    for weight, share in zip(weights, shares, strict=True):
        assert (share > 0) == (weight > 0)
        assert abs(share / sum(shares) - weight / total) < 1e-13


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sources": "a"}, "give a list"),
        ({"sources": []}, "there are 0 sources"),
        ({"sources": ["a", "a"]}, "'a' is there twice"),
        ({"sources": ["a", 1]}, "give a dataset link as text"),
        ({"sources": ["a", ""]}, "empty dataset link"),
        ({"weights": [1]}, "1 weights for 2 sources"),
        ({"weights": [1, -1]}, "weight of source 'b' is -1"),
        ({"weights": [1, float("nan")]}, "weight of source 'b' is nan"),
        ({"weights": [1, True]}, "weight of source 'b' is True"),
        ({"weights": [1, "x"]}, "weight of source 'b' is 'x'"),
        ({"weights": [0, 0]}, "all weights are 0"),
        ({"weights": {"a": 1, "c": 1}}, "different names: b, c"),
        ({"stop": "last"}, "stop is 'last'"),
        ({"length": 0}, "length is 0"),
        ({"labels": "other"}, "labels is 'other'"),
        ({"seed": 0.5}, "seed is 0.5"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(arguments, says):
    with pytest.raises(ConfigError, match=says):
        mix(**{"sources": ["a", "b"], **arguments})


def test_sources_may_have_names():
    mixture = mix({"x": "left", "y": "right@refresh"}, {"y": 3, "x": 1})
    assert (mixture.names, mixture.links, mixture.weights) == (("x", "y"), ("left", "right@refresh"), (1, 3))
    assert mix(["left"]).names == ("left",)
    assert pickle.loads(pickle.dumps(mixture)) == mixture  # as a torch DataLoader sends it to its workers


# Which sample: Mixed


def sources_of(counts):
    firsts = np.cumsum([0, *counts]).tolist()
    return [Source(f"s{at}", firsts[at], count, f"h{at}", "base") for at, count in enumerate(counts)]


def visit(source, number_of_pass):
    return Shuffled(
        source.first_id, source.count, manifest_hash=f"{source.manifest_hash} {number_of_pass}", seed=1, epoch=2
    )


def recipe(sources, shares, stop="first"):
    hashes = tuple(source.manifest_hash for source in sources)
    return Recipe(hashes, (Segment(0, tuple(shares)),), 4, stop, "random")


def mixed(counts, shares, stop="first", key="k"):
    sources = sources_of(counts)
    return Mixed(sources, recipe(sources, shares, stop), visit, key=key)


def ids(order, start=0, end=None):
    return order.at(np.arange(start, order.count if end is None else end))


COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@given(counts=COUNTS)
def test_by_size_an_epoch_has_each_sample_once(counts):
    for stop in ("first", "all"):
        assert sorted(ids(mixed(counts, counts, stop)).tolist()) == list(range(sum(counts)))


@given(counts=COUNTS, data=st.data())
def test_each_source_is_seen_in_its_own_order_pass_after_pass(counts, data):
    shares = data.draw(st.lists(SHARE, min_size=len(counts), max_size=len(counts)).filter(any))
    length = data.draw(st.integers(1, 400))
    found = ids(mixed(counts, shares, length))
    assert len(found) == length
    for source in sources_of(counts):
        own = found[(found >= source.first_id) & (found < source.first_id + source.count)].tolist()
        expected = [
            sample
            for number in range(-(-len(own) // source.count))
            for sample in visit(source, number).at(np.arange(source.count)).tolist()
        ]
        assert own == expected[: len(own)]


@given(counts=COUNTS, data=st.data())
def test_an_epoch_ends_where_it_says(counts, data):
    shares = data.draw(st.lists(st.integers(1, 30), min_size=len(counts), max_size=len(counts)))
    first, every = mixed(counts, shares, "first"), mixed(counts, shares, "all")
    assert max(Counter(ids(first).tolist()).values()) == 1
    assert max(Counter(ids(first, 0, first.count + 1).tolist()).values()) == 2  # the next one would be a repetition
    assert len(set(ids(every).tolist())) == sum(counts)
    assert len(set(ids(every, 0, every.count - 1).tolist())) < sum(counts)


@given(counts=COUNTS, data=st.data())
def test_any_position_can_be_asked_alone(counts, data):
    order = mixed(counts, [1 + count % 3 for count in counts], 10**6)
    positions = np.array(data.draw(st.lists(st.integers(0, 10**6 - 1), min_size=1, max_size=20)))
    assert order.at(positions).tolist() == [int(order.at(positions[at : at + 1])[0]) for at in range(len(positions))]


def test_a_source_of_weight_0_never_comes():
    assert set(ids(mixed([5, 5], [1, 0])).tolist()) == set(range(5))
    with pytest.raises(ConfigError, match="'s1' has weight 0 and would never be seen whole"):
        mixed([5, 5], [1, 0], "all")


def test_an_epoch_that_would_not_end_is_refused():
    with pytest.raises(ConfigError, match="would have 2.8e"):
        mixed([10**12, 5], [1, MOST_SHARES - 1], "all")
    assert mixed([10**12, 5], [1, MOST_SHARES - 1], "first").count == 5
    with pytest.raises(ConfigError, match="source 's1' has no samples"):
        mixed([5, 0], [1, 1])


# Going on


def resumed(saved, now, done):
    saved.require(now, [f"s{at}" for at in range(len(now.hashes))])
    return saved if saved.shares == now.shares else saved.with_shares(now.shares, done)


def test_a_recipe_comes_back_from_its_text():
    made = Recipe(("a", "b"), (Segment(0, (7, 3)), Segment(50, (1, 1))), 4, "first", "random")
    assert Recipe.read(made.text()) == made
    assert Recipe.read("random") is None


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"segments": []}, "can't hold from"),
        ({"segments": [{"start": 1, "shares": [1, 1]}]}, "can't hold from"),
        ({"segments": [{"start": 0, "shares": [1, 1]}, {"start": 0, "shares": [1, 1]}]}, "can't hold from"),
        ({"segments": [{"start": 0, "shares": [1]}]}, "2 sources can't have shares"),
        ({"segments": [{"start": 0, "shares": [-1, 2]}]}, "2 sources can't have shares"),
        ({"segments": [{"start": 0, "shares": [0, 0]}]}, "2 sources can't have shares"),
        ({"segments": [{"start": 0}]}, "KeyError"),
        ({"hashes": 3}, "TypeError"),
    ],
)
def test_a_recipe_that_cannot_be_is_no_state(part, says):
    made = json.loads(Recipe(("a", "b"), (Segment(0, (7, 3)),), 4, "first", "random").text().removeprefix("mix "))
    with pytest.raises(ResumeError, match=says):
        Recipe.read("mix " + json.dumps({**made, **part}))


@settings(max_examples=60)
@given(counts=COUNTS, data=st.data())
def test_a_chain_of_runs_on_any_ranks_takes_what_one_would(counts, data):
    shares = data.draw(st.lists(st.integers(1, 30), min_size=len(counts), max_size=len(counts)))
    order = mixed(counts, shares, data.draw(st.sampled_from(["first", "all", 300])))
    expected, taken, done = ids(order).tolist(), [], 0
    while done < order.count:
        left = Remaining(order, [(0, done)] if done else [])
        batch, world = data.draw(st.integers(2, 40)), data.draw(st.integers(1, 4))
        try:
            ranks = [Steps(left.count, Split(batch, rank, world)) for rank in range(world)]
        except ConfigError:
            ranks, world = [Steps(left.count, Split(batch, 0, 1))], 1
        count = data.draw(st.integers(1, ranks[0].count))
        for step in range(count):
            for rank in ranks:
                taken += left.at(np.arange(*rank.batch(step))).tolist()
        done += ranks[0].end(count)
    assert taken == expected


@settings(max_examples=60)
@given(counts=COUNTS, data=st.data())
def test_with_other_weights_each_source_goes_on_at_its_own_count(counts, data):
    sources, length = sources_of(counts), 600
    some_shares = st.lists(st.integers(1, 30), min_size=len(counts), max_size=len(counts))
    made = recipe(sources, data.draw(some_shares), length)
    changes = sorted(data.draw(st.lists(st.integers(0, length), max_size=3)))
    for change in changes:
        again = recipe(sources, data.draw(some_shares), length)
        before = ids(Mixed(sources, made, visit, key="k"), 0, change)
        made = resumed(made, again, [(0, change)] if change else [])
        after = Mixed(sources, made, visit, key="k")
        assert np.array_equal(ids(after, 0, change), before)  # what is done stays done
        since = made.segments[-1].start  # not here, if the weights were drawn as they had been
        rest = after.turns(np.arange(since, length))[0]
        share = np.array(again.shares) / sum(again.shares)
        errors = np.cumsum(np.eye(len(counts))[rest], axis=0) - np.outer(np.arange(1, length - since + 1), share)
        assert not rest.size or (abs(errors).max(axis=0) <= after.most_error + 1e-9).all()
        made = Recipe.read(made.text())
    order = Mixed(sources, made, visit, key="k")
    found = ids(order)
    assert order.counts(length).tolist() == [
        int(((found >= source.first_id) & (found < source.first_id + source.count)).sum()) for source in sources
    ]
    for source in sources:  # no sample is lost or repeated within a pass, whatever happened to the weights
        own = found[(found >= source.first_id) & (found < source.first_id + source.count)]
        for start in range(0, len(own), source.count):
            assert len(set(own[start : start + source.count].tolist())) == len(own[start : start + source.count])


def test_after_a_change_of_weights_the_epoch_ends_where_the_rest_says():
    sources = sources_of([100, 100])
    made = recipe(sources, [1, 1])
    assert Mixed(sources, made, visit, key="k").count == 200
    made = resumed(made, recipe(sources, [3, 1]), [(0, 100)])  # 50 of each are left
    order = Mixed(sources, made, visit, key="k")
    assert 100 + 66 <= order.count <= 100 + 68
    assert max(Counter(ids(order).tolist()).values()) == 1


def test_what_was_not_changed_goes_on_as_it_was():
    sources = sources_of([9, 9])
    made = resumed(recipe(sources, [1, 2]), recipe(sources, [3, 1]), [(0, 4)])
    assert resumed(made, recipe(sources, [3, 1]), [(0, 5), (6, 7)]) is made
    again = resumed(made, recipe(sources, [1, 1]), [(0, 4)])  # nothing was taken since the last change
    assert again.segments == (Segment(0, (1, 2)), Segment(4, (1, 1)))


@pytest.mark.parametrize(
    ("now", "done", "says"),
    [
        (
            Recipe(("h0", "h2"), (Segment(0, (1, 2)),), 4, "first", "random"),
            [],
            "source 's1' was 'h1' and is 'h2' now",
        ),
        (Recipe(("h0", "h1"), (Segment(0, (1, 2)),), 5, "first", "random"), [], "the seed was 4 and is 5 now"),
        (Recipe(("h0", "h1"), (Segment(0, (1, 2)),), 4, 100, "random"), [], "the stop was 'first' and is 100 now"),
        (Recipe(("h0", "h1"), (Segment(0, (1, 2)),), 4, "first", "sequential"), [], "order within the sources"),
        (Recipe(("h0", "h1"), (Segment(0, (2, 1)),), 4, "first", "random"), [(0, 2), (4, 6)], "isn't the beginning"),
        (Recipe(("h0", "h1"), (Segment(0, (2, 1)),), 4, "first", "random"), [(4, 6)], "isn't the beginning"),
    ],
)
def test_anything_else_is_refused_with_the_reason(now, done, says):
    with pytest.raises(ResumeError, match=says):
        resumed(recipe(sources_of([9, 9]), [1, 2]), now, done)


def test_sequential_sources_come_ascending():
    sources = sources_of([50, 20])
    order = Mixed(
        sources, recipe(sources, [5, 2]), lambda source, _: Sequential(source.first_id, source.count), key="k"
    )
    found = ids(order)
    assert [sample for sample in found.tolist() if sample < 50] == list(range(50))
    assert [sample for sample in found.tolist() if sample >= 50] == list(range(50, 70))
