"""What becomes of faulty samples, decided without a disk: which row goes where, and how memory is moved."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigError, DecodeError, TooManyFaults
from penstock.loader.faults import Fault, FaultPolicy, Faults, Tally, fill, rearrange
from penstock.loader.plan import Unit


@st.composite
def units_with_faults(draw):
    """Lengths of a unit's samples, their ids, and what is wanted for the faulty ones."""
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=12))
    ids = draw(st.lists(st.integers(0, 10**12), min_size=len(lengths), max_size=len(lengths)))
    actions = draw(st.lists(st.sampled_from([None, "skip", "replace"]), min_size=len(ids), max_size=len(ids)))
    wanted = {row: action for row, action in enumerate(actions) if action}
    return np.array(ids, dtype=np.int64), np.array(lengths, dtype=np.int64), wanted


@given(units_with_faults())
def test_good_samples_stay_and_bad_ones_go(drawn):
    ids, lengths, wanted = drawn
    rows = fill(ids, lengths, wanted).tolist()
    for row, source in enumerate(rows):
        if row not in wanted:
            assert source == row
        elif wanted[row] == "skip":
            assert source == -1
        else:
            assert source == -1 or source not in wanted, "only a good sample replaces one"


@given(units_with_faults())
def test_what_replaces_fits_and_a_place_stays_empty_only_where_nothing_fits(drawn):
    ids, lengths, wanted = drawn
    rows = fill(ids, lengths, wanted).tolist()
    good = [row for row in range(len(ids)) if row not in wanted]
    room = 0
    for row, source in enumerate(rows):
        if row not in wanted:
            continue
        room += lengths[row]
        if source >= 0:
            room -= lengths[source]
        elif wanted[row] == "replace":
            assert all(lengths[other] > room for other in good)
        assert room >= 0


@given(units_with_faults())
def test_memory_holds_the_rows_back_to_back_after_the_moves(drawn):
    ids, lengths, wanted = drawn
    contents = [bytes([row + 1]) * length for row, length in enumerate(lengths.tolist())]
    memory = bytearray(b"".join(contents))
    rows = fill(ids, lengths, wanted)
    rows = rows[rows >= 0]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    rearrange(memoryview(memory), rows, starts, lengths)
    expected = b"".join(contents[row] for row in rows.tolist())
    assert memory[: len(expected)] == expected
    assert len(memory) == lengths.sum()


@given(units_with_faults())
def test_pictures_have_one_size_so_any_good_one_fits(drawn):
    ids, lengths, wanted = drawn
    rows = fill(ids, lengths * 0, wanted)
    pictures = np.repeat(np.arange(len(ids)), 6).reshape(-1, 2, 3)
    kept = rows[rows >= 0]
    rearrange(pictures, kept, np.arange(len(ids)), np.ones(len(ids), dtype=np.int64))
    assert pictures[: len(kept), 0, 0].tolist() == kept.tolist()
    if len(wanted) < len(ids):
        assert sum(rows < 0) == sum(action == "skip" for action in wanted.values())


def test_the_faulty_ids_spread_over_what_fits():
    ids = np.arange(100, dtype=np.int64)
    rows = fill(ids, ids * 0 + 1, dict.fromkeys(range(50), "replace"))
    assert sorted(rows[:50].tolist()) == list(range(50, 100))


def unit_of(ids):
    ids = np.array(ids, dtype=np.int64)
    return Unit(0, ids, ids * 0, ids * 0, ids * 0 + 3, ids * 0 - 1, None)


def faults_of(*rows):
    faults = Faults()
    for row in rows:
        faults.add(row, DecodeError(f"row {row}", sample_id=row))
    return faults


def test_a_function_decides_for_each_error():
    policy = FaultPolicy.checked(lambda error: "skip" if error.sample_id == 0 else "replace", None)
    unit = unit_of([7, 8, 9])
    mended = policy.mend(unit, faults_of(2, 0), unit.lengths)
    assert mended.rows.tolist() == [1, 1]
    assert [(fault.error.sample_id, fault.instead) for fault in mended.faults] == [(0, None), (2, 8)]


def test_a_function_may_raise_the_error_or_one_of_its_own():
    unit = unit_of([7])
    with pytest.raises(DecodeError, match="row 0"):
        FaultPolicy.checked(lambda _: "raise", None).mend(unit, faults_of(0), unit.lengths)
    with pytest.raises(ZeroDivisionError):
        FaultPolicy.checked(lambda _: 1 / 0, None).mend(unit, faults_of(0), unit.lengths)


@pytest.mark.parametrize("answer", [None, "ignore", True, []])
def test_a_function_that_answers_something_else_is_an_error(answer):
    unit = unit_of([7])
    with pytest.raises(ConfigError, match=r"on_error returned .* 'raise', 'skip' or 'replace'"):
        FaultPolicy.checked(lambda _: answer, None).mend(unit, faults_of(0), unit.lengths)


@pytest.mark.parametrize(
    ("on_error", "max_errors", "named"),
    [
        ("ignore", None, "'ignore'"),
        (None, None, "None"),
        ([], None, "on_error"),
        ("raise", 3, "max_errors is 3"),
        ("skip", -1, "max_errors"),
        ("skip", 1.5, "max_errors"),
        ("skip", True, "max_errors"),
    ],
)
def test_what_can_not_work_is_refused_by_name(on_error, max_errors, named):
    with pytest.raises(ConfigError, match=named):
        FaultPolicy.checked(on_error, max_errors)


def test_strict_faults_raise_the_first_and_keep_none():
    faults = FaultPolicy.checked("raise", None).faults()
    with pytest.raises(DecodeError):
        faults.add(3, DecodeError("broken"))
    assert not len(faults)


def test_an_error_that_is_kept_holds_no_frames():
    faults = Faults()
    try:
        raise DecodeError("broken") from OSError("cause")
    except DecodeError as error:
        faults.add(1, error)
    kept = faults.errors[1]
    assert (kept.__traceback__, kept.__cause__, kept.__context__) == (None, None, None)


def test_the_first_fault_of_a_sample_counts():
    faults = Faults()
    faults.add(1, DecodeError("first"))
    faults.add(1, DecodeError("second"))
    assert str(faults.errors[1]) == "first"


def test_a_tally_counts_and_has_a_limit():
    one = (Fault(DecodeError("a"), None), Fault(DecodeError("b"), 7))
    tally = Tally().plus(one, 3).plus(one[:1], 3)
    assert (tally.faulty, tally.replaced, dict(tally.kinds)) == (3, 1, {"DecodeError": 3})
    with pytest.raises(
        TooManyFaults, match="4 samples were faulty, and max_errors allows 3; the last one: a"
    ) as raised:
        tally.plus(one[:1], 3)
    assert (raised.value.count, raised.value.max_errors) == (4, 3)
    assert raised.value.__cause__ is one[0].error
