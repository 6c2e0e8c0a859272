"""Orders are permutations, reproducible, and need no memory."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from penstock.order.order import Sequential, Shuffled


def shuffled(first, count, seed=0, epoch=0, manifest_hash="ab"):
    return Shuffled(first, count, manifest_hash=manifest_hash, seed=seed, epoch=epoch)


def ids_at(order, start, end):
    return order.at(np.arange(start, end))


@given(first=st.integers(0, 10**12), count=st.integers(1, 5000), seed=st.integers(0, 2**64))
def test_every_id_once(first, count, seed):
    ids = ids_at(shuffled(first, count, seed), 0, count)
    assert ids.dtype == np.int64
    assert np.array_equal(np.sort(ids), np.arange(first, first + count))


@given(count=st.integers(1, 10**10), data=st.data())
def test_any_position_can_be_asked_alone(count, data):
    order = shuffled(0, count)
    start = data.draw(st.integers(0, count - 1))
    end = data.draw(st.integers(start, min(count, start + 40)))
    together = ids_at(order, start, end)
    alone = [int(ids_at(order, at, at + 1)[0]) for at in range(start, end)]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < count)).all()


def test_the_order_depends_on_manifest_seed_and_epoch_and_on_nothing_else():
    base = ids_at(shuffled(0, 1000), 0, 1000)
    assert np.array_equal(base, ids_at(shuffled(0, 1000), 0, 1000))
    for other in (shuffled(0, 1000, seed=1), shuffled(0, 1000, epoch=1), shuffled(0, 1000, manifest_hash="cd")):
        assert (ids_at(other, 0, 1000) != base).sum() > 900


def test_ids_spread_evenly_over_positions():
    # 2,000 orders of 8 ids: each id should stand at each place 250 times; five sigma is 74.
    counts = np.zeros((8, 8), dtype=int)
    for seed in range(2000):
        counts[np.arange(8), ids_at(shuffled(0, 8, seed=seed), 0, 8)] += 1
    assert abs(counts - 250).max() < 80


def test_neither_places_nor_neighbours_are_related():
    # 300 orders of 1,000 ids. Each tenth of the places sees each tenth of the ids 3,000 times; five sigma is 247.
    tenths = np.zeros((10, 10), dtype=int)
    neighbours = 0
    for seed in range(300):
        ids = ids_at(shuffled(0, 1000, seed=seed), 0, 1000)
        np.add.at(tenths, (np.arange(1000) // 100, ids // 100), 1)
        neighbours += int((np.abs(np.diff(ids)) == 1).sum())
    assert abs(tenths - 3000).max() < 260
    # Two in a thousand of all neighbouring places hold neighbouring ids: 599; five sigma is 122.
    assert abs(neighbours - 599) < 125


def test_the_order_is_the_one_that_states_were_saved_in():
    # A state names positions. Whoever changes which ids stand there raises the version in state.py, so that one that
    # was saved before is refused instead of losing some samples and repeating others.
    places = {count: shuffled(0, count, 1, 2).at(np.array([0, 1, count // 2, count - 1])) for count in (1000, 10**7)}
    assert places[1000].tolist() == [905, 903, 871, 769]
    assert places[10**7].tolist() == [5134804, 4064349, 670904, 7638824]


@given(first=st.integers(0, 100), count=st.integers(0, 100))
def test_sequential_ascends(first, count):
    assert ids_at(Sequential(first, count), 0, count).tolist() == list(range(first, first + count))
