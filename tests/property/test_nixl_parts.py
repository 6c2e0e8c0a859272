"""Parts of an agent's metadata tell of what was asked for, of nothing else, and add up in any order."""

import functools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from penstock.compat.nixl.partial import restricted
from penstock.transfer.descriptors import Descriptors
from penstock.transfer.metadata import AgentMetadata, RegistrationRecord, merge

PAGE = 64
RANGES = [(2 * PAGE * number, PAGE) for number in range(1, 9)]
SLOT_OF = {number: (number - 1) % 2 for number in range(1, 9)}


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


def told(metadata, rows):
    """Sent as bytes, as it is."""
    slots = [SLOT_OF[address // (2 * PAGE)] for address, _, _ in rows]
    descriptors = Descriptors("there", "DRAM", rows, slots, [5] * len(rows)) if rows else None
    return AgentMetadata.from_bytes(restricted(metadata, descriptors).to_bytes())


PIECES = st.tuples(st.sampled_from(RANGES), st.integers(0, PAGE - 1), st.integers(1, PAGE)).map(
    lambda drawn: (drawn[0][0] + drawn[1], min(drawn[2], PAGE - drawn[1]), 0)
)


@given(st.lists(st.lists(PIECES, min_size=1, max_size=4), max_size=5), st.sampled_from([0, 3]))
def test_parts_add_up_to_what_was_asked_for(parts, segment_id):
    metadata = whole(segment_id)
    sent = [told(metadata, rows) for rows in parts]
    asked = {address + at for rows in parts for address, size, _ in rows for at in range(size)}
    everything = bytes_told(metadata)
    expected = {key: place for key, place in everything.items() if key[1] in asked}
    nothing = told(metadata, [])
    assert bytes_told(functools.reduce(merge, sent, nothing)) == expected
    assert bytes_told(functools.reduce(merge, reversed(sent), nothing)) == expected
