"""Output of a shared job: written before it counts, there once, whole, and replaced by a re-run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from penstock.coordinator.events import (
    Done,
    Granted,
    GrantedLease,
    Leave,
    Progress,
    Recover,
    Register,
    RequestLease,
)
from penstock.coordinator.rules import apply, begin
from penstock.coordinator.state import Caps, Job, Terms
from penstock.distributed.job import SUCCESS, finish_job, run_job
from penstock.distributed.parts import Part, part_key, read_part
from penstock.errors import ConfigError, DataError
from penstock.store import open_store

SAMPLES = 23


class SmallJob:
    """The rules, without a server."""

    def __init__(self, fence: int = 0, nodes: int = 1, epochs: int = 1) -> None:
        self.now = 0.0
        self.state = begin(Job("m" * 64, SAMPLES, 8, world_size=nodes, epochs=epochs), Terms(), fence=fence).state
        self.do(Recover(1))

    def do(self, event: Any) -> Any:
        outcome = apply(self.state, event, self.now)
        self.state = outcome.state
        return outcome.reply


class SmallLoader:
    """A node's loader that has one lease at a time, and batches of three."""

    manifest_hash, sample_count = "m" * 64, SAMPLES

    def __init__(self, job: SmallJob, node: str = "a", instance: str = "0") -> None:
        self.job, self.me = job, ("job", node)
        self.instance = instance
        self.in_hand: Part | None = None
        self.lease: GrantedLease | None = None
        self.lost = 0
        self.by_hand = False
        job.do(Register(*self.me, Caps(), instance))

    @property
    def samples_in_hand(self) -> int:
        return self.in_hand.end - self.in_hand.start if self.in_hand else 0

    def count_by_hand(self) -> None:
        self.by_hand = True

    def stats(self) -> dict[str, int]:
        return {"leases_lost_total": self.lost}

    def done(self) -> None:
        assert self.by_hand and self.in_hand and self.lease
        event = Progress(*self.me, self.lease.lease_id, self.in_hand.end, 0, 0, self.instance, self.lease.fence)
        if not isinstance(self.job.do(event), Done):
            self.lost, self.lease = self.lost + 1, None
        elif self.in_hand.end == self.lease.end:
            self.lease = None

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            reply = self.job.do(RequestLease(*self.me, 1, self.instance))
            assert isinstance(reply, Granted)
            if reply.drained:
                return
            (self.lease,) = reply.leases
            at, end = self.lease.cursor, self.lease.end
            while self.lease and at < end:
                self.in_hand = Part(self.lease.epoch, at, min(end, at + 3), self.lease.fence)
                yield list(range(at, self.in_hand.end))
                at = self.in_hand.end

    def close(self) -> None:
        self.job.do(Leave(*self.me, self.instance))


def lines(out: Path) -> list[Any]:
    """What a reader reads: the parts that are listed."""
    listed = json.loads((out / SUCCESS).read_text())
    texts = [(out / part["name"]).read_text() for part in listed["parts"]]
    assert [part["bytes"] for part in listed["parts"]] == [len(text) for text in texts]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def identities(batch: list[int]) -> list[int]:
    return batch


def names(out: Path) -> set[str]:
    return {path.name for path in out.iterdir() if path.name != SUCCESS}


def test_each_sample_is_there_once_and_listed(tmp_path):
    output = run_job(SmallLoader(SmallJob()), identities, out=tmp_path)
    assert lines(tmp_path) == list(range(SAMPLES))
    assert set(output.parts) == names(tmp_path) and output.written == len(output.parts) == 9
    assert json.loads((tmp_path / SUCCESS).read_text())["samples"] == SAMPLES


def test_what_fn_raises_comes_out_and_its_batch_is_done_by_who_comes_next(tmp_path):
    job = SmallJob()
    loader = SmallLoader(job)

    def fails(batch: list[int]) -> list[int]:
        if 5 in batch:
            raise ZeroDivisionError
        return batch

    with pytest.raises(ZeroDivisionError):
        run_job(loader, fails, out=tmp_path)
    loader.close()
    assert not (tmp_path / SUCCESS).exists()
    run_job(SmallLoader(job, instance="1"), identities, out=tmp_path)
    assert lines(tmp_path) == list(range(SAMPLES))


def test_a_part_that_was_written_and_never_counted_is_replaced(tmp_path):
    job = SmallJob()
    loader = SmallLoader(job)
    taken = []

    def dies() -> None:
        taken.append(loader.in_hand)
        if len(taken) == 2:
            raise KeyboardInterrupt
        SmallLoader.done(loader)

    loader.done = dies
    with pytest.raises(KeyboardInterrupt):
        run_job(loader, lambda batch: [0] * len(batch), out=tmp_path)
    loader.close()
    orphan = next(name for name in names(tmp_path) if read_part(name).start == taken[1].start)
    run_job(SmallLoader(job, instance="1"), identities, out=tmp_path)
    assert lines(tmp_path) == [0, 0, 0, *range(3, SAMPLES)]
    assert orphan not in names(tmp_path)


def test_a_job_that_is_run_again_replaces_what_was_there_once_it_is_whole(tmp_path):
    run_job(SmallLoader(SmallJob(fence=100)), lambda batch: "old\n" * len(batch), out=tmp_path)
    before = (tmp_path / SUCCESS).read_text()
    again = SmallLoader(SmallJob(fence=200))

    def looks(batch: list[int]) -> list[int]:
        assert (tmp_path / SUCCESS).read_text() == before
        return batch

    run_job(again, looks, out=tmp_path)
    assert lines(tmp_path) == list(range(SAMPLES))
    assert all(name.endswith(".jsonl") for name in names(tmp_path))


def test_a_job_of_fewer_epochs_replaces_all_of_an_earlier_one(tmp_path):
    run_job(SmallLoader(SmallJob(fence=100, epochs=2)), lambda batch: "old\n" * len(batch), out=tmp_path)
    assert json.loads((tmp_path / SUCCESS).read_text())["epochs"] == [0, 1]
    run_job(SmallLoader(SmallJob(fence=200)), identities, out=tmp_path)
    assert lines(tmp_path) == list(range(SAMPLES))
    assert all(name.endswith(".jsonl") for name in names(tmp_path))


def test_an_earlier_job_with_larger_fences_is_told(tmp_path):
    run_job(SmallLoader(SmallJob(fence=200)), identities, out=tmp_path)
    with pytest.raises(DataError, match="another job whose fences are larger"):
        run_job(SmallLoader(SmallJob(fence=100)), identities, out=tmp_path)


def test_output_that_is_not_whole_is_told_and_nothing_is_removed(tmp_path):
    run_job(SmallLoader(SmallJob()), identities, out=tmp_path)
    (tmp_path / SUCCESS).unlink()
    gone = next(name for name in sorted(names(tmp_path)) if read_part(name).start == 8)
    (tmp_path / gone).unlink()
    orphan = part_key(Part(0, 0, 3, 0, suffix=".jsonl"))
    (tmp_path / orphan).write_text("")
    with pytest.raises(DataError, match=r"\[8, 11\): missing"):
        finish_job(open_store(str(tmp_path)), sample_count=SAMPLES, manifest_hash="m" * 64)
    assert orphan in names(tmp_path) and not (tmp_path / SUCCESS).exists()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([Part(0, 0, 21, 3), Part(0, 21, 25, 9)], "of other samples"),
        ([Part(0, 0, SAMPLES, 9), Part(0, SAMPLES + 2, 30, 3)], "of other samples"),  # of a larger dataset
        ([Part(0, 0, SAMPLES, 2), Part(0, 1, 2, 2)], "there twice"),
    ],
)
def test_parts_of_something_else_are_told(tmp_path, parts, message):
    for part in parts:
        (tmp_path / part_key(part)).write_text("")
    with pytest.raises(DataError, match=message):
        finish_job(open_store(str(tmp_path)), sample_count=SAMPLES, manifest_hash="m" * 64)


def test_leases_without_fences_are_refused(tmp_path):
    class Fenceless(SmallLoader):
        def __iter__(self):
            for batch in super().__iter__():
                self.in_hand = self.in_hand._replace(fence=0)
                yield batch

    with pytest.raises(ConfigError, match="no fences"):
        run_job(Fenceless(SmallJob()), identities, out=tmp_path)


def test_what_else_lies_there_stays(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    run_job(SmallLoader(SmallJob()), identities, out=tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_job_of_two_nodes_ends_with_one_list(tmp_path):
    job = SmallJob(nodes=2)
    loaders = [SmallLoader(job, node) for node in "ab"]
    job.do(Leave("job", "b", "0"))  # its blocks go to a
    first = run_job(loaders[0], identities, out=tmp_path)
    second = run_job(loaders[1], identities, out=tmp_path)
    assert first.parts == second.parts and second.written == 0
    assert lines(tmp_path) == list(range(SAMPLES))


@pytest.mark.parametrize(
    ("result", "suffix", "data"),
    [
        (b"\x00\x01", ".bin", b"\x00\x01"),
        (bytearray(b"ab"), ".bin", b"ab"),
        (memoryview(b"ab"), ".bin", b"ab"),
        ("é", ".txt", "é".encode()),
        ("", ".txt", b""),
    ],
)
def test_bytes_and_text_are_written_as_they_are(tmp_path, result, suffix, data):
    output = run_job(SmallLoader(SmallJob()), lambda batch: result, out=tmp_path)
    assert all(name.endswith(suffix) for name in output.parts)
    assert {(tmp_path / name).read_bytes() for name in output.parts} == {data}


def test_tables_become_parquet(tmp_path):
    output = run_job(SmallLoader(SmallJob()), lambda batch: pyarrow.table({"id": batch}), out=tmp_path)
    ids = [each for name in output.parts for each in parquet.read_table(tmp_path / name)["id"].to_pylist()]
    assert ids == list(range(SAMPLES))


DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "returned NoneType"),
        ([1], "1 values for 3 samples"),
        ([b"", 1, 2], "JSON"),
        ([float("nan")] * 3, "JSON"),
        ([DEEP] * 3, "JSON"),
        ("a\ud800", "UTF-8 can't hold .*, at 1"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_counts(tmp_path, result, message):
    job = SmallJob()
    with pytest.raises(ConfigError, match=message):
        run_job(SmallLoader(job), lambda batch: result, out=tmp_path)
    assert job.state.done() == () and not (tmp_path.exists() and names(tmp_path))
