"""Parts of output, whoever wrote them, in whatever order, and however often: those that stand give each sample once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from penstock.distributed.parts import Part, gaps, part_key, read_part, standing

SAMPLES = 24


KINDS = ["grant", "grant", "write", "write", "report", "report", "lose", "write late"]


@dataclass
class Lease:
    fence: int
    committed: int
    end: int
    written: int


class History:
    """What a job of leases leaves behind: every part that was written, and the fence a sample was committed under.

    A node that lost its lease may go on writing, under its old fence, at any time after.
    """

    def __init__(self) -> None:
        self.free = [(0, SAMPLES)]
        self.live: list[Lease] = []
        self.lost: list[Lease] = []
        self.parts: list[Part] = []
        self.committed: dict[int, int] = {}
        self.fence = 0

    def step(self, kind: str, which: int, amount: int) -> None:
        places = {"grant": self.free, "write late": self.lost}.get(kind, self.live)
        if not places:
            return
        at = which % len(places)
        if kind == "grant":
            self.grant(at, amount)
        elif kind == "lose":
            lease = self.live.pop(at)
            self.lost.append(lease)
            self.free.append((lease.committed, lease.end))
        elif kind == "report":
            self.report(self.live[at])
        else:
            self.write(places[at], amount)

    def grant(self, at: int, amount: int) -> None:
        start, end = self.free.pop(at)
        if start + amount < end:
            self.free.append((start + amount, end))
            end = start + amount
        self.fence += 1
        self.live.append(Lease(self.fence, start, end, start))

    def write(self, lease: Lease, amount: int) -> None:
        until = min(lease.end, lease.written + amount)
        if lease.written < until:
            self.parts.append(Part(0, lease.written, until, lease.fence))
        lease.written = until

    def report(self, lease: Lease) -> None:
        for sample in range(lease.committed, lease.written):
            assert sample not in self.committed
            self.committed[sample] = lease.fence
        lease.committed = lease.written
        if lease.committed == lease.end:
            self.live.remove(lease)

    def finish(self) -> None:
        while self.free or self.live:
            while self.free:
                self.grant(0, SAMPLES)
            self.write(self.live[0], SAMPLES)
            self.report(self.live[0])


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 9), st.integers(1, 8)), max_size=40), st.randoms())
def test_the_parts_that_stand_are_the_committed_ones_and_give_each_sample_once(steps, order):
    history = History()
    for step in steps:
        history.step(*step)
    history.finish()
    order.shuffle(history.parts)
    stand = standing([*history.parts, *history.parts])
    fences = {}
    for part in stand:
        for sample in range(part.start, part.end):
            assert sample not in fences, "twice"
            fences[sample] = part.fence
    assert fences == history.committed and set(fences) == set(range(SAMPLES))
    assert stand == sorted(stand) and gaps(stand, SAMPLES) == []


ranges = st.tuples(st.integers(0, 20), st.integers(1, 9), st.integers(1, 6), st.integers(0, 1))


@given(st.lists(ranges))
def test_a_part_stands_unless_a_larger_fence_overlaps_it_or_is_of_an_earlier_epoch(drawn):
    parts = {Part(epoch, start, start + size, fence) for start, size, fence, epoch in drawn}
    expected = [
        part
        for part in parts
        if not any(
            other.epoch < part.epoch
            or (other.epoch == part.epoch and other.start < part.end and part.start < other.end)
            for other in parts
            if other.fence > part.fence
        )
    ]
    assert standing(parts) == sorted(expected)


@given(st.lists(ranges))
def test_gaps_are_the_samples_in_no_part(drawn):
    parts = [Part(0, start, start + size, fence) for start, size, fence, _ in drawn]
    covered = {sample for part in parts for sample in range(part.start, part.end)}
    found = gaps(parts, 18)
    assert [each for start, end in found for each in range(start, end)] == sorted(set(range(18)) - covered)


@given(ranges, st.binary(), st.sampled_from([".bin", ".jsonl", ".parquet"]))
def test_a_name_says_what_its_part_is(drawn, data, suffix):
    start, size, fence, epoch = drawn
    part = Part(epoch, start, start + size, fence, hashlib.sha256(data).hexdigest()[:16], suffix)
    assert read_part(part_key(part)) == part


def test_other_names_are_no_parts():
    name = part_key(Part(0, 0, 5, 1))
    assert read_part(name) is not None
    empty = name.replace("-000000000000-", "-000000000005-")
    for key in ("_SUCCESS.json", "", empty, f"{name}/x", f"x/{name}", name[:-4], name.replace("-f", "-g"), f"{name}\n"):
        assert read_part(key) is None
