"""What a program registered, so that it may deregister it by any equal list, whole or in parts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from penstock.compat.nixl.descriptors import DescriptorList
from penstock.compat.nixl.errors import nixlNotFoundError
from penstock.errors import DeadlineExceeded
from penstock.transfer import Agent, Registration
from penstock.transfer.table import Memory
from penstock.transfer.wire import UInt64s

__all__ = ["Registrations"]

Row = tuple[int, int, int]
_NOTHING: Counter[Row] = Counter()


@dataclass(eq=False)
class _Entry:
    """What one call of ``register_memory`` registered on one device, as far as it isn't deregistered."""

    table: UInt64s
    registration: Registration
    tensors: Any


class Registrations:
    """The registrations of one agent, by the rows that were registered.

    Memory is registered by the call: however many rows, they are one registration. A part of it that is deregistered
    leaves the rest registered **anew**, so that nobody can reach what is the program's own again; whoever transfers to
    the rest loads new metadata first.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._entries: dict[Memory, list[_Entry]] = {}
        self._lingering: list[Any] = []  # what transfers may still touch, although it is deregistered

    def add(self, memory: Memory, rows: DescriptorList, tensors: Any = None) -> None:
        """Registers rows; ``tensors`` is what they lie in, if it is known, and is kept alive."""
        table = rows.table
        for device in np.unique(table[:, 2]):
            self._register(memory, table[table[:, 2] == device], tensors)

    def remove(self, memory: Memory, rows: DescriptorList) -> None:
        """Deregisters rows, wherever they were registered.

        Raises:
            nixlNotFoundError: one of them isn't; then nothing is deregistered.
            DeadlineExceeded: a transfer is still under way in one of them; they are deregistered all the same.
        """
        wanted = rows.table
        entries = self._entries.get(memory, [])
        whole = next((entry for entry in entries if np.array_equal(entry.table, wanted)), None)
        parts = [(whole, _NOTHING)] if whole is not None else _found_in(entries, _counted(wanted))
        for entry, rest in parts:
            entries.remove(entry)
            if rest:
                self._register(memory, np.array([*rest.elements()], np.uint64), entry.tensors)
        for entry, _ in parts:
            self._close(entry)

    def _register(self, memory: Memory, table: UInt64s, tensors: Any) -> None:
        registration = self._agent.register(table, memory=memory)
        self._entries.setdefault(memory, []).append(_Entry(table, registration, tensors))

    def _close(self, entry: _Entry) -> None:
        try:
            entry.registration.close()
        except DeadlineExceeded:
            self._lingering.append(entry.tensors)
            raise


def _counted(table: UInt64s) -> Counter[Row]:
    return Counter(map(tuple, table.tolist()))


def _found_in(entries: list[_Entry], wanted: Counter[Row]) -> list[tuple[_Entry, Counter[Row]]]:
    """The registrations that these rows are of, each with what stays of it."""
    parts = []
    for entry in entries:
        rows = _counted(entry.table)
        part = rows & wanted
        if part:
            parts.append((entry, rows - part))
            wanted = wanted - part
    if wanted:
        address, length, device = next(iter(wanted))
        raise nixlNotFoundError(
            f"{length} bytes at {address:#x} of device {device} aren't registered; deregister what was registered, "
            "row by row"
        )
    return parts
