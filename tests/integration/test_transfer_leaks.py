"""Nothing grows and nothing is left, after a thousand connections: descriptors, threads, mappings, sockets, memory."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from leftovers import held, left_since
from penstock.errors import PenstockError
from penstock.transfer import Agent
from puppet import Puppet, acquaint, prepare

# Beyond this a process has grown; the allocator and the interpreter take some of it by and by.
GROWN_BYTES = 6 << 20


def segments() -> set[str]:
    """Where this process has segments mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[0] for line in lines if "memfd:penstock-segment" in line}


def no_new_files(before: set[str]) -> bool:
    """Of /dev/shm, where others make some as well, that are gone in a moment."""
    deadline = time.monotonic() + 20
    while set(os.listdir("/dev/shm")) - before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def settled(puppet: Puppet, before: dict[str, Any]) -> None:
    """The puppet holds no more than before; what another process ended is noticed within a moment."""
    deadline = time.monotonic() + 5
    while True:
        now = puppet.call("census")
        if all(now[name] <= before[name] for name in ("fds", "threads", "segments")):
            assert now["rss_bytes"] < before["rss_bytes"] + GROWN_BYTES
            return
        assert time.monotonic() < deadline, (before, now)


_CYCLES = """
from penstock.transfer import Descriptors
remote = Descriptors.from_bytes(acts.remote)
for turn in range({count}):
    peer = agent.add_peer(acts.blob)
    peer.connect()
    acts.memory["a"][:] = turn % 251
    assert agent.write(acts.memory["a"], peer.prepare(remote), notify=b"%d" % turn).done
    agent.remove_peer("target")
"""


def test_a_thousand_connections_leave_both_ends_as_they_were() -> None:
    with Puppet("target") as target, Puppet("initiator") as initiator:
        target.call("allocate", key="kv", nbytes=1 << 16)
        descriptors = target.call("register", key="kv")
        initiator.call("allocate", key="a", nbytes=1 << 16)
        initiator.call("register", key="a")
        initiator.call(
            "run",
            code="import base64\nacts.blob, acts.remote = map(base64.b64decode, "
            f"({_b64(target.call('metadata'))!r}, {_b64(descriptors)!r}))",
        )
        initiator.call("run", code=_CYCLES.format(count=50))
        before = [target.call("census"), initiator.call("census")]
        initiator.call("run", code=_CYCLES.format(count=1000))
        heard = []
        while arrived := target.call("notifications"):
            heard += [int(message) for _, message in arrived]
        assert heard == [*range(50), *range(1000)]
        settled(initiator, before[1])
        settled(target, before[0])
        assert target.call("run", code="return int(acts.memory['kv'][0])") == 999 % 251


def _b64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()


def test_a_hundred_peers_that_are_killed_leave_nothing() -> None:
    """Children of a process that each make an agent, write, and are killed: at once, or in the middle."""
    with Puppet("target") as target, Puppet("mother") as mother:
        target.call("allocate", key="kv", nbytes=8 << 20)
        descriptors = target.call("register", key="kv")
        before = target.call("census")
        code = f"""
import base64, signal, random
from penstock.transfer import Agent, Descriptors
blob, remote = base64.b64decode({_b64(target.call("metadata"))!r}), base64.b64decode({_b64(descriptors)!r})
for turn in range(100):
    child = os.fork()
    if child == 0:
        try:
            ours = Agent(f"child-{{turn}}")
            peer = ours.add_peer(blob)
            ours.register(memory := ours.allocate(8 << 20))
            transfer = ours.transfer("WRITE", [memory], peer.prepare(Descriptors.from_bytes(remote)))
            transfer.post(b"posted")
            if turn % 2:
                threading.Timer(random.random() * 0.005, os.kill, (os.getpid(), signal.SIGKILL)).start()
                while True:
                    transfer.post(b"more")
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""
        # So many notifications fit into no ring: somebody must take them.
        target.call("run", code="acts.heard = set()")
        stop = target.begin(
            "run",
            code="""
acts.over = False
while not acts.over:
    acts.heard |= {one.sender for one in agent.notifications()}
    time.sleep(0.001)
acts.heard |= {one.sender for one in agent.notifications()}""",
        )
        mother.call("run", code=code, patience_s=60)
        target.aside("run", code="acts.over = True")
        target.result(stop)
        assert target.call("run", code="return len(acts.heard)") == 100
        target.call("run", code="acts.heard = None")
        settled(target, before)
        target.call("deregister", key="kv", timeout_s=0.0)


def test_regions_that_come_and_go_are_unmapped_at_the_peers_as_well() -> None:
    with Puppet("target") as target, Puppet("initiator") as initiator:
        initiator.call("add_peer", blob=target.call("metadata"))
        initiator.call("allocate", key="a", nbytes=1 << 16)
        initiator.call("register", key="a")

        def turn() -> None:
            target.call("allocate", key="kv", nbytes=1 << 16)
            descriptors = target.call("register", key="kv")
            initiator.call("add_peer", blob=target.call("metadata"))
            assert initiator.call(
                "move", operation="WRITE", peer="target", local=[["a", 0, 1 << 16]], remote=descriptors
            )
            assert initiator.call("peer", name="target")["connected"]
            target.call("deregister", key="kv")
            target.call("drop", key="kv")

        for _ in range(10):
            turn()
        before = [target.call("census"), initiator.call("census")]
        for _ in range(150):
            turn()
        settled(initiator, before[1])
        settled(target, before[0])


def test_targets_that_close_while_we_post_leave_nothing_under_way() -> None:
    """What a target takes away when it closes, such as what it shares with us, is taken away at any moment."""
    with Puppet("initiator") as initiator, Puppet() as target:
        initiator.call("allocate", key="a", nbytes=100)
        initiator.call("register", key="a")
        for _ in range(12):
            target.call("open", name="target")
            target.call("own", key="kv", nbytes=100)
            descriptors = target.call("register", key="kv")
            initiator.call("add_peer", blob=target.call("metadata"))
            initiator.call(
                "prepare", key="t", operation="WRITE", peer="target", local=[["a", 0, 100]], remote=descriptors
            )
            posting = initiator.begin("run", code="while acts.transfers['t'].post() != 'FAILED': pass")
            target.call("close")
            initiator.result(posting)
            started = time.monotonic()
            initiator.call("remove_peer", name="target")
            assert time.monotonic() - started < 3
            target.call("run", code="acts.registrations.clear()")
        assert initiator.call("census")["threads"] <= 3


def test_a_region_registered_again_is_mapped_again() -> None:
    with Puppet("target") as target, Puppet("initiator") as initiator:
        descriptors = acquaint(initiator, target, 1 << 16)
        target.call("deregister", key="kv")
        with contextlib.suppress(Exception):  # told of a region that is gone
            initiator.call("move", operation="WRITE", peer="target", local=[["a", 0, 1 << 16]], remote=descriptors)
        descriptors = target.call("register", key="kv")
        initiator.call("add_peer", blob=target.call("metadata"))
        prepare(initiator, descriptors, nbytes=1 << 16)
        assert initiator.call("run", code="return acts.transfers['t']._keep[2].core().mapped") is True


ACTS = ("close a", "close b", "deregister a", "deregister b", "drop a", "drop b", "forget", "let go", "post", "notify")


@settings(max_examples=40)
@given(acts=st.lists(st.sampled_from(ACTS), max_size=12), shared=st.booleans())
def test_closed_in_any_order_nothing_is_left(acts: list[str], shared: bool) -> None:
    before, mapped, files = held(), segments(), set(os.listdir("/dev/shm"))
    names = _live(acts, shared)
    assert left_since(before) == []
    assert segments() <= mapped
    assert no_new_files(files)
    sockets = Path("/proc/net/unix").read_text()
    assert not [name for name in names if name in sockets]


def _live(acts: list[str], shared: bool) -> list[str]:
    """Two agents with all that agents have, acted on and closed; returns the names of their sockets."""
    a, b = Agent("a", timeout_s=5), Agent("b", timeout_s=5)
    memory = {
        name: agent.allocate(1000) if shared else np.zeros(1000, np.uint8) for name, agent in (("a", a), ("b", b))
    }
    registered = {"a": a.register(memory["a"]), "b": b.register(memory["b"])}
    a.add_peer(b.metadata())
    held = [a.transfer("WRITE", a.prepare([memory["a"]]), a.peers["b"].prepare(registered["b"].descriptors))]
    done: dict[str, Any] = {
        "close a": a.close,
        "close b": b.close,
        "deregister a": lambda: registered["a"].close(),
        "deregister b": lambda: registered["b"].close(),
        "drop a": lambda: memory.pop("a", None),
        "drop b": lambda: memory.pop("b", None),
        "forget": lambda: a.remove_peer("b"),
        "let go": held.clear,
        "post": lambda: held and held[0].post(b"x"),
        "notify": lambda: a.notify("b", b"x"),
    }
    for act in acts:
        with contextlib.suppress(PenstockError):
            done[act]()
    names = [agent.planes.host.socket_name for agent in (a, b)]
    assert all(name in Path("/proc/net/unix").read_text() for agent, name in zip((a, b), names) if not agent.closed)
    a.close()
    b.close()
    return names
