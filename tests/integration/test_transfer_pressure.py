"""Agents on one host where something is short or slow: a stopped peer, no descriptors left, a crowd at the door."""

from __future__ import annotations

import socket
import time

import pytest

from penstock.transfer.metadata import AgentMetadata
from puppet import Puppet, PuppetError

# Takes every free descriptor of the process but so many.
_STARVE = """
import resource
used = sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1]
acts.old_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
acts.fillers = []
resource.setrlimit(resource.RLIMIT_NOFILE, (used[-1] + 1 + {free}, acts.old_limit[1]))
while True:
    try:
        acts.fillers.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        break
for _ in range({free}):
    os.close(acts.fillers.pop())
"""
_FEED = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, acts.old_limit)
"""


def test_close_ends_a_connect_that_nobody_answers() -> None:
    with Puppet("target") as target, Puppet("initiator") as initiator:
        initiator.call("add_peer", blob=target.call("metadata"))
        target.stop()
        connecting = initiator.begin("connect", peer="target", timeout_s=20)
        initiator.aside("run", code="while agent.peers['target']._attempt is None: time.sleep(0.001)")
        started = time.monotonic()
        initiator.aside("close")
        with pytest.raises(PuppetError, match="closed"):
            initiator.result(connecting)
        assert time.monotonic() - started < 5
        target.go_on()


def test_an_agent_goes_on_while_a_peer_does_not_answer() -> None:
    with Puppet("target") as target, Puppet("other") as other, Puppet("initiator") as initiator:
        blob = target.call("metadata")
        initiator.call("add_peer", blob=blob)
        target.stop()
        connecting = initiator.begin("connect", peer="target", timeout_s=20)
        initiator.aside("run", code="while agent.peers['target']._attempt is None: time.sleep(0.001)")
        started = time.monotonic()
        assert initiator.aside("add_peer", blob=blob) == "target"  # refreshes it
        initiator.aside("allocate", key="a", nbytes=100)
        descriptors = initiator.aside("register", key="a")
        other.call("add_peer", blob=initiator.aside("metadata"))
        other.call("allocate", key="b", nbytes=100)
        other.call("register", key="b")
        assert (
            other.call("move", operation="READ", peer="initiator", local=[["b", 0, 100]], remote=descriptors) == "DONE"
        )
        initiator.aside("remove_peer", name="target")
        with pytest.raises(PuppetError) as caught:
            initiator.result(connecting)
        assert caught.value.kind == "PeerLost"
        assert time.monotonic() - started < 10
        target.go_on()


def test_a_peer_that_is_stopped_is_unreachable_after_the_deadline() -> None:
    with Puppet("target") as target, Puppet("initiator") as initiator:
        initiator.call("add_peer", blob=target.call("metadata"))
        target.stop()
        started = time.monotonic()
        with pytest.raises(PuppetError, match="didn't answer in time") as caught:
            initiator.call("connect", peer="target", timeout_s=0.3)
        assert caught.value.kind == "PeerUnreachable"
        assert 0.3 <= time.monotonic() - started < 5
        target.go_on()
        assert initiator.call("connect", peer="target").startswith("shm")


@pytest.mark.parametrize(("free", "kind"), [(0, "PeerUnreachable"), (1, "PeerRefused")])
def test_a_target_without_descriptors_says_so_and_recovers(free: int, kind: str) -> None:
    with Puppet("target") as target, Puppet("initiator") as initiator:
        initiator.call("add_peer", blob=target.call("metadata"))
        target.call("run", code=_STARVE.format(free=free))
        with pytest.raises(PuppetError) as caught:
            initiator.call("connect", peer="target", timeout_s=0.5)
        assert caught.value.kind == kind
        used_s = target.call(
            "run", code="before = time.process_time(); time.sleep(0.3); return time.process_time() - before"
        )
        assert used_s < 0.15, "it doesn't spin"
        target.call("run", code=_FEED)
        assert initiator.call("connect", peer="target").startswith("shm")


def test_a_crowd_at_the_door_waits() -> None:
    with Puppet("target") as target, Puppet("initiator") as initiator:
        blob = target.call("metadata")
        address = "\0" + AgentMetadata.from_bytes(blob).socket_name
        initiator.call("add_peer", blob=blob)
        target.stop()
        crowd = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(1100)]
        try:
            for one in crowd:
                one.setblocking(False)
                try:
                    one.connect(address)
                except BlockingIOError:
                    break  # the queue is full
            connecting = initiator.begin("connect", peer="target", timeout_s=20)
            initiator.aside("run", code="while agent.peers['target']._attempt is None: time.sleep(0.001)")
            for one in crowd:
                one.close()
            target.go_on()
            assert initiator.result(connecting).startswith("shm")
        finally:
            for one in crowd:
                one.close()
