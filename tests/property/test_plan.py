"""Plans against a plain model."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ManifestError, UnitTooLarge
from penstock.loader.plan import BatchLimits, coalesce, plan_units
from penstock.order.order import Sequential
from penstock.order.split import Split, Steps


def manifest(lengths, labels=None):
    count = len(lengths)
    return SimpleNamespace(
        row_count=count,
        location_index=np.zeros(count, dtype=np.uint32),
        offset=np.zeros(count, dtype=np.int64),
        length=np.array(lengths, dtype=np.int64),
        label_id=np.array(labels if labels is not None else [-1] * count, dtype=np.int64),
        crc32c=np.full(count, -1, dtype=np.int64),
    )


def no_size(_):
    raise AssertionError("every length is known")


def plan(lengths, limits, labels=None, size_of=no_size):
    steps = Steps(len(lengths), Split(limits.samples)) if limits.target_bytes is None else None
    return list(plan_units(manifest(lengths, labels), Sequential(0, len(lengths)), limits, size_of, steps))


@given(lengths=st.lists(st.integers(0, 100), max_size=200), samples=st.integers(1, 50))
def test_batches_by_count_cover_everything_in_order(lengths, samples):
    units = plan(lengths, BatchLimits(samples, None, 10**6))
    assert [i for unit in units for i in unit.sample_ids.tolist()] == list(range(len(lengths)))
    assert [len(unit.sample_ids) for unit in units[:-1]] == [samples] * (len(units) - 1)
    assert [unit.payload_bytes for unit in units] == [
        sum(lengths[i : i + samples]) for i in range(0, len(lengths), samples)
    ]


def cut_model(lengths, limits):
    batches, current = [], []
    for length in lengths:
        total = sum(current)
        if current and (
            len(current) == limits.samples or total >= limits.target_bytes or total + length > limits.cap_bytes
        ):
            batches.append(current)
            current = []
        current.append(length)
    return batches + ([current] if current else [])


@given(
    lengths=st.lists(st.integers(0, 100), max_size=300),
    samples=st.integers(1, 50),
    target=st.integers(1, 400),
    cap=st.integers(100, 500),
)
def test_batches_by_bytes_agree_with_the_model(lengths, samples, target, cap):
    limits = BatchLimits(samples, min(target, cap), cap)
    units = plan(lengths, limits)
    assert [unit.lengths.tolist() for unit in units] == cut_model(lengths, limits)


def test_batches_by_bytes_agree_across_lookahead_windows():
    lengths = np.random.default_rng(1).integers(1, 100, 30_000).tolist()
    limits = BatchLimits(512, 3000, 4000)
    units = plan(lengths, limits)
    assert [unit.lengths.tolist() for unit in units] == cut_model(lengths, limits)


def test_e2_45_the_worked_example_gives_600_then_800():
    units = plan([600, 600, 200], BatchLimits(512, 700, 1024))
    assert [unit.payload_bytes for unit in units] == [600, 800]


def test_e2_45_a_missing_length_and_an_oversize_sample_raise():
    with pytest.raises(ManifestError, match="byte-aware batching requires byte_length"):
        plan([5, -1], BatchLimits(512, 700, 1024))
    with pytest.raises(UnitTooLarge, match="1025.*1024"):
        plan([5, 1025], BatchLimits(512, 700, 1024))


def test_e2_43_a_batch_above_the_cap_names_both_numbers():
    with pytest.raises(UnitTooLarge, match="batch payload bytes 120 exceeds max_inflight_bytes 100"):
        plan([60, 60], BatchLimits(2, None, 100))


def test_e2_37_mixed_labels_in_one_batch_raise():
    with pytest.raises(ManifestError, match="mixed labeled/unlabeled"):
        plan([1, 1], BatchLimits(2, None, 100), labels=[0, -1])
    units = plan([1, 1], BatchLimits(1, None, 100), labels=[0, -1])
    assert units[0].labels.tolist() == [0] and units[1].labels is None


def test_sizes_that_the_manifest_lacks_are_asked_for():
    asked = []

    def size_of(locations):
        asked.append(len(locations))
        return np.full(len(locations), 7, dtype=np.int64)

    units = plan([-1, 3, -1], BatchLimits(3, None, 100), size_of=size_of)
    assert units[0].lengths.tolist() == [7, 3, 7]
    assert asked == [2]


@given(
    steps=st.lists(st.tuples(st.integers(-20, 60), st.integers(0, 50)), max_size=60),
    gap=st.integers(0, 40),
    span=st.integers(1, 300),
)
def test_coalesced_spans_cover_every_range_and_keep_their_limits(steps, gap, span):
    offsets, lengths, position = [], [], 100
    for skip, length in steps:
        position = max(position + skip, offsets[-1] if offsets else 0)  # ascending starts; ranges may overlap
        offsets.append(position)
        lengths.append(length)
        position += length
    spans = coalesce(
        np.array(offsets, dtype=np.int64), np.array(lengths, dtype=np.int64), max_gap_bytes=gap, max_span_bytes=span
    )
    covered = {index: one for one in spans for index in range(one.first, one.last)}
    for index, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        if length:
            assert covered[index].start <= offset and offset + length <= covered[index].end
    for one in spans:
        members = [(offsets[i], lengths[i]) for i in range(one.first, one.last)]
        assert one.end - one.start <= span or len(members) == 1
        for (a, length), (b, _) in zip(members, members[1:], strict=False):
            assert 0 <= b - (a + length) <= gap
