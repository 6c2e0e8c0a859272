"""Results laid into cells and joined in place, against NumPy's own stack, pad and concatenate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import ConfigError
from penstock.loader.collate import Ragged, Stack, collated, pad
from penstock.loader.executors import part_size
from penstock.workers.results import SLACK_BYTES, Layout, Outgrown, Sizes, Unsendable, columns, result_at, write

DTYPES = st.sampled_from(["u1", "i2", "<f4", ">f8", "c16", "b1", "S3", "M8[ns]"])
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
ARRAYS = st.builds(
    lambda dtype, shape, fill: np.frombuffer(
        np.random.default_rng(fill).bytes(int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize), dtype
    ).reshape(shape),
    DTYPES.filter(lambda dtype: dtype != "b1"),
    SHAPES,
    st.integers(0, 9),
)
LEAVES = st.one_of(
    ARRAYS,
    st.binary(max_size=40),
    st.text(max_size=10),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.booleans(),
    st.none(),
)
RESULTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=4), inner, max_size=4),
    ),
    max_leaves=8,
)


def laid(results, most_bytes=None):
    """Forms and columns of some results, in memory that grows until they fit; and how often it had to."""
    sizes, tries = Sizes(), 0
    while True:
        layout = Layout(sizes.cells(most_bytes), len(results))
        memory = np.full(layout.total_bytes, 0xAA, dtype=np.uint8)
        try:
            forms = [write(result, index, layout, memory) for index, result in enumerate(results)]
        except Outgrown as outgrown:
            sizes, tries = sizes.grown(outgrown.sizes), tries + 1
            continue
        return forms, columns(layout, memory), tries


def same(a, b) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b if not isinstance(a, bytes) else a == bytes(b)


@settings(max_examples=150)
@given(st.lists(RESULTS, min_size=1, max_size=5))
def test_results_come_back_as_they_were(results):
    forms, found, _ = laid(results)
    assert same(results, [result_at(form, index, iter(found)) for index, form in enumerate(forms)])


@given(
    st.lists(st.lists(st.integers(0, 1000), max_size=4), min_size=1, max_size=30),
    st.integers(0, 4000),
    st.integers(1, 20),
)
def test_cells_hold_what_was_seen_and_no_more_than_is_allowed(seen, spare, count):
    sizes = Sizes()
    for each in seen:
        sizes = sizes.grown(each)
    most = sizes.total_bytes + spare
    assert all(cell >= size for cell, size in zip(sizes.cells(most), sizes.most, strict=True))
    assert sum(sizes.cells(most)) <= most
    assert Layout(sizes.cells(most), count).total_bytes <= count * most + SLACK_BYTES


@given(st.integers(1, 2000), st.integers(1, 64), st.floats(1e-7, 100))
def test_parts_are_worth_asking_for_and_never_long(count, workers, sample_s):
    size = part_size(count, workers, sample_s)
    assert 1 <= size <= -(-count // workers)
    assert size == 1 or size * sample_s <= 1
    if size < -(-count // workers) and size * sample_s < 0.5:
        assert size * sample_s >= 0.004 * 0.99 or size >= count / workers


def test_growing_ends_soon():
    results = [b"x" * size for size in range(1, 3000)]
    assert laid(results)[2] <= 14
    assert laid(results, most_bytes=3000)[2] <= 4


@given(st.integers(1, 6), SHAPES, DTYPES.filter(lambda dtype: dtype not in ("b1", ">f8")), st.integers(0, 9))
def test_stacking_is_numpy_stack_and_takes_no_memory(count, shape, dtype, fill):
    size = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
    random = np.random.default_rng(fill)
    results = [np.frombuffer(random.bytes(size), dtype).reshape(shape) for _ in range(count)]
    forms, found, _ = laid(results)
    stacked = collated(forms, found, Stack())
    assert same(stacked, np.stack(results))
    assert stacked.flags.c_contiguous
    assert not size or np.shares_memory(stacked, found[0].memory)


@settings(max_examples=150)
@given(
    st.integers(0, 3).flatmap(lambda n: st.lists(st.lists(st.integers(0, 5), min_size=n, max_size=n), min_size=1)),
    st.integers(1, 4),
    st.sampled_from(["u1", "<i4", "<f8"]),
    st.booleans(),
)
def test_padding_in_place_is_padding(shapes, multiple, dtype, with_limit):
    random = np.random.default_rng(1)
    results = [{"x": random.integers(0, 9, size=shape).astype(dtype), "n": len(shape)} for shape in shapes]
    sizes = Sizes()
    while True:
        layout = Layout(sizes.cells(100_000 if with_limit else None), len(results))
        memory = np.full(layout.total_bytes, 0xAA, dtype=np.uint8)
        try:
            forms = [write(result, index, layout, memory) for index, result in enumerate(results)]
            found = collated(forms, columns(layout, memory), pad({"x": 7}, multiple_of=multiple))
            break
        except Outgrown as outgrown:
            sizes = sizes.grown(outgrown.sizes)
    largest = np.max(np.array(shapes, dtype=int).reshape(len(shapes), -1), axis=0).tolist()
    if largest:
        largest[0] = -(-largest[0] // multiple) * multiple
    expected = np.full((len(shapes), *largest), 7, dtype)
    for index, result in enumerate(results):
        expected[(index, *map(slice, result["x"].shape))] = result["x"]
    assert same(found["x"], expected)
    assert found["n"].tolist() == [len(shape) for shape in shapes]


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=9))
def test_bytes_are_joined(results):
    forms, found, _ = laid(results)
    joined = collated(forms, found, Stack())
    assert isinstance(joined, Ragged)
    assert joined.payload.tobytes() == b"".join(results)
    assert joined.offsets.tolist() == np.cumsum([0, *map(len, results)]).tolist()


def test_fields_numbers_and_text():
    results = [{"a": (1, 2.5), "b": ["x", None], "c": True, "d": np.float32(i), "e": 1 if i else 1.5} for i in range(3)]
    forms, found, _ = laid(results)
    made = collated(forms, found, Stack())
    assert made["a"][0].tolist() == [1, 1, 1] and made["a"][0].dtype == np.int64
    assert made["a"][1].tolist() == [2.5] * 3
    assert made["b"] == [["x"] * 3, None]
    assert made["c"].dtype == np.bool_
    assert made["d"].dtype == np.float32 and made["d"].tolist() == [0, 1, 2]
    assert made["e"].tolist() == [1.5, 1, 1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool"])
def test_tensors_stay_tensors(dtype):
    torch = pytest.importorskip("torch")
    results = [torch.arange(6).reshape(2, 3).to(getattr(torch, dtype)) + i for i in range(3)]
    forms, found, _ = laid(results)
    assert torch.equal(collated(forms, found, Stack()), torch.stack(results))
    ragged = [result[: 1 + i % 2] for i, result in enumerate(results)]
    forms, found, _ = laid(ragged)
    padded = collated(forms, found, pad(1))
    assert torch.equal(padded[1], results[1]) and torch.equal(padded[0][0], results[0][0])
    assert padded.dtype == results[0].dtype and padded.shape == (3, 2, 3)
    assert all(torch.equal(a, b) for a, b in zip(ragged, collated(*laid(ragged)[:2], list), strict=True))


def test_a_function_gets_the_results():
    results = [np.arange(i + 1) for i in range(3)]
    forms, found, _ = laid(results)
    assert collated(forms, found, lambda each: [one.sum() for one in each]) == [0, 1, 3]


@pytest.mark.parametrize(
    ("results", "says"),
    [
        ([np.zeros(2), np.zeros(3)], r"array <f8 \[2\] and array <f8 \[3\] among them, which can't be stacked"),
        ([{"x": 1}, {"y": 1}], "differ in form"),
        ([{"x": [1, 2]}, {"x": [1]}], r"the results\['x'\] differ in form"),
        ([(1, b""), (1, "")], r"the results\[1\] differ in form"),
    ],
)
def test_what_makes_no_batch_is_refused_with_its_place(results, says):
    with pytest.raises(ConfigError, match=says):
        collated(*laid(results)[:2], Stack())


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ({"a": [object()]}, r"the result\['a'\]\[0\] is a builtins.object; return arrays"),
        (np.array([object()]), "an array of object"),
        ({1: 2}, "a key that is no text"),
        (2**64, "more than 64 bits"),
        ({1, 2}, "builtins.set"),
    ],
)
def test_what_cannot_be_laid_down_is_named(result, says):
    with pytest.raises(Unsendable, match=says):
        laid([result])
