"""Merging ranges and finding their registrations, against plain models over single bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize("edge", [(2**64 - 2, 1), (0, 2**64 - 1)])
def test_the_ends_of_the_address_space(edge):
    table = table_of([edge])
    assert coalesced(np.concatenate([table, table])).tolist() == table.tolist()
