"""Shuffle quality: 1 for a permutation, 0 for ascending ids, and in between what blocks and windows say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.order.block_order import Blocks, BlockShuffled
from penstock.order.order import Sequential, Shuffled
from penstock.order.quality import shuffle_quality

COUNT, BATCH = 200_000, 256


class Listed:
    """An order that is a list of ids."""

    def __init__(self, ids):
        self.ids, self.count = ids, len(ids)

    def at(self, positions):
        return self.ids[positions]


def blocks(block_samples, window_blocks, seed=0, count=COUNT):
    return BlockShuffled(0, count, Blocks(block_samples, window_blocks), manifest_hash="ab", seed=seed, epoch=0)


def test_a_true_permutation_has_quality_one():
    found = [shuffle_quality(Listed(np.random.default_rng(seed).permutation(COUNT)), BATCH) for seed in range(20)]
    for name in ("neighbours", "batches"):
        figures = np.array([getattr(each, name) for each in found])
        assert abs(figures.mean() - 1) < 0.01 and figures.std() < 0.03, name


def test_the_random_order_is_as_good_as_a_true_permutation():
    found = [shuffle_quality(Shuffled(0, COUNT, manifest_hash="ab", seed=seed, epoch=0), BATCH) for seed in range(20)]
    for name in ("neighbours", "batches"):
        figures = np.array([getattr(each, name) for each in found])
        assert abs(figures.mean() - 1) < 0.01 and figures.std() < 0.03, name


def test_ascending_ids_have_quality_zero():
    found = shuffle_quality(Sequential(0, COUNT), BATCH)
    assert found.neighbours == 0 and found.batches < 0.006  # a batch of one class is worth one sample
    assert found.value == 0


def test_quality_grows_with_the_window_and_falls_with_the_block():
    windows = [shuffle_quality(blocks(100, blocks_), BATCH).value for blocks_ in (2, 8, 32, 128, 2000)]
    assert all(later > 1.3 * earlier for earlier, later in itertools.pairwise(windows[:-1])), windows
    assert windows[-1] == pytest.approx(1, abs=0.06), "one window over everything is a random order"
    sizes = [shuffle_quality(blocks(size, 12_800 // size), BATCH).value for size in (1, 50, 200, 800, 3200)]
    assert all(earlier > 1.3 * later for earlier, later in itertools.pairwise(sizes[1:])), sizes
    assert sizes[0] == pytest.approx(1, abs=0.06), "blocks of one sample are a random order"


@pytest.mark.parametrize(("block_samples", "window_blocks"), [(100, 64), (400, 16), (800, 8)])
def test_a_block_shuffle_is_as_good_as_its_cut_says(block_samples, window_blocks):
    # Kish's design effect is 1 + (b - 1) r, r being how likely two samples of a batch are of one block, all of one
    # class: (m - 1) / (G m - 1) with G blocks of m samples.
    figures = [shuffle_quality(blocks(block_samples, window_blocks, seed), BATCH).batches for seed in range(20)]
    together = (block_samples - 1) / (window_blocks * block_samples - 1)
    assert np.mean(figures) == pytest.approx(1 / (1 + (BATCH - 1) * together), rel=0.15)


def test_labels_say_what_a_batch_should_mix():
    labels = np.repeat(np.arange(40), COUNT // 40)  # sorted by class, as a folder of folders is packed
    assert shuffle_quality(blocks(400, 8), BATCH, labels=labels).batches < 0.1
    scattered = np.random.default_rng(1).permutation(labels)
    assert shuffle_quality(blocks(400, 8), BATCH, labels=scattered).batches == pytest.approx(1, abs=0.1)
    random = Shuffled(0, COUNT, manifest_hash="ab", seed=0, epoch=0)
    assert shuffle_quality(random, BATCH, labels=labels).batches == pytest.approx(1, abs=0.1)


def test_a_range_of_ids_is_measured_like_one_from_zero():
    ids = np.random.default_rng(1).permutation(5000)
    assert shuffle_quality(Listed(ids + 70), 32, first=70) == shuffle_quality(Listed(ids), 32)


@given(
    count=st.integers(0, 300),
    batch=st.integers(1, 400),
    blocks_=st.builds(Blocks, st.integers(1, 50), st.integers(1, 9)),
)
def test_any_size_has_a_quality_from_zero_to_one(count, batch, blocks_):
    found = shuffle_quality(BlockShuffled(0, count, blocks_, manifest_hash="ab", seed=0, epoch=0), batch)
    assert 0 <= found.value <= 1
    assert np.isfinite([found.neighbours, found.batches]).all()
