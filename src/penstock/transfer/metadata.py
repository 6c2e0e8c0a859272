"""What an agent tells others about itself: who it is, how it is reached, and what memory it registered."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from penstock.errors import ConfigError, MetadataError
from penstock.transfer.descriptors import MOST_NAME_BYTES
from penstock.transfer.host import Host
from penstock.transfer.table import MEMORIES, Memory, checked_memory, coalesced
from penstock.transfer.wire import MOST_BYTES, Reader, UInt64s, Writer

__all__ = ["ID_BYTES", "MOST_REGISTRATIONS", "AgentMetadata", "RegistrationRecord", "merge"]

ID_BYTES: Final = 16
"""Bytes of an instance and of a secret."""

MOST_REGISTRATIONS: Final = 1 << 16

_WHAT: Final = "metadata"
_MAGIC: Final = b"PSmd"
_VERSION: Final = 1
_MOST_TEXT_BYTES: Final = 255
_MOST_ADDRESS_BYTES: Final = 64 << 10
_MOST_RANGES: Final = MOST_BYTES // 24
_TOP: Final = (1 << 64) - 1


@dataclass(frozen=True, eq=False)
class RegistrationRecord:
    """One registration of an agent, as others know it.

    Attributes:
        slot: its number in the agent's registry, below 2**32.
        generation: which registration of the slot this is, from 1; never used again.
        memory: ``"DRAM"`` or ``"VRAM"``.
        device: the GPU's number; 0 for DRAM.
        segment_id: the segment that holds it; 0 = memory of the process, in no segment.
        ranges: (N, 3) uint64, read-only, sorted: address, length in bytes, and where it begins in the segment, in bytes
            (0 outside of segments). No two overlap. (N, 2) is taken as well, with 0 for the third.

    Raises:
        MetadataError: what can't be.
    """

    slot: int
    generation: int
    memory: Memory
    device: int
    segment_id: int
    ranges: UInt64s = field(repr=False)

    def __post_init__(self) -> None:
        _check_number("slot", self.slot, 32)
        _check_number("generation", self.generation, 64, least=1)
        _check_number("device", self.device, 32)
        _check_number("segment_id", self.segment_id, 64)
        try:
            checked_memory(self.memory)
        except ConfigError as error:
            raise MetadataError(f"{_WHAT}: {error}") from error
        object.__setattr__(self, "ranges", _checked_ranges(self.ranges))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RegistrationRecord):
            return NotImplemented
        return self._numbers() == other._numbers() and np.array_equal(self.ranges, other.ranges)

    def __hash__(self) -> int:
        return hash(self._numbers())

    def _numbers(self) -> tuple[Any, ...]:
        return self.slot, self.generation, self.memory, self.device, self.segment_id


@dataclass(frozen=True)
class AgentMetadata:
    """A snapshot of an agent: what ``Agent.metadata()`` gives and ``Agent.add_peer()`` takes, as bytes.

    Attributes:
        name: the agent's, from 1 to 255 bytes of UTF-8.
        instance: 16 random bytes; another agent of the same name has others.
        secret: 16 random bytes that whoever connects has to show.
        boot_id: of the kernel that the agent runs on; empty = unknown.
        netns: the inode of its network namespace; 0 = unknown.
        socket_name: of its abstract Unix socket, without the leading NUL; empty = none.
        network_address: where UCX reaches it; empty = not on a network.
        network_transports: what that address offers, such as ``"tcp"``; for people.
        registrations: what it registered.
        complete: whether these are all registrations, which replace what was known; False = they are added to it.

    Raises:
        MetadataError: what can't be.
    """

    name: str
    instance: bytes
    secret: bytes = field(repr=False)
    boot_id: str = ""
    netns: int = 0
    socket_name: str = ""
    network_address: bytes = field(default=b"", repr=False)
    network_transports: str = ""
    registrations: tuple[RegistrationRecord, ...] = field(default=(), repr=False)
    complete: bool = True

    def __post_init__(self) -> None:
        _check_text("name", self.name, least=1, most=MOST_NAME_BYTES)
        for name in ("instance", "secret"):
            if len(getattr(self, name)) != ID_BYTES:
                raise MetadataError(f"{_WHAT}: {name} of {len(getattr(self, name))} bytes; it has {ID_BYTES}")
        for name in ("boot_id", "socket_name", "network_transports"):
            _check_text(name, getattr(self, name))
        _check_number("netns", self.netns, 64)
        if len(self.network_address) > _MOST_ADDRESS_BYTES:
            raise MetadataError(
                f"{_WHAT}: a network address of {len(self.network_address)} bytes; at most {_MOST_ADDRESS_BYTES}"
            )
        object.__setattr__(self, "registrations", tuple(self.registrations))
        if len(self.registrations) > MOST_REGISTRATIONS:
            raise MetadataError(f"{_WHAT}: {len(self.registrations)} registrations; at most {MOST_REGISTRATIONS}")
        if len({record.slot for record in self.registrations}) != len(self.registrations):
            raise MetadataError(f"{_WHAT}: two registrations in one slot")

    @property
    def host(self) -> Host:
        """Where it runs, as far as shared memory is concerned."""
        return Host(self.boot_id, self.netns)

    def to_bytes(self) -> bytes:
        """The snapshot in a form that ``from_bytes`` reads, anywhere.

        Raises:
            MetadataError: longer than 64 MiB.
        """
        writer = Writer(_WHAT, _MAGIC, _VERSION).text(self.name, most=MOST_NAME_BYTES)
        writer.raw(self.instance).raw(self.secret).text(self.boot_id, most=_MOST_TEXT_BYTES)
        writer.u64(self.netns).text(self.socket_name, most=_MOST_TEXT_BYTES)
        writer.sized(self.network_address, most=_MOST_ADDRESS_BYTES)
        writer.text(self.network_transports, most=_MOST_TEXT_BYTES)
        writer.u8(self.complete).u32(len(self.registrations))
        for record in self.registrations:
            writer.u32(record.slot).u64(record.generation).u8(MEMORIES.index(record.memory))
            writer.u32(record.device).u64(record.segment_id).u64s(record.ranges)
        return writer.done()

    @staticmethod
    def from_bytes(blob: Buffer) -> AgentMetadata:
        """The snapshot that ``to_bytes`` wrote.

        Raises:
            MetadataError: it isn't one, from the first byte to the last.
        """
        reader = Reader(_WHAT, blob, _MAGIC, _VERSION)
        metadata = AgentMetadata(
            name=reader.text(most=MOST_NAME_BYTES),
            instance=reader.raw(ID_BYTES),
            secret=reader.raw(ID_BYTES),
            boot_id=reader.text(most=_MOST_TEXT_BYTES),
            netns=reader.u64(),
            socket_name=reader.text(most=_MOST_TEXT_BYTES),
            network_address=reader.sized(most=_MOST_ADDRESS_BYTES),
            network_transports=reader.text(most=_MOST_TEXT_BYTES),
            complete=bool(_below(reader.u8(), 2, "complete")),
            registrations=_records(reader),
        )
        reader.end()
        return metadata


def merge(known: AgentMetadata | None, newer: AgentMetadata) -> AgentMetadata:
    """What is known of an agent after ``newer`` arrived.

    Another instance of the same name is another agent: nothing of the old one is kept. Of the same instance a complete
    snapshot replaces all registrations; a partial one adds its own, and in a slot that both have the higher generation
    stays, or of the same generation what both tell. A partial snapshot without a network address leaves the known one.

    Raises:
        ConfigError: they are of agents with different names.
    """
    if known is None or known.instance != newer.instance:
        if known is not None and known.name != newer.name:
            raise ConfigError(f"metadata of {newer.name!r} can't be added to that of {known.name!r}")
        return newer
    if newer.complete:
        return newer
    slots = {record.slot: record for record in known.registrations}
    for record in newer.registrations:
        before = slots.get(record.slot)
        if before is None or before.generation < record.generation:
            slots[record.slot] = record
        elif before.generation == record.generation:
            slots[record.slot] = _united(before, record)
    merged = replace(newer, registrations=tuple(slots.values()), complete=known.complete)
    if newer.network_address:
        return merged
    return replace(merged, network_address=known.network_address, network_transports=known.network_transports)


def _united(known: RegistrationRecord, newer: RegistrationRecord) -> RegistrationRecord:
    """Two parts of one registration."""
    if (known.memory, known.device, known.segment_id) != (newer.memory, newer.device, newer.segment_id):
        raise MetadataError(f"{_WHAT}: slot {newer.slot} of one generation, but in two kinds of memory")
    rows = np.concatenate([known.ranges, newer.ranges])
    # Ranges join only where their offsets go on as their addresses do; outside of segments there are no offsets.
    rows[:, 2] -= rows[:, 0] * np.uint64(newer.segment_id != 0)
    rows = coalesced(rows)
    rows[:, 2] += rows[:, 0] * np.uint64(newer.segment_id != 0)
    return replace(newer, ranges=rows[np.argsort(rows[:, 0])])


def _records(reader: Reader) -> tuple[RegistrationRecord, ...]:
    count = reader.u32()
    if count > MOST_REGISTRATIONS:
        raise MetadataError(f"{_WHAT}: {count} registrations; at most {MOST_REGISTRATIONS}")
    # A list that grows as records are really there: the count alone gets no memory.
    return tuple([_record(reader) for _ in range(count)])


def _record(reader: Reader) -> RegistrationRecord:
    return RegistrationRecord(
        slot=reader.u32(),
        generation=reader.u64(),
        memory=MEMORIES[_below(reader.u8(), len(MEMORIES), "memory")],
        device=reader.u32(),
        segment_id=reader.u64(),
        ranges=reader.u64s(most=3 * _MOST_RANGES, width=3),
    )


def _checked_ranges(ranges: npt.ArrayLike) -> UInt64s:
    table = np.array(ranges)
    if table.ndim != 2 or table.shape[1] not in (2, 3) or table.dtype != np.uint64 or not len(table):
        raise MetadataError(
            f"{_WHAT}: ranges of shape {table.shape} and dtype {table.dtype}; (N, 2) or (N, 3) uint64 with N from 1"
        )
    if table.shape[1] == 2:
        table = np.column_stack([table, np.zeros(len(table), np.uint64)])
    address, length, offset = table.T
    room = np.uint64(_TOP) - length
    if not length.all() or (address > room).any() or (offset > room).any():
        raise MetadataError(f"{_WHAT}: a range that is empty, or ends beyond 2**64 - 1")
    if (address[1:] < address[:-1] + length[:-1]).any():
        raise MetadataError(f"{_WHAT}: ranges that overlap, or aren't sorted by address")
    table.flags.writeable = False
    return table


def _check_text(name: str, value: str, *, least: int = 0, most: int = _MOST_TEXT_BYTES) -> None:
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise MetadataError(f"{_WHAT}: {name} {value!r} can't be said in UTF-8: {error.reason}") from error
    if not least <= size <= most:
        raise MetadataError(f"{_WHAT}: {name} of {size} bytes; from {least} to {most} are allowed")


def _check_number(name: str, value: int, bits: int, least: int = 0) -> None:
    if not least <= value < 1 << bits:
        raise MetadataError(f"{_WHAT}: {name} is {value}; it is from {least} to 2**{bits} - 1")


def _below(value: int, limit: int, name: str) -> int:
    if value >= limit:
        raise MetadataError(f"{_WHAT}: {name} is {value}; it is below {limit}")
    return value
