"""Thousands of transfers between processes that are killed and stopped, in memory that comes and goes under them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from storm import (
    FLOOD_BYTES,
    PIECE_BYTES,
    POISON,
    SINK_BYTES,
    SLOT_BYTES,
    SLOTS,
    SOURCE_BYTES,
    STRIDE_BYTES,
    Epoch,
    pattern,
    slot_pieces,
)

from penstock.errors import DeadlineExceeded
from penstock.transfer import Agent
from puppet import Puppet

LANES = 4
# PENSTOCK_STORM_S=600 for a long one.
STORM_S = float(os.environ.get("PENSTOCK_STORM_S", "10"))


class Crew:
    """Initiators: children of one process, so that a new one costs milliseconds."""

    def __init__(self, mother: Puppet, folder: Path, options: dict[str, Any]) -> None:
        self.mother, self.options = mother, options
        self.path, self.counts_path = folder / "epoch", folder / "counts"
        self.counts = np.memmap(self.counts_path, np.int64, "w+", shape=(LANES, 4))
        self.pids: list[int] = []
        self.stopped: set[int] = set()
        self.births = self.kills = 0

    def start(self, lane: int) -> int:
        self.births += 1
        given = (str(self.path), str(self.counts_path), f"lane{lane}-{self.births}", lane, LANES, self.options)
        import_it = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom storm import initiate\n"
        return self.mother.call("fork", code=f"{import_it}initiate(*{given!r})")

    def begin(self) -> None:
        self.pids = [self.start(lane) for lane in range(LANES)]

    def hurt(self, how: str, lane: int) -> None:
        pid = self.pids[lane]
        if how == "stop":
            os.kill(pid, signal.SIGSTOP)
            self.stopped.add(pid)
        elif how == "kill":
            os.kill(pid, signal.SIGKILL)
            self.kills += 1
            assert self.mother.call("reap", child=pid) == signal.SIGKILL
            self.stopped.discard(pid)
            self.pids[lane] = self.start(lane)

    def go_on(self) -> None:
        for pid in self.stopped:
            os.kill(pid, signal.SIGCONT)
        self.stopped.clear()

    def kill(self) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        self.go_on()
        while self.pids:
            assert self.mother.call("reap", child=self.pids.pop(), within_s=20) == 0, self.mother.errors()


class Owner:
    """The target of it all: makes epochs, and looks after each whether all is as it was said."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.number = 0
        self.graves: list[np.ndarray] = []
        self.told: dict[str, int] = {}
        self.notes: dict[int, list[int]] = {}
        self.checked_slots = self.quarantined = 0

    def open(self, path: Path) -> None:
        self.number += 1
        self.shared = self.number % 3 != 0
        make = self.agent.allocate if self.shared else (lambda size: np.zeros(size, np.uint8))
        sizes = (SINK_BYTES, SOURCE_BYTES, FLOOD_BYTES)
        self.sink, self.source, self.flood = (np.asarray(make(size)).view(np.uint8) for size in sizes)
        self.sink[:] = 0
        self.source[:] = pattern(self.number, SOURCE_BYTES)
        pieces = [self.sink[a:b] for slot in range(SLOTS) for a, b in slot_pieces(0, slot)]
        self.registered = [self.agent.register(each) for each in (pieces, self.source, self.flood)]
        Epoch(self.number, self.agent.metadata(), *(each.descriptors for each in self.registered)).save(path)

    def listen(self) -> None:
        """Takes notes; from each sender each comes once, in order."""
        for sender, message in self.agent.notifications():
            order, epoch, slot = map(int, message.split())
            assert self.told.get(sender, 0) == order, (sender, order, self.told.get(sender))
            self.told[sender] = order + 1
            self.notes.setdefault(epoch, []).append(slot)

    def close(self, anybody_stopped: bool) -> None:
        """Deregisters under load; what was said to be done is there, and from now on nothing changes."""
        held = True
        for registration in self.registered:
            try:
                registration.close(timeout_s=0.2 if anybody_stopped else 20.0)
            except DeadlineExceeded:
                assert anybody_stopped
                held = False
        self.listen()
        for slot in self.notes.pop(self.number, []):
            expected = pattern(self.number * SLOTS + slot, SLOT_BYTES)
            for (a, b), at in zip(slot_pieces(0, slot), range(0, SLOT_BYTES, STRIDE_BYTES), strict=True):
                assert np.array_equal(self.sink[a:b], expected[at : at + PIECE_BYTES]), (self.number, slot)
            self.checked_slots += 1
        gaps = self.sink.reshape(-1, STRIDE_BYTES)[:, PIECE_BYTES:]
        assert not gaps.any(), "somebody wrote beside what it named"
        if not held:
            self.quarantined += 1  # somebody may still write: it is ours to look at no more
        else:
            for memory in (self.sink, self.source, self.flood):
                memory[:] = POISON
                self.graves.append(memory)
        del self.sink, self.source, self.flood
        self.registered = []

    def look(self, keep: int) -> None:
        """Poisoned memory is as it was, until it is freed."""
        for memory in self.graves:
            assert (memory == POISON).all(), "memory was written to after it was deregistered"
        del self.graves[: max(0, len(self.graves) - keep)]


PLANES = {"host": ({}, {}), "network": ({"network": "loopback"}, {"network": "loopback", "require": "tcp"})}


def _rage(owner: Owner, crew: Crew, dice: random.Random) -> None:
    owner.open(crew.path)
    crew.begin()
    until = time.monotonic() + STORM_S
    while time.monotonic() < until:
        for _ in range(dice.randrange(4)):
            crew.hurt(dice.choice(["stop", "kill", "nothing"]), dice.randrange(LANES))
        pause = time.monotonic() + dice.random() * 0.1
        while time.monotonic() < pause:
            owner.listen()
            time.sleep(0.002)
        owner.close(bool(crew.stopped))
        crew.go_on()
        owner.look(keep=4)
        owner.open(crew.path)
    crew.path.unlink()
    owner.close(False)
    crew.end()
    owner.look(keep=0)
    owner.listen()


@pytest.mark.slow
@pytest.mark.parametrize("plane", PLANES)
def test_storm(tmp_path: Path, plane: str) -> None:
    seed = int(os.environ.get("PENSTOCK_STORM_SEED", random.randrange(1 << 30)))
    print("PENSTOCK_STORM_SEED =", seed)
    dice = random.Random(seed)
    with Puppet("mother") as mother, Agent("owner", timeout_s=20, **PLANES[plane][0]) as agent:
        owner, crew = Owner(agent), Crew(mother, tmp_path, PLANES[plane][1])
        try:
            _rage(owner, crew, dice)
        finally:
            crew.kill()
    done, stale, late, wrong = crew.counts.sum(0).tolist()
    print(
        f"{owner.number} epochs, {done} transfers done, {stale} stale, {late} late, {crew.kills} kills, "
        f"{owner.checked_slots} slots checked, {owner.quarantined} quarantined"
    )
    assert wrong == 0
    assert done > 50 * STORM_S
    assert owner.checked_slots > 10
