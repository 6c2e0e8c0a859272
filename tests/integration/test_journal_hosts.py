"""Coordinators and etcd's members on three hosts, one of which is cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from etcd_server import find_etcd
from journal_process import JournalProcess
from penstock.testing.hosts import Network
from waiting import wait_until

pytestmark = [pytest.mark.hosts, pytest.mark.slow]


@pytest.fixture
def network():
    with Network(3) as network:
        yield network


@pytest.fixture
def etcd(network, tmp_path):
    """A member on each host; what a journal is told of them."""
    peers = ",".join(f"m{number}=http://{host.address}:2380" for number, host in enumerate(network.hosts))
    members = []
    for number, host in enumerate(network.hosts):
        url, peer = f"http://{host.address}:2379", f"http://{host.address}:2380"
        command = [find_etcd(), "--name", f"m{number}", "--data-dir", str(tmp_path / f"m{number}")]
        command += ["--listen-client-urls", url, "--advertise-client-urls", url, "--unsafe-no-fsync"]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", peers]
        with Path(tmp_path / f"log{number}").open("wb") as log:
            members.append(host.popen(command, stdout=log, stderr=log))
    yield "etcd://" + ",".join(f"{host.address}:2379" for host in network.hosts)
    for member in members:
        member.kill()
        member.wait()


def test_a_leader_that_is_cut_off_knows_and_is_fenced(network, etcd):
    cut, rest = network.hosts[:1], network.hosts[1:]
    left, right = (
        JournalProcess(etcd, f"{host.address}:1", 2.0, popen=host.popen)
        for host in (network.hosts[0], network.hosts[1])
    )
    try:
        term, _ = left.do("lead", 30)
        assert left.do("commit", {"a": "1"}) is None
        network.partition(cut, rest)
        right.ask("lead", 60)
        wait_until(lambda: left.do("lost"), within_s=30)
        left.ask("commit", {"a": "stale"})  # waits for an answer
        assert right.answer()[0] > term
        assert right.do("load") == {"a": "1"}
        assert right.do("commit", {"a": "2"}) is None
        network.heal()
        assert left.answer() == "NotLeader"
        assert left.do("load") == "NotLeader"
        assert left.do("leader") == f"{network.hosts[1].address}:1"
        assert right.do("load") == {"a": "2"}
    finally:
        left.kill()
        right.kill()
