"""Metadata that tells only a part of what an agent registered; pure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from penstock.transfer.lookup import Lookup
from penstock.transfer.metadata import AgentMetadata, RegistrationRecord
from penstock.transfer.table import Memory, coalesced
from penstock.transfer.wire import UInt64s

__all__ = ["restricted"]


def restricted(metadata: AgentMetadata, memory: Memory, table: UInt64s) -> AgentMetadata:
    """What tells others about these ranges and no other; added to what they know.

    Args:
        metadata: all of it.
        memory: that the ranges lie in.
        table: (N, 3) uint64: address, length, device; N may be 0.

    Raises:
        NotRegistered: a range isn't part of it.
    """
    slots, _ = Lookup(metadata.name, metadata.registrations).find(memory, table)
    parts = [
        replace(record, ranges=_inside(record, coalesced(table[slots == record.slot])))
        for record in metadata.registrations
        if record.slot in slots
    ]
    return replace(metadata, registrations=tuple(parts), complete=False)


def _inside(record: RegistrationRecord, table: UInt64s) -> UInt64s:
    """(M, 3) uint64: address, length, and where it begins in the record's segment."""
    addresses = table[:, 0]
    holding = record.ranges[np.searchsorted(record.ranges[:, 0], addresses, side="right") - 1]
    offsets = holding[:, 2] + (addresses - holding[:, 0]) * np.uint64(record.segment_id != 0)
    return np.column_stack([addresses, table[:, 1], offsets])
