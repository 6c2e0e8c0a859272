"""Memory that an agent has registered: what peers may reach, until it is closed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from penstock import _core
from penstock.errors import ClosedError, DeadlineExceeded
from penstock.transfer.descriptors import Descriptors
from penstock.transfer.memory import Ranges
from penstock.transfer.metadata import RegistrationRecord
from penstock.transfer.table import Memory, coalesced
from penstock.transfer.wire import UInt64s

if TYPE_CHECKING:
    from penstock.transfer.agent import Agent

__all__ = ["Part", "Registration", "parts_of"]


@dataclass(frozen=True)
class Part:
    """What of a registration lies on one device and in one segment (0 = in none).

    Attributes:
        ranges: (N, 3) uint64: address, length, offset in the segment.
    """

    device: int
    segment_id: int
    ranges: UInt64s


def parts_of(table: UInt64s, memory: Memory) -> list[Part]:
    """Splits (N, 3) ranges, sorted and disjoint on each device, by the devices and segments that they lie in."""
    if memory == "VRAM":
        nothing = np.zeros(len(table), np.uint64)
        on = table[:, 2]
        return [Part(int(i), 0, _with_offsets(table[on == i], nothing[on == i])) for i in np.unique(on)]
    first, end = int(table[0, 0]), int(table[-1, 0] + table[-1, 1])
    whole = _core.find_shared(first, end - first)
    if whole is not None:  # the usual case, and asked for once
        return [Part(0, whole[0], _with_offsets(table, table[:, 0] - np.uint64(first) + np.uint64(whole[2])))]
    found = [_core.find_shared(address, length) for address, length, _ in table.tolist()]
    ids = np.array([each[0] if each else 0 for each in found], np.uint64)
    offsets = np.array([each[2] if each else 0 for each in found], np.uint64)
    return [Part(0, int(i), _with_offsets(table[ids == i], offsets[ids == i])) for i in np.unique(ids)]


def _with_offsets(table: UInt64s, offsets: UInt64s) -> UInt64s:
    return np.column_stack([table[:, :2], offsets])


class Registration:
    """Registered memory; made by ``Agent.register``. The agent keeps the memory alive until this is closed.

    Attributes:
        memory: ``"DRAM"`` or ``"VRAM"``.
        table: (N, 3) uint64: address, length in bytes and device of each thing that was registered, in order.
    """

    def __init__(self, agent: Agent, registry: _core.Registry, ranges: Ranges) -> None:
        self.memory = ranges.memory
        self.table = ranges.table
        self._agent = agent
        self._registry = registry
        self._keep: object = ranges.keepalive
        self._parts = parts_of(coalesced(ranges.table), ranges.memory)
        self._names = self._add()

    @property
    def descriptors(self) -> Descriptors:
        """One for each thing that was registered, in order, for prepared lists and to send to peers.

        Raises:
            ClosedError: it was closed.
        """
        names = self._open_names()
        if len(names) == 1:
            slot, generation = names[0]
            slots = np.full(len(self.table), slot, np.uint32)
            generations = np.full(len(self.table), generation, np.uint64)
        else:
            slots, generations = self._registry.prepare(np.ascontiguousarray(self.table)).names()
        return Descriptors(self._agent.name, self.memory, self.table, slots, generations)

    @property
    def records(self) -> Sequence[RegistrationRecord]:
        """As metadata tells it to peers; empty when closed."""
        return [
            RegistrationRecord(slot, generation, self.memory, part.device, part.segment_id, part.ranges)
            for (slot, generation), part in zip(self._names, self._parts, strict=False)
        ]

    @property
    def segment_ids(self) -> set[int]:
        """Segments that peers must map to reach it."""
        return {part.segment_id for part in self._parts} - {0} if self._names else set()

    @property
    def closed(self) -> bool:
        """Whether it is registered no more."""
        return not self._names

    def renew(self, timeout_s: float | None = None) -> None:
        """Make all descriptors and metadata that were given out stale; the same memory under a new generation.

        When it returns, nobody is in the middle of a transfer that was begun with an old one.

        Raises:
            ClosedError: it was closed.
            DeadlineExceeded: a transfer is still under way; the old generation is stale all the same.
        """
        old = self._open_names()
        self._names = self._add()
        self._retire(old, timeout_s)

    def close(self, timeout_s: float | None = None) -> None:
        """Register it no more, and wait until no transfer touches it. Idempotent.

        Args:
            timeout_s: how long to wait for transfers under way; None: the agent's ``timeout_s``.

        Raises:
            DeadlineExceeded: one is still under way. The agent keeps the memory alive until it has ended; memory that
                was given as an address must stay where it is.
        """
        names, self._names = self._names, []
        if not names:
            return
        self._agent.registrations.forget(self)
        try:
            self._retire(names, timeout_s)
        except DeadlineExceeded:
            self._agent.registrations.quarantine(names, self._keep)
            raise
        finally:
            self._keep = None

    def retire(self) -> list[tuple[int, int]]:
        """Refuse every transfer from now on, without waiting; (slot, generation) of what may still be in use."""
        names, self._names = self._names, []
        for name in names:
            self._registry.retire(*name)
        return names

    @property
    def keepalive(self) -> object:
        """What keeps the memory alive."""
        return self._keep

    def _add(self) -> list[tuple[int, int]]:
        vram = self.memory == "VRAM"
        return [self._registry.add(np.ascontiguousarray(part.ranges[:, :2]), vram, part.device) for part in self._parts]

    def _retire(self, names: Sequence[tuple[int, int]], timeout_s: float | None) -> None:
        deadline = time.monotonic() + self._agent.wait_s(timeout_s)
        for name in names:
            self._registry.retire(*name)
        for name in names:
            if not self._registry.wait_quiet(*name, max(0.0, deadline - time.monotonic())):
                raise DeadlineExceeded(
                    "a transfer is still under way in memory that is being closed; it can't begin anew, and the memory "
                    "is kept until the peer is done or gone"
                )

    def _open_names(self) -> list[tuple[int, int]]:
        if not self._names:
            raise ClosedError("the registration was closed")
        return self._names

    def __enter__(self) -> Registration:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """``close()``."""
        self.close()

    def __repr__(self) -> str:
        """How much of which memory, and whether it is still registered."""
        state = "closed" if self.closed else f"{len(self._names)} slots"
        return f"<Registration {len(self.table)} x {self.memory}, {int(self.table[:, 1].sum())} bytes, {state}>"
