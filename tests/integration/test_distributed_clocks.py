"""Clocks of real processes that jump in the middle of a job: forward by what nobody waits for, the time of day back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from test_run_job_processes import EXPECTED, SAMPLES, parts_of, read_output
from test_run_job_processes import packed as packed_numbers
from tests.coordinators import Process
from tests.jumping_clock import JumpingClock

packed = packed_numbers

TTL_S = 1.5
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
BATCH_S = 0.02


def coordinator(packed: Path, folder: Path, clock: JumpingClock, *options: str) -> Process:
    return Process(
        folder / "coordinator.log",
        *("--addr=127.0.0.1:0", "--journal=memory:", f"--dataset-link={packed}", "--dev-block-size=50"),
        *(f"--manifest-store-root={folder / 'store'}", f"--lease-ttl-ms={TTL_S * 1000:.0f}", "--world-size=2"),
        *("--heartbeat-interval-ms=200", "--steal", *options),
        through=clock.through,
    )


def start(stack: ExitStack, addr: str, name: str, folder: Path, clock: JumpingClock) -> subprocess.Popen[str]:
    loader = {"coord_url": f"http://{addr}", "job_id": "job", "node_id": name, "batch_size_samples": 5, "want": 2}
    loader |= {"manifest_store_root": str(folder / "store"), "progress_interval_ms": 50}
    asked = {"loader": loader, "out": str(folder / "out"), "slow": str(folder / "slow"), "batch_s": BATCH_S}
    command = [sys.executable, "-m", *clock.through, "tests.stress.storm_node", json.dumps(asked)]
    process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    stack.callback(process.kill)
    return process


def wait_for_parts(folder: Path, count: int) -> None:
    until = time.monotonic() + 30
    while len(list((folder / "out").glob("part-*"))) < count:
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("whose", "forward_s"),
    [("coordinator", 0.4 * TTL_S), ("coordinator", HOUR_S), ("node", HOUR_S)],
)
def test_output_is_there_once_whosever_clock_jumps(packed, tmp_path, whose, forward_s):
    clocks = {name: JumpingClock(tmp_path / f"{name}.clock") for name in ("coordinator", "node", "other")}
    with coordinator(packed, tmp_path, clocks["coordinator"]) as job, ExitStack() as stack:
        nodes = [start(stack, job.addr, name, tmp_path, clocks[name]) for name in ("node", "other")]
        for count in (10, 30):
            wait_for_parts(tmp_path, count)
            clocks[whose].jump(forward_s, -DAY_S)
        told = []
        for node in nodes:
            said, complaints = node.communicate(timeout=40)
            assert node.returncode == 0, complaints
            told.append(json.loads(said))
        expired = job.events("lease_expired")
        assert not job.events("overlap_detected"), "of leases"
    out = str(tmp_path / "out")
    assert read_output(out) == EXPECTED
    if whose == "node" or forward_s > TTL_S:  # a coordinator can't tell a small jump from time
        assert not expired and not any(each["lost"] for each in told), "nobody loses a lease"
        assert sum(each["written"] for each in told) == len(parts_of(out)) == SAMPLES // 5, "nothing is done twice"


def test_a_leader_in_etcd_whose_clock_jumps_leads_again(packed, tmp_path, etcd_server, etcd_namespace):
    clock, steady = JumpingClock(tmp_path / "clock"), JumpingClock(tmp_path / "steady")
    journal = f"--journal=etcd://127.0.0.1:{etcd_server.port}{etcd_namespace}"
    with coordinator(packed, tmp_path, clock, journal, "--leader-ttl-ms=2000") as job, ExitStack() as stack:
        job.wait_for("leading")
        nodes = [start(stack, job.addr, name, tmp_path, steady) for name in ("node", "other")]
        wait_for_parts(tmp_path, 10)
        clock.jump(HOUR_S, -DAY_S)
        for node in nodes:
            _, complaints = node.communicate(timeout=40)
            assert node.returncode == 0, complaints
        assert not job.events("overlap_detected")
    assert read_output(str(tmp_path / "out")) == EXPECTED


def test_a_coordinator_that_stood_still_for_longer_than_a_lease_ends_none(packed, tmp_path):
    clock = JumpingClock(tmp_path / "clock")
    with coordinator(packed, tmp_path, clock) as job, ExitStack() as stack:
        nodes = [start(stack, job.addr, name, tmp_path, clock) for name in "ab"]
        wait_for_parts(tmp_path, 10)
        job.process.send_signal(signal.SIGSTOP)
        time.sleep(1.5 * TTL_S)
        job.process.send_signal(signal.SIGCONT)
        told = []
        for node in nodes:
            said, complaints = node.communicate(timeout=40)
            assert node.returncode == 0, complaints
            told.append(json.loads(said))
        assert not job.events("lease_expired")
    assert read_output(str(tmp_path / "out")) == EXPECTED
    assert sum(each["written"] for each in told) == SAMPLES // 5, "nothing is done twice"
