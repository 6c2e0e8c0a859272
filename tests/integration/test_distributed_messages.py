"""A shared job in real processes, over a line on which messages are lost, late, said twice, and said again later."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from packing import pack_random
from test_distributed_processes import Program
from test_run_job_processes import EXPECTED, finish, read_output, start
from test_run_job_processes import packed as packed_numbers
from tests.coordinators import Process
from tests.message_proxy import MessageProxy

SAMPLES = 1200

numbers = packed_numbers


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack_random(tmp_path_factory.mktemp("shared"), SAMPLES) / "packed"


def coordinator(packed: Path, folder: Path, *options: str) -> Process:
    return Process(
        folder / "coordinator.log",
        *("--addr=127.0.0.1:0", "--journal=memory:", f"--dataset-link={packed}", "--job-id=job", "--world-size=2"),
        *(f"--manifest-store-root={folder / 'store'}", "--heartbeat-interval-ms=100", "--steal", *options),
    )


def healthy(job: Process) -> None:
    text = job.log.read_text()
    assert "overlap_detected" not in text and "Traceback" not in text and "couldn't be decided" not in text, text


def test_nothing_is_handed_out_twice_when_messages_are_lost_late_and_said_twice(packed, tmp_path):
    with (
        coordinator(packed, tmp_path, "--dev-block-size=16", "--shuffle") as job,
        MessageProxy(job.addr, 7, late_s=0.05, lost=0.08, late=0.1, twice=0.2, unanswered=0.08) as line,
        Program(line.addr, "a", tmp_path / "a") as a,
        Program(line.addr, "b", tmp_path / "b", want=3) as b,
    ):
        everything = Counter(a.end() + b.end())
        healthy(job)
    assert everything == Counter(range(SAMPLES)), everything - Counter(range(SAMPLES))
    assert all(line.counts[fault] > 3 for fault in ("lost", "late", "twice", "unanswered")), line.counts


def test_output_is_there_once_when_messages_come_again_later_and_leases_lapse(numbers, tmp_path):
    out = str(tmp_path / "out")
    with (
        coordinator(numbers, tmp_path, "--dev-block-size=10", "--lease-ttl-ms=600") as job,
        MessageProxy(
            job.addr, 1, late_s=0.4, lost=0.05, late=0.05, twice=0.1, again=0.2, unanswered=0.05, silent=0.01
        ) as line,
    ):
        nodes = [start(line.addr, node, tmp_path, out) for node in "ab"]
        for node in nodes:
            finish(node)
        healthy(job)
        assert all(line.counts[fault] for fault in ("lost", "late", "twice", "again", "unanswered")), line.counts
    assert read_output(out) == EXPECTED
