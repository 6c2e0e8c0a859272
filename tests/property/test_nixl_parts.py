"""Parts of an agent's metadata tell of what was asked for, of nothing else, and add up in any order."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.compat.nixl.partial import restricted
from penstock.errors import NotRegistered
from penstock.transfer.metadata import AgentMetadata, RegistrationRecord, merge

PAGE = 64
RANGES = [(2 * PAGE * number, PAGE) for number in range(1, 9)]


def whole(segment_id):
    """Two registrations of every other range; in a segment, each 1000 bytes further than its address."""
    records = []
    for slot in (0, 1):
        ranges = [(start, size, (start + 1000) * (segment_id != 0)) for start, size in RANGES[slot::2]]
        records.append(RegistrationRecord(slot, 5, "DRAM", 0, segment_id, np.array(ranges, np.uint64)))
    return AgentMetadata("there", bytes(16), bytes(16), registrations=tuple(records))


def bytes_told(metadata):
    """(slot, address) of every byte that a snapshot tells of, with its place in the segment."""
    return {
        (record.slot, start + at): offset + at if record.segment_id else None
        for record in metadata.registrations
        for start, size, offset in record.ranges.tolist()
        for at in range(size)
    }


PIECES = st.tuples(st.sampled_from(RANGES), st.integers(0, PAGE - 1), st.integers(1, PAGE)).map(
    lambda drawn: (drawn[0][0] + drawn[1], min(drawn[2], PAGE - drawn[1]), 0)
)


@given(st.lists(st.lists(PIECES, min_size=1, max_size=4), max_size=5), st.sampled_from([0, 3]))
def test_parts_add_up_to_what_was_asked_for(parts, segment_id):
    metadata = whole(segment_id)
    told = [restricted(metadata, "DRAM", np.array(rows, np.uint64)) for rows in parts]
    asked = {address + at for rows in parts for address, size, _ in rows for at in range(size)}
    everything = bytes_told(metadata)
    expected = {key: place for key, place in everything.items() if key[1] in asked}
    sent = [AgentMetadata.from_bytes(part.to_bytes()) for part in told]
    nothing = restricted(metadata, "DRAM", np.zeros((0, 3), np.uint64))
    assert bytes_told(functools.reduce(merge, sent, nothing)) == expected
    assert bytes_told(functools.reduce(merge, reversed(sent), nothing)) == expected


@pytest.mark.parametrize("row", [(0, 8, 0), (2 * PAGE, PAGE + 1, 0), (2 * PAGE, 8, 1)])
def test_what_is_not_registered_can_not_be_told(row):
    with pytest.raises(NotRegistered):
        restricted(whole(0), "DRAM", np.array([row], np.uint64))
    with pytest.raises(NotRegistered):
        restricted(whole(0), "VRAM", np.array([(2 * PAGE, 8, 0)], np.uint64))
