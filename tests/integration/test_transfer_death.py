"""Peers that end or fall silent: killed in every phase, stopped, forked, started again; told in time, by their kind."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from penstock.errors import PeerRefused, PeerUnreachable, TransferError
from penstock.transfer import Agent
from penstock.transfer.host_messages import Gone, Refused, Welcome, encode
from penstock.transfer.metadata import AgentMetadata
from puppet import Puppet, PuppetDied, PuppetError, acquaint, prepare, ready

BIG = 256 << 20
# The end of a process is noticed at once; a busy machine may take some seconds.
NOTICED_S = 5.0


def kind_of(act: Callable[[], Any]) -> str:
    """The class of the transfer error that an act raises."""
    with pytest.raises(PuppetError) as caught:
        act()
    assert "TransferError" in caught.value.kinds or "DeadlineExceeded" in caught.value.kinds
    return caught.value.kind


def is_copying(initiator: Puppet) -> None:
    """Returns while a transfer of the initiator's is under way."""
    initiator.aside("run", code="while acts.transfers['t'].state != 'ACTIVE': pass")


def test_killed_before_anybody_connected() -> None:
    with Puppet("target") as target, Puppet("initiator") as initiator:
        descriptors = acquaint(initiator, target)
        target.kill()
        assert kind_of(lambda: initiator.call("connect", peer="target")) == "PeerUnreachable"
        assert kind_of(lambda: prepare(initiator, descriptors)) == "PeerUnreachable"
        assert kind_of(lambda: initiator.call("notify", peer="target", message=b"x")) == "PeerUnreachable"


def test_a_target_killed_when_connected() -> None:
    with Puppet("target") as target, Puppet("initiator") as initiator:
        ready(initiator, target)
        assert initiator.call("post", key="t", notify=b"x") == "DONE"
        target.kill()
        assert initiator.call("wait_lost", peer="target", timeout_s=NOTICED_S) < NOTICED_S
        assert initiator.call("post", key="t") == "FAILED"
        assert kind_of(lambda: initiator.call("wait", key="t")) == "PeerLost"
        assert kind_of(lambda: initiator.call("notify", peer="target", message=b"x")) == "PeerUnreachable"


def test_an_initiator_killed_when_connected_leaves_its_last_words_and_nothing_else() -> None:
    with Puppet("target") as target, Puppet("initiator") as initiator:
        descriptors = acquaint(initiator, target)
        before = target.call("census")
        prepare(initiator, descriptors)
        initiator.call("notify", peer="target", message=b"last words")
        initiator.kill()
        deadline = time.monotonic() + NOTICED_S
        while (after := target.call("census"))["fds"] != before["fds"] or after["segments"] != before["segments"]:
            assert time.monotonic() < deadline, after
        assert target.call("wait_notification", timeout_s=5) == [["initiator", b"last words"]]
        target.call("deregister", key="kv", timeout_s=0.0)


@pytest.mark.parametrize("operation", ["WRITE", "READ"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_target_killed_during_a_large_copy(operation: str, shared: bool) -> None:
    with Puppet("target") as target, Puppet("initiator") as initiator:
        ready(initiator, target, operation, BIG, shared=shared)
        repeating = initiator.begin("repeat", key="t", for_s=20)
        is_copying(initiator)
        target.kill()
        assert initiator.result(repeating)["error"] == "PeerLost"
        assert initiator.call("peer", name="target")["connected"] is False


@pytest.mark.parametrize("shared", [True, False])
def test_an_initiator_killed_during_a_large_copy_gives_the_memory_back(shared: bool) -> None:
    with Puppet("target") as target, Puppet("initiator") as initiator:
        ready(initiator, target, "WRITE", BIG, shared=shared)
        initiator.call("fill", key="a", seed=1)
        repeating = initiator.begin("repeat", key="t", for_s=20)
        is_copying(initiator)
        initiator.kill()
        target.call("deregister", key="kv", timeout_s=NOTICED_S)
        target.call("poison", key="kv")
        assert target.call("touched", key="kv", for_s=0.2) == 0
        with pytest.raises(PuppetDied):
            initiator.result(repeating)


def test_memory_that_a_stopped_process_is_copying_to_is_kept() -> None:
    with Puppet("target") as target, Puppet("initiator") as initiator:
        ready(initiator, target, "WRITE", BIG)
        repeating = initiator.begin("repeat", key="t", for_s=20)
        is_copying(initiator)
        initiator.stop()
        # Stopped in the copy, or in the moments between two of them: then nothing is left to wait for.
        started = time.monotonic()
        try:
            target.call("deregister", key="kv", timeout_s=0.3)
        except PuppetError as error:
            assert error.kind == "DeadlineExceeded"
            assert 0.3 <= time.monotonic() - started < 5
            target.call("run", code="acts.registrations.clear(); acts.memory.clear(); acts.held.clear(); gc.collect()")
            target.call("allocate", key="kv", nbytes=BIG)  # not in the same place: that is kept
        target.call("poison", key="kv")
        initiator.go_on()
        assert initiator.result(repeating)["error"] == "StaleDescriptor"
        assert target.call("touched", key="kv", for_s=0.2) == 0


@pytest.mark.parametrize("who", ["target", "initiator"])
def test_killed_between_data_and_notification(who: str) -> None:
    """The ring is full, so that a post waits between the two."""
    with Puppet("target") as target, Puppet("initiator") as initiator:
        ready(initiator, target)
        filled = initiator.call(
            "run",
            code="""
count = 0
try:
    while True:
        agent.notify("target", b"n" * 60000, timeout_s=0.0)
        count += 1
except Exception as error:
    assert type(error).__name__ == "DeadlineExceeded", error
return count""",
        )
        initiator.call("fill", key="a", seed=2)
        posting = initiator.begin("post", key="t", notify=b"n" * 60000)
        while target.call("wrong", key="kv", seed=2):
            pass
        if who == "target":
            target.kill()
            assert initiator.result(posting, NOTICED_S) == "FAILED"
            assert kind_of(lambda: initiator.call("wait", key="t")) == "PeerLost"
        else:
            initiator.kill()
            heard = target.call("wait_notification", timeout_s=NOTICED_S)
            assert len(heard) == filled
            assert target.call("notifications") == []


def test_killed_while_the_other_waits_for_a_notification() -> None:
    with Puppet("target") as target, Puppet("initiator") as initiator, Puppet("other") as other:
        ready(initiator, target)
        other.call("add_peer", blob=target.call("metadata"))
        waiting = target.begin("wait_notification", timeout_s=20)
        initiator.kill()
        target.aside("run", code="while len(agent.planes.host.visitors): time.sleep(0.001)")
        other.call("notify", peer="target", message=b"from another")
        assert target.result(waiting, NOTICED_S) == [["other", b"from another"]]


def test_a_stopped_target_takes_data_but_no_end_of_messages() -> None:
    with Puppet("target") as target, Puppet("initiator") as initiator:
        ready(initiator, target)
        initiator.call("fill", key="a", seed=5)
        target.stop()
        assert initiator.call("post", key="t", notify=b"while you slept") == "DONE"
        started = time.monotonic()
        send = "while True: agent.notify('target', bytes(100_000), timeout_s=0.2)"
        assert kind_of(lambda: initiator.call("run", code=send)) == "DeadlineExceeded"
        assert 0.2 <= time.monotonic() - started < 5
        assert initiator.call("peer", name="target")["connected"] is True
        target.go_on()
        assert target.call("wait_notification", timeout_s=5)[0] == ["initiator", b"while you slept"]
        assert target.call("wrong", key="kv", seed=5) == 0


@contextmanager
def answering(metadata: bytes, answer: bytes | None) -> Iterator[bytes]:
    """A process that accepts connections in the name of an agent, and gives one answer to whatever it is told."""
    name = f"penstock-test/{id(metadata)}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("\0" + name)
        listener.listen(8)
        held, ended = [], threading.Event()

        def serve() -> None:
            while True:
                line, _ = listener.accept()
                held.append(line)
                if ended.is_set():
                    return
                if answer is not None:
                    line.send(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield replace(AgentMetadata.from_bytes(metadata), socket_name=name).to_bytes()
        finally:
            ended.set()
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as waking:
                waking.connect("\0" + name)
                thread.join()
            for line in held:
                line.close()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (None, PeerUnreachable),
        (b"", PeerUnreachable),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", TransferError),
        (b"\xff" * 4096, TransferError),
        (bytes(9000), TransferError),
        (encode(Refused("not today")), PeerRefused),
        (encode(Gone(3)), TransferError),
        (encode(Welcome(1 << 20, 1 << 20, 0)), TransferError),  # without the descriptors that it speaks of
    ],
)
def test_whatever_answers_in_a_peers_place_is_told(answer: bytes | None, error: type[Exception]) -> None:
    with Agent("real") as real, Agent("initiator") as agent, answering(real.metadata(), answer) as metadata:
        peer = agent.add_peer(metadata)
        started = time.monotonic()
        with pytest.raises(error):
            peer.connect(timeout_s=0.3)
        assert time.monotonic() - started < 5
        assert peer.connected is False


def test_a_target_closed_and_opened_again_is_another() -> None:
    with Puppet("target") as target, Puppet("initiator") as initiator:
        descriptors = acquaint(initiator, target)
        prepare(initiator, descriptors)
        target.call("close")
        assert initiator.call("wait_lost", peer="target", timeout_s=NOTICED_S) < NOTICED_S
        assert kind_of(lambda: initiator.call("connect", peer="target")) == "PeerUnreachable"
        target.call("run", code="acts.registrations.clear()")
        target.call("open", name="target")
        again = target.call("register", key="kv")
        initiator.call("add_peer", blob=target.call("metadata"))
        assert initiator.call("post", key="t") == "FAILED"  # it was prepared for the other one
        assert kind_of(lambda: prepare(initiator, descriptors)) in ("StaleDescriptor", "NotRegistered")
        prepare(initiator, again)
        assert initiator.call("post", key="t", notify=b"hello again") == "DONE"
        assert target.call("wait_notification", timeout_s=5) == [["initiator", b"hello again"]]


def test_agents_that_connect_to_each_other_in_any_order() -> None:
    """Each of four is told of the others in another order, and all begin at once."""
    names = ["a", "b", "c", "d"]
    puppets = {name: Puppet(name) for name in names}
    try:
        blobs = {name: puppet.call("metadata") for name, puppet in puppets.items()}
        running = []
        for turn, name in enumerate(names):
            order = [other for other in names[turn:] + names[:turn] if other != name]
            for other in order if turn % 2 else reversed(order):
                running.append(puppets[name].begin("add_peer", blob=blobs[other]))
                running.append(
                    puppets[name].begin(
                        "run",
                        code=f"""
while {other!r} not in agent.peers: time.sleep(0.001)
agent.notify({other!r}, b"from {name}")""",
                    )
                )
        for future in running:
            future.result(20)
        for name, puppet in puppets.items():
            heard = puppet.call("run", code="return sorted(m.message for m in agent.notifications())")
            assert heard == [f"from {other}".encode() for other in names if other != name]
    finally:
        for puppet in puppets.values():
            puppet.__exit__(None, None, None)


# A child of the owner that does something and ends; returns its exit status.
_FORK = """
import sys, traceback
child = os.fork()
if child == 0:
    try:
{body}
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
return os.waitpid(child, 0)[1]
"""


_LET_GO = """
for held in (acts.memory, acts.held, acts.transfers, acts.registrations):
    held.clear()
agent.close()
acts.agent = None
gc.collect()
"""


def fork(puppet: Puppet, body: str) -> int:
    lines = "\n".join("        " + line for line in body.strip().splitlines())
    return puppet.call("run", code=_FORK.format(body=lines))


def test_a_forked_child_is_told_and_its_parent_goes_on() -> None:
    with Puppet("target") as target, Puppet("initiator") as initiator:
        ready(initiator, target)
        status = fork(
            initiator,
            """
from penstock.errors import ClosedError
import numpy as np
uses = [agent.metadata, agent.notifications, lambda: agent.wait_notification(1), lambda: agent.allocate(10),
        lambda: agent.register(np.zeros(9)), lambda: agent.notify("target", b"x"), lambda: agent.prepare([(1, 2)]),
        lambda: agent.add_peer(b"")]
for use in uses:
    try:
        use()
    except ClosedError as error:
        assert "fork" in str(error), error
    else:
        raise AssertionError(use)
assert agent.closed
assert acts.transfers["t"].post(b"from the child") == "FAILED"
agent.close()
""",
        )
        assert status == 0, initiator.errors()
        assert initiator.call("post", key="t", notify=b"from the parent") == "DONE"
        assert target.call("wait_notification", timeout_s=5) == [["initiator", b"from the parent"]]
        assert initiator.call("peer", name="target")["connected"] is True


def test_a_forked_child_that_lets_go_of_everything_harms_nobody() -> None:
    with Puppet("target") as target, Puppet("initiator") as initiator:
        ready(initiator, target)
        for puppet in (target, initiator):
            puppet.call("fill", key="kv" if puppet is target else "a", seed=9)
            puppet.call("allocate", key="spare", nbytes=1 << 20)
            puppet.call("fill", key="spare", seed=4)
            assert fork(puppet, _LET_GO) == 0, puppet.errors()
            assert puppet.call("wrong", key="spare", seed=4) == 0
        assert target.call("wrong", key="kv", seed=9) == 0
        assert initiator.call("wrong", key="a", seed=9) == 0
        assert initiator.call("post", key="t", notify=b"still here") == "DONE"
        assert target.call("wait_notification", timeout_s=5) == [["initiator", b"still here"]]


def test_children_of_a_busy_network_neither_hang_nor_disturb_it() -> None:
    network = {"network": "loopback", "require": "tcp"}
    with Puppet("target", **network) as target, Puppet("initiator", **network) as initiator:
        ready(initiator, target, nbytes=16 << 20)
        repeating = initiator.begin("repeat", key="t", for_s=2.0)
        while not repeating.done():
            child = initiator.aside(
                "fork",
                code="""
for use in (acts.transfers["t"].post, lambda: acts.transfers["t"].wait(1), lambda: agent.peers["target"].connect(1)):
    try:
        use()
    except Exception as error:
        assert type(error).__name__ in ("ClosedError", "PeerLost"), error
    else:
        assert acts.transfers["t"].state != "ACTIVE", use""",
            )
            assert initiator.aside("reap", child=child, within_s=5.0) == 0, initiator.errors()
        assert initiator.result(repeating)["error"] is None
        assert initiator.call("post", key="t", notify=b"undisturbed") in ("ACTIVE", "DONE")
        assert target.call("wait_notification", timeout_s=10) == [["initiator", b"undisturbed"]]


def test_a_child_that_inherited_the_sockets_does_not_hide_its_parents_death() -> None:
    with Puppet("target") as target, Puppet("initiator") as initiator:
        ready(initiator, target)
        child = target.call("run", code="child = os.fork()\nif child == 0: time.sleep(60); os._exit(0)\nreturn child")
        try:
            target.kill()
            assert initiator.call("wait_lost", peer="target", timeout_s=NOTICED_S) < NOTICED_S
        finally:
            os.kill(child, signal.SIGKILL)
