"""Blocks and intervals: the same as sets of samples, and cheap to ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.coordinator.blocks import BlockPlan, block_at, block_count, dealt_bounds, join_intervals

ranges = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=8)


def in_them(given_ranges):
    return [sample for start, end in given_ranges for sample in range(start, end)]


@given(ranges)
def test_intervals_are_the_same_samples_ascending_and_apart(some):
    samples = in_them(some)
    if len(samples) != len(set(samples)):
        with pytest.raises(ValueError, match="overlaps"):
            join_intervals(some)
        return
    joined = join_intervals(some)
    assert in_them(joined) == sorted(samples)
    assert all(end < start for (_, end), (start, _) in zip(joined, joined[1:], strict=False))
    assert all(type(bound) is int for pair in joined for bound in pair)  # they go into JSON


def test_numbers_that_no_sample_has_are_no_intervals():
    with pytest.raises(ValueError, match="too large"):
        join_intervals([(0, 1 << 64)])


@given(st.integers(1, 5), st.integers(0, 60), st.data())
def test_blocks_are_dealt_like_cards(world_size, samples, data):
    plan = BlockPlan(samples, 4, True, 1, 0)
    held = [range(rank, block_count(plan), world_size) for rank in range(world_size)]
    cards = [sorted(data.draw(st.tuples(st.integers(0, len(each)), st.integers(0, len(each))))) for each in held]
    starts, ends = dealt_bounds(plan, cards)
    wanted = [
        block_at(plan, each[card]) for each, (first, end) in zip(held, cards, strict=True) for card in range(first, end)
    ]
    assert sorted(zip(starts.tolist(), ends.tolist(), strict=True)) == sorted(wanted)


def test_what_was_done_before_isnt_gone_through_for_each_block():
    class Read(tuple):
        def __hash__(self):
            raise AssertionError("all of it was read")

    plan = BlockPlan(20, 5, False, 0, 0, Read(((0, 5),)))
    assert block_at(plan, 0) == (5, 10)
