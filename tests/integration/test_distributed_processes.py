"""A shared job in real processes: nodes and coordinators that are killed -9, restarted, and gone for good."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from packing import pack_random
from tests.coordinators import Process
from tests.server_process import free_ports

from penstock.coordinator.client import Client
from waiting import wait_until

SAMPLES = 1200
NODE = Path(__file__).with_name("shared_node.py")


class Program:
    """A node's process, and what it said."""

    def __init__(self, addr: str, node_id: str, root: Path, **arguments) -> None:
        given = [f"{name}={json.dumps(value)}" for name, value in arguments.items()]
        self.process = subprocess.Popen(
            [sys.executable, str(NODE), f"http://{addr}", node_id, str(root), *given],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said: list[dict] = []

    def read(self) -> bool:
        line = self.process.stdout.readline()
        if line:
            self.said.append(json.loads(line))
        return bool(line)

    def until(self, event: str) -> dict:
        while not self.said or self.said[-1]["event"] != event:
            assert self.read(), self.said[-3:]
        return self.said[-1]

    def ids(self) -> list[int]:
        return [sample for line in self.said if line["event"] == "batch" for sample in line["ids"]]

    def end(self) -> list[int]:
        """All ids, once it has ended as it should."""
        while self.read():
            pass
        assert self.process.wait(20) == 0, self.said[-1:]
        return self.ids()

    def kill(self) -> list[int]:
        self.process.kill()
        while self.read():
            pass
        self.process.wait()
        return self.ids()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack_random(tmp_path_factory.mktemp("shared"), SAMPLES) / "packed"


@pytest.fixture
def coordinator(packed, tmp_path):
    def start(*options: str, journal: str = "memory:", port: int = 0) -> Process:
        return Process(
            tmp_path / "coordinator.log",
            f"--addr=127.0.0.1:{port}",
            f"--dataset-link={packed}",
            f"--manifest-store-root={tmp_path / 'root'}",
            f"--journal={journal}",
            "--job-id=job",
            "--dev-block-size=100",
            "--heartbeat-interval-ms=100",
            *options,
        )

    return start


@pytest.fixture
def node(tmp_path):
    def start(coordinator, node_id: str, **arguments) -> Program:
        return Program(coordinator.addr, node_id, tmp_path / "own", **arguments)

    return start


def done_count(coordinator) -> int:
    client = Client(f"http://{coordinator.addr}", "job")
    try:
        return sum(end - start for start, end in client.checkpoint()["done"])
    finally:
        client.close()


def digest(ids: list[int]) -> str:
    """MX8's: of the sorted ids, as little-endian 64-bit numbers."""
    return hashlib.sha256(np.sort(np.array(ids, dtype="<u8")).tobytes()).hexdigest()[:16]


def test_two_ranks_have_no_sample_in_common_and_the_same_ones_again(coordinator, node):
    def run(*options: str) -> list[str]:
        with (
            coordinator("--world-size=2", "--shuffle", *options) as shared,
            node(shared, "a") as a,
            node(shared, "b", want=2) as b,
        ):
            found = [a.end(), b.end()]
        assert Counter(found[0] + found[1]) == Counter(range(SAMPLES))
        return [digest(ids) for ids in found]

    first = run("--seed=1")
    assert run("--seed=1") == first
    assert run("--seed=1", "--epoch=1") != first


def test_a_node_killed_with_a_batch_in_hand_repeats_only_that(coordinator, node):
    with (
        coordinator("--world-size=3", "--lease-ttl-ms=1000") as shared,
        node(shared, "a", pause_ms=5) as a,
        node(shared, "b", pause_ms=5, want=2) as b,
        node(shared, "c", hold=5, want=2) as c,
    ):
        c.until("holding")
        wait_until(lambda: all(program.read() for program in (a, b)) and done_count(shared) >= 4 * 16)
        time.sleep(0.2)  # ten reports: its cursors are known
        lost = c.kill()
        everything = Counter(a.end() + b.end() + lost)
    assert set(everything) == set(range(SAMPLES))
    assert sorted((everything - Counter(range(SAMPLES))).elements()) == sorted(lost[-16:])


def test_a_coordinator_killed_and_restarted_with_its_journal_loses_nothing(coordinator, node, tmp_path):
    (port,) = free_ports(1)
    options = {"journal": f"file:{tmp_path / 'journal'}", "port": port}
    first = coordinator("--world-size=2", "--lease-ttl-ms=2000", **options)
    with first, node(first, "a", pause_ms=10) as a, node(first, "b", pause_ms=10, want=3) as b:
        for program in (a, b):
            while len(program.ids()) < 100:
                program.read()
        first.process.kill()
        first.process.wait()
        with coordinator("--world-size=2", "--lease-ttl-ms=2000", **options):
            everything = Counter(a.end() + b.end())
    assert everything == Counter(range(SAMPLES))


def test_a_coordinator_that_is_gone_for_good_is_said_within_the_deadline(coordinator, node):
    with coordinator("--lease-ttl-ms=500") as shared, node(shared, "a", pause_ms=5, coord_timeout_s=1.5) as a:
        a.until("batch")
        shared.process.kill()
        killed = time.monotonic()
        failed = a.until("failed")
        assert failed["kind"] == "CoordinatorUnreachable"
        assert "coord_timeout_s" in failed["text"]
        assert time.monotonic() - killed < 12


@pytest.mark.parametrize("by", ["loaders", "coordinator"])
def test_a_job_goes_on_with_other_nodes_from_a_checkpoint(coordinator, node, tmp_path, by):
    with (
        coordinator("--world-size=1", "--shuffle", "--seed=9") as shared,
        node(shared, "only", hold=20, want=2) as only,
    ):
        only.until("holding")
        in_hand = len(only.said[-2]["ids"])
        wait_until(lambda: done_count(shared) == len(only.ids()) - in_hand)
        client = Client(f"http://{shared.addr}", "job")
        state = client.checkpoint()
        client.close()
        taken = only.kill()[:-in_hand]
    saved = tmp_path / "state.json"
    saved.write_text(json.dumps(state))
    options = ["--world-size=3", "--shuffle", "--seed=9", *([f"--resume={saved}"] if by == "coordinator" else [])]
    resume = {"resume": state} if by == "loaders" else {}
    with coordinator(*options) as shared:
        programs = [node(shared, f"n{index}", **resume) for index in range(3)]
        rest = [sample for program in programs for sample in program.end()]
        for program in programs:
            program.__exit__()
    assert Counter(taken + rest) == Counter(range(SAMPLES))


def test_a_token_is_asked_for(coordinator, node, monkeypatch):
    monkeypatch.setenv("PENSTOCK_COORD_TOKEN", "secret")
    with coordinator() as shared:
        with node(shared, "a", token="wrong") as wrong:
            failed = wrong.until("failed")
        assert failed["kind"] == "CoordinatorRefused"
        with node(shared, "a") as right:
            assert sorted(right.end()) == list(range(SAMPLES))


def test_a_manifest_beyond_one_message_is_streamed(coordinator, node, tmp_path):
    data = tmp_path / "data.bin"
    data.write_bytes(bytes(1000))
    rows = 40_000
    table = tmp_path / "table.tsv"
    long_name = tmp_path / ("x" * 120)
    long_name.symlink_to(data)
    table.write_text("".join(f"{row}\t{long_name}\t{row % 900}\t8\t\n" for row in range(rows)))
    options = [f"--dev-manifest-path={table}", f"--dataset-link={tmp_path}", "--dev-block-size=10000"]
    with coordinator(*options) as shared, node(shared, "a", batch_size_samples=8192) as a:
        assert sorted(a.end()) == list(range(rows))
    (kept,) = (tmp_path / "own" / "by-hash").iterdir()
    assert kept.stat().st_size > 4 << 20


def test_another_coordinator_takes_over_and_nodes_find_it(coordinator, node, tmp_path):
    """One node is told both addresses, and the other only that of the one which doesn't lead yet."""
    options = {"journal": f"file:{tmp_path / 'journal'}"}
    with (
        coordinator("--world-size=2", "--lease-ttl-ms=2000", **options) as first,
        coordinator("--world-size=2", "--lease-ttl-ms=2000", **options) as second,
        Program(f"{first.addr},http://{second.addr}", "a", tmp_path / "own", pause_ms=10) as a,
        node(second, "b", pause_ms=10, want=2) as b,
    ):
        for program in (a, b):
            while len(program.ids()) < 100:
                assert program.read(), program.said[-1:]
        first.process.kill()
        everything = Counter(a.end() + b.end())
    assert everything == Counter(range(SAMPLES))
