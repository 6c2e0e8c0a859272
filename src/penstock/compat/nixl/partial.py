"""Metadata that tells only a part of what an agent registered; pure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from penstock.transfer.descriptors import Descriptors
from penstock.transfer.metadata import AgentMetadata, RegistrationRecord
from penstock.transfer.table import coalesced
from penstock.transfer.wire import UInt64s

__all__ = ["restricted"]


def restricted(metadata: AgentMetadata, told: Descriptors | None) -> AgentMetadata:
    """What tells others about these ranges and no other; added to what they know.

    Args:
        metadata: all of it.
        told: ranges that say which registration they lie in; None = none at all.
    """
    parts = []
    for record in metadata.registrations:
        table = _of_slot(told, record.slot)
        if len(table):
            parts.append(replace(record, ranges=_inside(record, coalesced(table))))
    return replace(metadata, registrations=tuple(parts), complete=False)


def _of_slot(told: Descriptors | None, slot: int) -> UInt64s:
    if told is None or told.slots is None:
        return np.zeros((0, 3), np.uint64)
    found: UInt64s = told.table[told.slots == slot]
    return found


def _inside(record: RegistrationRecord, table: UInt64s) -> UInt64s:
    """(M, 3) uint64: address, length, and where it begins in the record's segment."""
    addresses = table[:, 0]
    holding = record.ranges[np.searchsorted(record.ranges[:, 0], addresses, side="right") - 1]
    offsets = holding[:, 2] + (addresses - holding[:, 0]) * np.uint64(record.segment_id != 0)
    return np.column_stack([addresses, table[:, 1], offsets])
