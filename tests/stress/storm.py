"""An initiator of the transfer storm: writes, reads and notifies until it is told to end, or killed.

The owner publishes an epoch at a time in a file: its metadata, a *sink* that initiators write slots of, each once an
epoch, and a *source* that they read. Every byte of both is known. All of them write all of the *flood* again and again,
so that somebody is always in the middle of a copy. An epoch ends without a word: its memory is
deregistered, poisoned and freed under whatever is under way.
"""

from __future__ import annotations

import random
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import DeadlineExceeded, NotRegistered, PeerLost, StaleDescriptor
from penstock.transfer import Agent, Descriptors, Peer

SLOTS = 256
PIECES = 4
PIECE_BYTES = 3000
STRIDE_BYTES = 4096
SLOT_BYTES = PIECES * STRIDE_BYTES
SINK_BYTES = SLOTS * SLOT_BYTES
SOURCE_BYTES = 1 << 20
READ_BYTES = 64 << 10
FLOOD_BYTES = 4 << 20
POISON = 0xDE


def pattern(seed: int, nbytes: int) -> np.ndarray:
    """Bytes that belong to one seed."""
    words = np.arange(nbytes // 8, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    return (words ^ (words >> np.uint64(31))).view(np.uint8)


def slot_pieces(base: int, slot: int) -> list[tuple[int, int]]:
    """Where a slot's pieces begin and end; there are gaps between them."""
    begin = base + slot * SLOT_BYTES
    return [(at, at + PIECE_BYTES) for at in range(begin, begin + SLOT_BYTES, STRIDE_BYTES)]


@dataclass
class Epoch:
    """What an epoch's file says."""

    number: int
    metadata: bytes
    sink: Descriptors
    source: Descriptors
    flood: Descriptors

    def save(self, path: Path) -> None:
        lists = [each.to_bytes() for each in (self.sink, self.source, self.flood)]
        parts = [struct.pack("<Q", self.number), self.metadata, *lists]
        new = path.with_suffix(".new")
        new.write_bytes(b"".join(struct.pack("<I", len(part)) + part for part in parts))
        new.rename(path)

    @staticmethod
    def load(path: Path) -> Epoch:
        data, parts, at = path.read_bytes(), [], 0
        while at < len(data):
            (size,) = struct.unpack_from("<I", data, at)
            parts.append(data[at + 4 : at + 4 + size])
            at += 4 + size
        number, metadata, *lists = parts
        return Epoch(*struct.unpack("<Q", number), metadata, *map(Descriptors.from_bytes, lists))


class Initiator:
    """One of ``lanes`` initiators: it owns every slot whose number leaves ``lane`` as remainder.

    Args:
        path: the epoch's file; the end comes when it is gone.
        lane: which of the initiators, for its slots.
        counts: (4,) int64 in shared memory: transfers done, stale, late, and wrong reads.
        options: of its agent.
    """

    def __init__(
        self, path: Path, name: str, lane: int, lanes: int, counts: np.ndarray, options: dict[str, Any]
    ) -> None:
        self.path, self.name, self.lane, self.lanes, self.counts = path, name, lane, lanes, counts
        self.random = random.Random(name)
        self.agent = Agent(name, **options)
        self.memory = np.asarray(self.agent.allocate(SLOT_BYTES)).view(np.uint8)
        self.inbound = np.zeros(READ_BYTES, np.uint8)
        self.water = self.agent.allocate(FLOOD_BYTES)
        self.agent.register(self.memory)
        self.agent.register(self.water)
        self.agent.register(self.inbound)
        self.local = self.agent.prepare([self.memory[a:b] for a, b in slot_pieces(0, 0)])
        self.told = 0
        self.last_epoch = -1

    def run(self) -> None:
        while True:
            try:
                epoch = Epoch.load(self.path)
            except FileNotFoundError:
                return
            try:
                self.work(epoch)
            except (StaleDescriptor, NotRegistered):
                self.counts[1] += 1
                time.sleep(0.001)
            except PeerLost:
                if not self.path.exists():
                    return
                self.counts[1] += 1  # we were stopped for longer than the owner bears

    def work(self, epoch: Epoch) -> None:
        peer = self.agent.add_peer(epoch.metadata)
        sink, source = peer.prepare(epoch.sink), int(epoch.source.table[0, 0])
        slots = range(self.lane, SLOTS, self.lanes) if epoch.number != self.last_epoch else range(0)
        self.last_epoch = epoch.number
        for slot in slots:
            self.write(epoch, sink, slot)
            self.read(epoch, peer, source)
        flood = self.agent.transfer("WRITE", self.water, peer.prepare(epoch.flood))
        while True:  # until it is stale
            self.read(epoch, peer, source)
            flood.post()
            flood.wait()
            self.counts[0] += 1

    def write(self, epoch: Epoch, sink: object, slot: int) -> None:
        self.memory[:] = pattern(epoch.number * SLOTS + slot, SLOT_BYTES)
        note = f"{self.told} {epoch.number} {slot}".encode()
        remote = list(range(slot * PIECES, (slot + 1) * PIECES))
        timeout_s = self.random.choice([0.0, 0.001, 5.0])
        transfer = self.agent.transfer(
            "WRITE", self.local, sink, notify=note, remote_indices=remote, timeout_s=timeout_s,
            merge=self.random.random() < 0.5,
        )  # fmt: skip
        transfer.post()
        try:
            transfer.wait()
        except DeadlineExceeded:
            self.counts[2] += 1
            return
        self.told += 1
        self.counts[0] += 1

    def read(self, epoch: Epoch, peer: Peer, source: int) -> None:
        at = self.random.randrange(0, SOURCE_BYTES - READ_BYTES, 8)
        remote = peer.prepare(Descriptors("owner", "DRAM", [(source + at, READ_BYTES)], epoch.source.slots[:1],
                                          epoch.source.generations[:1]))  # fmt: skip
        self.inbound[:] = 0
        self.agent.read(self.inbound, remote).wait()
        self.counts[0] += 1
        if not np.array_equal(self.inbound, pattern(epoch.number, SOURCE_BYTES)[at : at + READ_BYTES]):
            self.counts[3] += 1


def initiate(path: str, counts_path: str, name: str, lane: int, lanes: int, options: dict[str, Any]) -> None:
    """The whole life of an initiator's process."""
    counts = np.memmap(counts_path, np.int64, "r+", shape=(lanes, 4))
    Initiator(Path(path), name, lane, lanes, counts[lane], options).run()
