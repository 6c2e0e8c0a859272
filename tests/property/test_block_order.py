"""Block shuffles are permutations, can be asked anywhere, and keep to their blocks and windows."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigError
from penstock.order.block_order import Blocks, BlockShuffled, blocks_of

cuts = st.builds(Blocks, block_samples=st.integers(1, 60), window_blocks=st.integers(1, 20))


def shuffled(count, blocks, first=0, seed=0, epoch=0, manifest_hash="ab"):
    return BlockShuffled(first, count, blocks, manifest_hash=manifest_hash, seed=seed, epoch=epoch)


def ids_at(order, start=0, end=None):
    return order.at(np.arange(start, order.count if end is None else end))


@given(first=st.integers(0, 10**12), count=st.integers(0, 3000), blocks=cuts, seed=st.integers(0, 2**64))
def test_every_id_once(first, count, blocks, seed):
    ids = ids_at(shuffled(count, blocks, first, seed))
    assert ids.dtype == np.int64
    assert np.array_equal(np.sort(ids), np.arange(first, first + count))


@given(count=st.integers(1, 3000), blocks=cuts, seed=st.integers(0, 100))
def test_a_window_is_whole_blocks_and_a_block_is_in_one_window(count, blocks, seed):
    order = shuffled(count, blocks, seed=seed)
    positions = np.arange(count)
    windows = order.windows_at(positions)
    assert (np.diff(windows) >= 0).all() and windows[0] == 0
    block_of = ids_at(order) // blocks.block_samples
    for window in range(int(windows[-1]) + 1):
        found, samples = np.unique(block_of[windows == window], return_counts=True)
        is_last = window == windows[-1]
        assert len(found) == blocks.window_blocks or (is_last and 1 <= len(found) <= blocks.window_blocks)
        short = found == (count - 1) // blocks.block_samples
        assert (samples[~short] == blocks.block_samples).all()
    pairs = {(int(block), int(window)) for block, window in zip(block_of, windows, strict=True)}
    assert len(pairs) == -(-count // blocks.block_samples)


@given(count=st.integers(1, 10**10), data=st.data())
def test_any_position_can_be_asked_alone(count, data):
    order = shuffled(count, Blocks(data.draw(st.integers(1, 10**6)), data.draw(st.integers(1, 10**4))))
    start = data.draw(st.integers(0, count - 1))
    end = data.draw(st.integers(start, min(count, start + 40)))
    together = ids_at(order, start, end)
    assert together.tolist() == [int(ids_at(order, at, at + 1)[0]) for at in range(start, end)]
    assert ((together >= 0) & (together < count)).all()


def test_the_order_depends_on_manifest_seed_epoch_and_cut_and_on_nothing_else():
    blocks = Blocks(10, 8)
    base = ids_at(shuffled(1000, blocks))
    assert np.array_equal(base, ids_at(shuffled(1000, blocks)))
    others = [
        shuffled(1000, blocks, seed=1),
        shuffled(1000, blocks, epoch=1),
        shuffled(1000, blocks, manifest_hash="c"),
    ]
    for other in [*others, shuffled(1000, Blocks(11, 8)), shuffled(1000, Blocks(10, 7))]:
        assert (ids_at(other) != base).sum() > 800


def test_the_order_is_the_one_that_states_were_saved_in():
    # Whoever changes it raises the version in state.py; see the same test of the random order.
    places = {}
    for count, blocks in ((1000, Blocks(16, 4)), (10**7, Blocks(400, 64))):
        order = shuffled(count, blocks, seed=1, epoch=2)
        places[count] = order.at(np.array([0, 1, count // 2, count - 1])).tolist()
    assert places == {1000: [657, 659, 589, 862], 10**7: [2790709, 3513820, 3323901, 7966385]}


def test_the_short_block_is_anywhere_as_often_as_any_other():
    # 4 blocks, the last one of 1 sample: over 2,000 orders each should be first 500 times; five sigma is 97.
    first = np.zeros(4, dtype=int)
    for seed in range(2000):
        first[ids_at(shuffled(16, Blocks(5, 1), seed=seed), 0, 1)[0] // 5] += 1
    assert abs(first - 500).max() < 97


def test_each_window_has_a_permutation_of_its_own():
    # 2,000 windows of 8 samples from 4 blocks: each place within the window's own sorted ids comes up at each place in
    # it 250 times; five sigma is 74. Were windows alike, it would be 0 or 2,000.
    ids = ids_at(shuffled(16_000, Blocks(2, 4))).reshape(2000, 8)
    ranks = ids.argsort(axis=1).argsort(axis=1)
    counts = np.array([np.bincount(ranks[:, place], minlength=8) for place in range(8)])
    assert abs(counts - 250).max() < 80


def test_which_blocks_meet_in_a_window_is_drawn_evenly():
    # 400 orders of 100 blocks in windows of 10: two blocks meet with probability 9/99; over neighbouring blocks (99
    # pairs, 400 orders) that is 3,600 times; five sigma is 290 (windows are not quite independent: taken as if).
    met = 0
    for seed in range(400):
        order = shuffled(1000, Blocks(10, 10), seed=seed)
        window_of = np.empty(100, dtype=int)
        positions = np.arange(1000)
        window_of[order.at(positions) // 10] = order.windows_at(positions)
        met += int((np.diff(window_of) == 0).sum())
    assert abs(met - 3600) < 290


def manifest(lengths):
    lengths = np.array(lengths, dtype=np.int64)
    sized = int((lengths >= 0).sum())
    return SimpleNamespace(row_count=len(lengths), length=lengths, sized_count=sized, has_lengths=sized == len(lengths))


@given(
    lengths=st.lists(st.integers(0, 10_000), min_size=1, max_size=50),
    block=st.integers(1, 50_000),
    times=st.integers(2, 40),
)
def test_blocks_and_windows_are_of_about_the_bytes_that_were_given(lengths, block, times):
    mean = max(1, sum(lengths)) / len(lengths)
    found = blocks_of(manifest(lengths), block, times * block)
    assert found.block_samples >= 1 and found.window_blocks >= 1
    assert abs(found.block_samples * mean - block) <= mean / 2 + 1 or found.block_samples == 1
    assert found.block_samples * found.window_blocks * mean <= times * block + 1 or found.window_blocks == 1
    assert (found.window_blocks + 1) * found.block_samples * mean > times * block - 1


def test_unknown_sizes_are_refused():
    with pytest.raises(ConfigError, match="say so of 1 of 2"):
        blocks_of(manifest([1, -1]), 50, 100)


def test_an_empty_dataset_has_an_empty_order():
    assert ids_at(shuffled(0, blocks_of(manifest([]), 10, 100))).tolist() == []
