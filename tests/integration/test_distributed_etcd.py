"""A shared job over a real etcd: its leader is killed, or stands still, in the middle, and another one goes on."""

from __future__ import annotations

import signal
import time
from collections import Counter
from contextlib import ExitStack

import pytest
from packing import pack_random
from test_distributed_processes import Program
from tests.coordinators import Process

from waiting import wait_until

SAMPLES = 1200
LEADER_TTL_S = 2  # etcd's least
LEASE_TTL_S = 8  # longer than nobody leads, so that nothing comes twice
SOON_S = 15.0  # from the fault to the end, on a busy machine: a leader's ttl, and what is left to do


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack_random(tmp_path_factory.mktemp("shared"), SAMPLES) / "packed"


@pytest.fixture
def pair(etcd_server, etcd_namespace, packed, tmp_path):
    """Two coordinators of one job: the one that leads, and the other."""
    with ExitStack() as stack:

        def start(name: str) -> Process:
            return stack.enter_context(
                Process(
                    tmp_path / f"{name}.log",
                    *("--addr=127.0.0.1:0", "--job-id=job", "--world-size=2", "--dev-block-size=100", "--shuffle"),
                    *(f"--journal=etcd://127.0.0.1:{etcd_server.port}{etcd_namespace}", f"--dataset-link={packed}"),
                    *(f"--manifest-store-root={tmp_path / 'root'}", f"--leader-ttl-ms={LEADER_TTL_S * 1000}"),
                    *(f"--lease-ttl-ms={LEASE_TTL_S * 1000}", "--heartbeat-interval-ms=200"),
                )
            )

        first = start("first")
        first.wait_for("leading")
        yield first, start("second")


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_the_leader_is_lost_in_the_middle_and_every_sample_comes_once(pair, tmp_path, how):
    leader, other = pair
    both = f"{leader.addr},http://{other.addr}"
    with (
        Program(both, "a", tmp_path / "own", pause_ms=20, coord_timeout_s=20) as a,
        Program(both, "b", tmp_path / "own", pause_ms=20, want=2, coord_timeout_s=20) as b,
    ):
        for program in (a, b):
            while len(program.ids()) < 100:
                assert program.read(), program.said[-1:]
        assert not other.events("leading")
        leader.process.send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        began = time.monotonic()
        if how == "stopped":
            other.wait_for("leading")
            leader.process.send_signal(signal.SIGCONT)  # it must notice that it was replaced
        everything = Counter(a.end() + b.end())
        took_s = time.monotonic() - began
    assert everything == Counter(range(SAMPLES)), everything - Counter(range(SAMPLES))
    assert took_s < SOON_S
    assert len(other.events("leading")) == len(other.events("job_drained")) == 1
    if how == "stopped":
        wait_until(lambda: "doesn't lead" in leader.log.read_text())
        assert leader.process.poll() is None
    assert not leader.events("overlap_detected") and not other.events("lease_expired")
