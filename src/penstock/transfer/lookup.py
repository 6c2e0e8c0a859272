"""Which registration a range lies in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from penstock.errors import NotRegistered
from penstock.transfer.metadata import RegistrationRecord
from penstock.transfer.table import Memory
from penstock.transfer.wire import UInt32s, UInt64s

__all__ = ["Lookup"]


class Lookup:
    """Finds the registration of each of many ranges, for what is known of one agent; made anew when that changes.

    Registrations may overlap: any that holds a range as a whole will do. A range that only several of them hold
    together lies in none.

    Args:
        owner: the agent's name, for messages.
        records: what it registered.
    """

    def __init__(self, owner: str, records: Sequence[RegistrationRecord]) -> None:
        self._owner = owner
        kinds: dict[tuple[Memory, int], list[RegistrationRecord]] = {}
        for record in records:
            kinds.setdefault((record.memory, record.device), []).append(record)
        self._columns = {kind: _Columns.of(members) for kind, members in kinds.items()}

    def find(self, memory: Memory, table: UInt64s) -> tuple[UInt32s, UInt64s]:
        """The registration of each row.

        Args:
            memory: ``"DRAM"`` or ``"VRAM"``.
            table: (N, 3) uint64: address, length, device.

        Returns:
            Slots (N,) uint32 and generations (N,) uint64.

        Raises:
            NotRegistered: a row lies outside of what is registered; the message names the first.
        """
        slots = np.zeros(len(table), np.uint32)
        generations = np.zeros(len(table), np.uint64)
        for device in np.unique(table[:, 2]).tolist():
            columns = self._columns.get((memory, device))
            if columns is not None:
                rows = np.flatnonzero(table[:, 2] == device)
                slots[rows], generations[rows] = columns.find(table[rows, 0], table[rows, 1])
        if not generations.all():
            self._refuse(memory, table, int((generations == 0).argmax()))
        return slots, generations

    def _refuse(self, memory: Memory, table: UInt64s, row: int) -> None:
        address, length, device = table[row].tolist()
        raise NotRegistered(
            f"range {row} of {len(table)}, {length} bytes at {address:#x} of {memory} {device}, lies in no "
            f"registration of {self._owner!r} that is known here; register it there and load its new metadata"
        )


@dataclass(frozen=True)
class _Columns:
    """The ranges of one kind of memory and device that lie in no other; so starts and ends both rise. (N,) each."""

    starts: UInt64s
    ends: UInt64s
    slots: UInt32s
    generations: UInt64s

    @staticmethod
    def of(records: Sequence[RegistrationRecord]) -> _Columns:
        counts = [len(record.ranges) for record in records]
        ranges = np.concatenate([record.ranges for record in records])
        ends = ranges[:, 0] + ranges[:, 1]
        order = np.lexsort((~ends, ranges[:, 0]))  # by start; of one start the longest first
        reach = np.maximum.accumulate(ends[order])
        order = order[np.concatenate([[True], ends[order][1:] > reach[:-1]])]
        return _Columns(
            starts=ranges[order, 0],
            ends=ends[order],
            slots=np.repeat(np.array([record.slot for record in records], np.uint32), counts)[order],
            generations=np.repeat(np.array([record.generation for record in records], np.uint64), counts)[order],
        )

    def find(self, addresses: UInt64s, lengths: UInt64s) -> tuple[UInt32s, UInt64s]:
        """Slots and generations; generation 0 = in none."""
        # Of all ranges that begin no later the last one reaches furthest.
        at = np.searchsorted(self.starts, addresses, side="right").astype(np.int64) - 1
        hit = (at >= 0) & (self.ends[at] >= addresses + lengths)
        return np.where(hit, self.slots[at], np.uint32(0)), np.where(hit, self.generations[at], np.uint64(0))
