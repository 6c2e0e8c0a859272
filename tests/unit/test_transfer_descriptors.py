"""Descriptors are immutable values; their rows keep slot and generation wherever they go."""

import pickle

import numpy as np
import pytest

from penstock.errors import ConfigError, MetadataError
from penstock.transfer.descriptors import Descriptors

ROWS = [(0x1000, 16, 0), (0x2000, 32, 1), (0x3000, 64, 0), (0x4000, 8, 2)]


@pytest.fixture
def four():
    return Descriptors("trainer", "VRAM", ROWS, [5, 6, 7, 8], [1, 2, 3, 4])


def test_columns(four):
    assert four.table.tolist() == [list(row) for row in ROWS] and four.table.dtype == np.uint64
    assert (four.slots.dtype, four.generations.dtype) == (np.uint32, np.uint64)
    assert (len(four), four.total_bytes, four.registered) == (4, 120, True)
    assert repr(four) == (
        "<Descriptors of 'trainer': 4 in VRAM, 120 bytes: 0x1000+16@0, 0x2000+32@1, 0x3000+64@0, ...>"
    )


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (1, [1]),
        (-1, [3]),
        (np.uint32(2), [2]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, -1), [3, 2, 1, 0]),
        ([3, 0, 0], [3, 0, 0]),
        (np.array([True, False, True, False]), [0, 2]),
        (slice(4, 9), []),
    ],
)
def test_rows_keep_their_registration(four, index, rows):
    part = four[index]
    assert part.table.tolist() == [list(ROWS[row]) for row in rows]
    assert part.slots.tolist() == [5 + row for row in rows] and part.generations.tolist() == [1 + row for row in rows]
    assert not part.table.flags.writeable and part.owner == "trainer" and part.memory == "VRAM"


def test_going_through_all_of_them_ends(four):
    assert Descriptors.joined(list(four)) == four and four[:2] + four[2:] == four
    for index in (4, -5):
        with pytest.raises(IndexError, match="of 4 descriptors"):
            four[index]


def test_nothing_can_be_changed(four):
    given = np.array(ROWS, np.uint64)
    mine = Descriptors("a", "DRAM", given)
    given[0, 0] = 9
    assert mine.table[0, 0] == 0x1000
    for array in (four.table, four.slots, four.generations, mine.table):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(AttributeError, match="immutable"):
        four.owner = "somebody else"


def test_equality_sees_every_part(four):
    others = [
        Descriptors("other", "VRAM", ROWS, [5, 6, 7, 8], [1, 2, 3, 4]),
        Descriptors("trainer", "DRAM", ROWS, [5, 6, 7, 8], [1, 2, 3, 4]),
        Descriptors("trainer", "VRAM", ROWS, [5, 6, 7, 9], [1, 2, 3, 4]),
        Descriptors("trainer", "VRAM", ROWS, [5, 6, 7, 8], [1, 2, 3, 5]),
        Descriptors("trainer", "VRAM", ROWS),
        four[:3],
        four[[1, 0, 2, 3]],
    ]
    same = Descriptors("trainer", "VRAM", np.array(ROWS), np.arange(5, 9), np.arange(1, 5))
    assert same == four and hash(same) == hash(four) and all(other != four for other in others) and four != 1


def test_rows_without_registration_and_no_rows_at_all():
    rows = Descriptors("", "DRAM", np.array([[1, 2], [3, 4]], np.int64))
    assert not rows.registered and rows.slots is None and rows.table[:, 2].tolist() == [0, 0]
    none = Descriptors("a", "DRAM", [])
    assert len(none) == none.total_bytes == 0 and Descriptors.from_bytes(none.to_bytes()) == none
    assert Descriptors("a", "DRAM", [(1, 2**63), (2, 2**63)]).total_bytes == 2**64


def test_blobs(four):
    for one in (four, four[:0], Descriptors("ä", "DRAM", ROWS)):
        assert Descriptors.from_bytes(one.to_bytes()) == one == pickle.loads(pickle.dumps(one))
        assert Descriptors.from_bytes(bytearray(one.to_bytes())) == one
    assert b"penstock" not in four.to_bytes(), "a blob that names code"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a", "HBM", ROWS), 'memory is \'HBM\'; give "DRAM" or "VRAM"'),
        (("a", "DRAM", [(1, 0)]), "range 0 has address 0x1 and length 0"),
        (("a", "DRAM", [(1, 1), (2**64 - 1, 1)]), "range 1 has address 0xffffffffffffffff"),
        (("a", "DRAM", [(-1, 1)]), "negative number -1"),
        (("a", "DRAM", [(1.5, 1)]), "1.5 in ranges"),
        (("a", "DRAM", [(2**64, 1)]), "whole numbers from 0 to 2\\*\\*64 - 1"),
        (("a", "DRAM", np.ones((2, 3))), "of dtype float64"),
        (("a", "DRAM", np.ones((2, 4), int)), "ranges of shape \\(2, 4\\)"),
        (("a", "DRAM", [(1, 2), (1, 2, 3)]), "rows of equal length"),
        (("a", "DRAM", [(True, True)]), "whole numbers"),
        (("a", "DRAM", ROWS, [1, 2, 3, 4]), "come together"),
        (("a", "DRAM", ROWS, [1, 2, 3], [1, 2, 3]), "give 4 numbers, one for each row"),
        (("a", "DRAM", ROWS, [1, 2, 3, 2**32], [1, 2, 3, 4]), "slots up to 4294967296"),
        (("a", "DRAM", ROWS, [1, 2, 3, 4], [1, 2, 3, 0]), "a generation of 0"),
    ],
)
def test_what_is_no_descriptor(arguments, said):
    with pytest.raises(ConfigError, match=said):
        Descriptors(*arguments)


def test_numbers_on_both_sides_of_the_sign_bit_stay_exact():
    row = (2**63 + 1, 5, 0)
    assert Descriptors("a", "DRAM", [row, (1, 2, 3)]).table.tolist() == [list(row), [1, 2, 3]]


def test_what_cannot_be_joined(four):
    for other in (Descriptors("trainer", "VRAM", ROWS), Descriptors("b", "VRAM", ROWS, [1] * 4, [1] * 4)):
        with pytest.raises(ConfigError, match="can't be joined"):
            four + other
    with pytest.raises(ConfigError, match="descriptors of nothing"):
        Descriptors.joined([])


def test_an_owner_whose_name_is_too_long():
    with pytest.raises(MetadataError, match="256 bytes, but at most 255"):
        Descriptors("a" * 256, "DRAM", ROWS).to_bytes()
