"""Metadata between hosts: over a line that loses packets, is cut, or falls silent."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from etcd_server import find_etcd
from penstock.testing.hosts import Network
from waiting import wait_until

pytestmark = pytest.mark.hosts

# Answers questions, one JSON object on a line: {"do": an expression} -> {"is": its value, "took": seconds}.
_PROGRAM = """
import json, sys, time, queue
from penstock.errors import PenstockError
from penstock.transfer import Agent
from penstock.transfer.exchange import *
print("up", flush=True)
for line in sys.stdin:
    began = time.monotonic()
    try:
        value = eval(json.loads(line), globals())
    except (PenstockError, queue.Empty) as error:
        value = type(error).__name__
    if isinstance(value, bytes):
        value = value.decode()
    elif not isinstance(value, (str, int, list, type(None))):
        value = str(value)
    print(json.dumps([value, time.monotonic() - began]), flush=True)
"""


class Program:
    """A process on a host that does what it is told."""

    def __init__(self, host):
        self.address = host.address
        self._process = host.popen(
            [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self._process.stdout.readline() == "up\n"

    def begin(self, expression):
        self._process.stdin.write(json.dumps(expression) + "\n")
        self._process.stdin.flush()

    def end(self):
        return json.loads(self._process.stdout.readline())

    def do(self, expression):
        self.begin(expression)
        return self.end()[0]

    def close(self):
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture
def network():
    with Network(2) as network:
        yield network


@pytest.fixture
def programs(network):
    both = [Program(host) for host in network.hosts]
    yield both
    for each in both:
        each.close()


def test_agents_are_fetched_and_sent_over_a_line_that_loses_packets(network, programs):
    left, right = programs
    left.do("globals().update(agent=Agent('left', network=None))")
    left.do(f"globals().update(listener=MetadataListener(agent, '{left.address}', 8888, token='s3cret'))")
    right.do("globals().update(agent=Agent('right'))")
    there = f"'{left.address}', 8888, 30.0, token='s3cret'"
    network.lose(0.05)
    for _ in range(3):
        assert right.do(f"agent.add_peer(fetch_metadata('left', {there})).name") == "left"
        assert right.do(f"send_metadata(agent.metadata(), {there})") is None
        assert left.do("sorted(agent.peers)") == ["right"]
        assert right.do(f"send_invalidation('right', {there})") is None
        assert left.do("sorted(agent.peers)") == []
    network.heal()
    assert right.do(f"fetch_metadata('left', '{left.address}', 8888)") == "PeerRefused"


def test_a_cut_cable_is_an_error_in_time_and_then_none(network, programs):
    left, right = programs
    left.do(f"globals().update(server=KeyValueServer('{left.address}', 9998, token='s3cret'))")
    right.do(f"globals().update(client=KeyValueClient('{left.address}', 9998, token='s3cret', timeout_s=1.0))")
    assert right.do("client.set('k', 1)") is None
    network.partition(network.hosts[:1], network.hosts[1:])
    right.begin("client.get('k')")
    value, seconds = right.end()
    assert value in ("PeerUnreachable", "DeadlineExceeded")
    assert seconds < 2.0
    right.begin("client.wait_for('late', 30.0)")
    time.sleep(0.5)  # the wait goes on, in silence
    left.do(f"KeyValueClient('{left.address}', 9998, token='s3cret').set('late', 'here')")
    network.heal()
    value, seconds = right.end()
    assert value == "here"
    assert seconds < 15.0


@pytest.fixture
def etcd(network, tmp_path):
    """An etcd on the first host."""
    host = network.hosts[0]
    url, peer = f"http://{host.address}:2379", f"http://{host.address}:2380"
    command = [find_etcd(), "--data-dir", str(tmp_path / "data"), "--unsafe-no-fsync"]
    command += ["--listen-client-urls", url, "--advertise-client-urls", url]
    command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
    command += ["--initial-cluster", f"default={peer}"]
    with Path(tmp_path / "log").open("wb") as log:
        process = host.popen(command, stdout=log, stderr=log)
    yield url
    process.kill()
    process.wait()


def test_what_happens_in_etcd_behind_a_cut_cable_is_told_afterwards(network, programs, etcd):
    left, right = programs
    for each in programs:
        each.do(f"globals().update(etcd=EtcdExchange('{etcd}', timeout_s=20.0))")
    assert left.do("etcd.retrieve('nobody', 'metadata', 0.2)") in ("PeerUnreachable", "DeadlineExceeded")
    wait_until(lambda: left.do("etcd.publish('a', 'metadata', b'1')") != "PeerUnreachable", within_s=30)
    right.do("globals().update(removed=queue.Queue())")
    right.do("globals().update(watch=etcd.watch_removals(removed.put))")
    assert right.do("watch.follow('a')") is None
    right.do("exec('import penstock.transfer.exchange.etcd as module; module._LISTEN_S = 1.0')")

    network.partition(network.hosts[:1], network.hosts[1:])
    assert left.do("etcd.remove('a')") is None
    assert left.do("etcd.publish('late', 'metadata', b'here')") is None
    assert right.do("removed.get(timeout=0.5)") == "Empty"
    right.begin("etcd.retrieve('late', 'metadata', 1.0)")
    value, seconds = right.end()
    assert value in ("PeerUnreachable", "DeadlineExceeded")
    assert seconds < 2.0

    network.heal()
    assert right.do("removed.get(timeout=30)") == "a"
    assert right.do("etcd.retrieve('late', 'metadata', 5.0)") == "here"
    right.begin("watch.close()")
    assert right.end()[1] < 2.0
