"""Units that share windows: nothing is lost, and each window is charged once, in time, with what is allowed."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import UnitTooLarge
from penstock.loader.plan import BatchLimits, plan_units
from penstock.loader.window_plan import HELD_WINDOWS, share_windows
from penstock.order.block_order import Blocks, BlockShuffled, windows_of
from penstock.order.order import Remaining
from penstock.order.split import Split, Steps


def manifest(count):
    lengths = np.random.default_rng(count).integers(0, 100, count)
    return SimpleNamespace(
        row_count=count,
        location_index=np.arange(count, dtype=np.uint32) // 50,
        offset=np.arange(count, dtype=np.int64) * 100,
        length=lengths.astype(np.int64),
        label_id=np.arange(count, dtype=np.int64) % 7,
        crc32c=np.arange(count, dtype=np.int64),
    )


def planned(rows, order, batch=None, rank=0, world=1, target=None):
    limits = BatchLimits(batch or 50, target, 1 << 30)
    steps = None if target else Steps(order.count, Split(batch, rank, world, drop_last=world > 1))
    return list(plan_units(rows, order, limits, None, steps))


@st.composite
def orders(draw):
    count = draw(st.integers(1, 400))
    blocks = Blocks(draw(st.integers(1, 30)), draw(st.integers(1, 8)))
    order = BlockShuffled(0, count, blocks, manifest_hash="ab", seed=draw(st.integers(0, 9)), epoch=0)
    cuts = sorted(draw(st.sets(st.integers(0, count), max_size=6)))
    done = list(zip(cuts[::2], cuts[1::2], strict=False))
    return Remaining(order, done) if done else order


def check(units, shared):
    """What must hold for any plan; returns the windows in the order in which they begin."""
    begun, charged, users = [], {}, {}
    assert len(shared) == len(units)
    for plain, unit in zip(units, shared, strict=True):
        assert unit.sample_ids.tolist() == plain.sample_ids.tolist() and unit.index == plain.index
        needed = [share.window.number for share in unit.shares]
        # what was needed before and isn't any more went with its last user, all of whom are built without more memory
        charged = {number: window for number, window in charged.items() if number >= needed[0]}
        assert unit.kept_bytes == sum(window.charge_bytes for window in charged.values())
        for window in unit.begins:
            assert not begun or window.number > begun[-1].number, "each once, and in order"
            begun.append(window)
            charged[window.number] = window
        assert set(needed) <= set(charged), "charged no later than with the first unit that takes from it"
        assert len(charged) <= max(HELD_WINDOWS, len(needed))
        row = 0
        for share in unit.shares:
            samples, rows = share.window.samples, slice(share.first, share.end)
            assert share.first == row and share.end > row
            row = share.end
            for name in ("sample_ids", "locations", "offsets", "lengths", "crcs"):
                assert np.array_equal(getattr(samples, name)[share.places], getattr(plain, name)[rows]), name
            users[share.window.number] = users.get(share.window.number, 0) + 1
        assert row == len(plain.sample_ids)
    for window in begun:
        assert window.users == users[window.number], "a window goes with its last user, no sooner, no later"
        assert (np.diff(window.samples.sample_ids) > 0).all()
    return begun


@given(order=orders(), batch=st.integers(1, 60))
def test_one_loader(order, batch):
    rows = manifest(400)
    units = planned(rows, order, batch)
    windows = check(units, list(share_windows(iter(units), windows_of(order))))
    assert sum(len(window.samples.sample_ids) for window in windows) == order.count


@given(order=orders(), target=st.integers(1, 4000))
def test_batches_that_are_cut_by_bytes(order, target):
    units = planned(manifest(400), order, target=target)
    check(units, list(share_windows(iter(units), windows_of(order))))


@given(order=orders(), batch=st.integers(1, 20), world=st.integers(2, 5))
def test_a_rank_holds_only_what_it_takes_itself(order, batch, world):
    rows, held = manifest(400), []
    for rank in range(world):
        units = planned(rows, order, batch, rank, world)
        for window in check(units, list(share_windows(iter(units), windows_of(order)))):
            held += window.samples.sample_ids.tolist()
    assert len(held) == len(set(held)) == order.count // (batch * world) * batch * world


def test_units_come_as_soon_as_their_windows_and_the_next_one_are_known():
    order = BlockShuffled(0, 1000, Blocks(5, 4), manifest_hash="ab", seed=0, epoch=0)
    units, asked = planned(manifest(1000), order, 10), []

    def watched():
        for unit in units:
            asked.append(unit.index)
            yield unit

    shared = share_windows(watched(), windows_of(order))
    assert next(shared).index == 0
    assert len(asked) == 5, "two windows of two units each, and the first unit behind them"


def test_many_small_units_are_planned_in_time_that_grows_with_their_number():
    # 20,000 units of one sample in windows of 5,000: were every one compared with all that wait, this took minutes.
    order = BlockShuffled(0, 20_000, Blocks(50, 100), manifest_hash="ab", seed=0, epoch=0)
    units = planned(manifest(20_000), order, 1)
    assert len(check(units, list(share_windows(iter(units), windows_of(order))))) == 4


def test_what_was_planned_before_a_plan_fails_comes_first():
    order = BlockShuffled(0, 1000, Blocks(5, 4), manifest_hash="ab", seed=0, epoch=0)
    units = planned(manifest(1000), order, 10)

    def failing():
        yield from units[:17]
        raise UnitTooLarge("the 18th", needed_bytes=2, total_bytes=1)

    shared = share_windows(failing(), windows_of(order))
    assert [unit.index for unit in itertools.islice(shared, 17)] == list(range(17))
    with pytest.raises(UnitTooLarge, match="the 18th"):
        next(shared)
