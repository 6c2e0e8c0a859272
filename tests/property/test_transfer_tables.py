"""Merging ranges and finding their registrations, against plain models over single bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import NotRegistered
from penstock.transfer.lookup import Lookup
from penstock.transfer.metadata import RegistrationRecord
from penstock.transfer.table import coalesced, table_of

small_rows = st.tuples(st.integers(0, 60), st.integers(1, 12), st.integers(0, 2))


def covered(table):
    return {(device, at) for address, length, device in table.tolist() for at in range(address, address + length)}


@given(st.lists(small_rows, max_size=12))
def test_merged_ranges_cover_the_same_bytes_with_gaps_between_them(rows):
    table = table_of(rows)
    merged = coalesced(table)
    assert covered(merged) == covered(table)
    for (address, length, device), (following, _, other) in zip(merged.tolist(), merged.tolist()[1:]):
        assert (device, address + length) < (other, following)


@given(st.lists(small_rows, max_size=8), st.lists(small_rows, min_size=1, max_size=6), st.data())
def test_lookup_finds_a_registration_that_holds_the_row_if_there_is_one(registered, rows, data):
    records = [
        RegistrationRecord(slot, slot + 1, "DRAM", device, 0, np.array([(address, length)], np.uint64))
        for slot, (address, length, device) in enumerate(registered)
    ]
    holders = [
        {slot for slot, (first, size, place) in enumerate(registered)
         if place == device and first <= address and address + length <= first + size}
        for address, length, device in rows
    ]  # fmt: skip
    try:
        slots, generations = Lookup("a", records).find("DRAM", table_of(rows))
    except NotRegistered as error:
        first = next(row for row, holding in enumerate(holders) if not holding)
        assert f"range {first} of {len(rows)}" in str(error)
    else:
        assert all(slot in holding for slot, holding in zip(slots.tolist(), holders, strict=True))
        assert np.array_equal(generations, slots + np.uint64(1))


@pytest.mark.parametrize("edge", [(2**64 - 2, 1), (0, 2**64 - 1)])
def test_the_ends_of_the_address_space(edge):
    table = table_of([edge])
    assert coalesced(np.concatenate([table, table])).tolist() == table.tolist()
