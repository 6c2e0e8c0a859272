"""The network plane between real processes: over loopback, and between network namespaces joined by veth."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from penstock import _core

pytest.importorskip("libucx")
pytestmark = pytest.mark.skipif(not _core.has_ucx_plane, reason="this core was built without UCX's headers")

NODE = Path(__file__).with_name("network_node.py")
MIB = 1 << 20
SHARED_MEMORY = "posix,sysv,cma,self"
numbers = itertools.count()


class Failed(Exception):
    """What a command of a node raised."""

    def __init__(self, kind, text):
        super().__init__(f"{kind}: {text}")
        self.kind, self.text = kind, text


class NodeProcess:
    """A node in a process of its own; any attribute is a command. Several start side by side."""

    def __init__(self, name, *, nbytes=4 * MIB, peer_timeout_s=5.0, device="lo", namespace=None, tls="tcp"):
        settings = {"TLS": tls, "NET_DEVICES": device}
        options = {"name": name, "settings": settings, "nbytes": nbytes, "peer_timeout_s": peer_timeout_s}
        enter = ["ip", "netns", "exec", namespace] if namespace else []
        self.process = subprocess.Popen(
            [*enter, sys.executable, str(NODE), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._about = None

    @property
    def about(self):
        """What it says of itself as soon as it is there."""
        if self._about is None:
            self._about = self._line(30.0)
        return self._about

    def ask(self, command, *arguments, **keywords):
        assert self.about  # read alone: lines that come at once, `_line` would keep, and wait for the second
        self.process.stdin.write(json.dumps([command, arguments, keywords]) + "\n")
        self.process.stdin.flush()

    def answer(self, wait_s=30.0):
        return self._line(wait_s)

    def _line(self, wait_s):
        ready, _, _ = select.select([self.process.stdout], [], [], wait_s)
        assert ready, f"no answer within {wait_s} s"
        line = self.process.stdout.readline()
        assert line, f"the node ended with {self.process.wait(5)}"
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"], answer["text"])
        return answer["ok"]

    def __getattr__(self, command):
        def call(*arguments, **keywords):
            self.ask(command, *arguments, **keywords)
            return self.answer()

        return call

    def dismiss(self):
        """Tells it to end."""
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()

    def end(self):
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


@pytest.fixture
def nodes():
    """Make nodes that end with the test."""
    made = []

    def make(*arguments, **keywords):
        node = NodeProcess(*arguments, **keywords)
        made.append(node)
        return node

    yield make
    for node in made:
        node.dismiss()
    for node in made:
        node.end()


@pytest.fixture
def pair(nodes, request):
    """(initiator, owner), connected over loopback; or as `both_ways` says."""
    tls = getattr(request, "param", "tcp")
    owner = nodes("owner", tls=tls)
    initiator = nodes("initiator", tls=tls)
    initiator.connect(owner.about)
    return initiator, owner


# Over TCP the bytes of a large piece come along with their messages; over anything else the receiver fetches them.
both_ways = pytest.mark.parametrize("pair", ["tcp", SHARED_MEMORY], ids=["eager", "fetched"], indirect=True)


@pytest.fixture
def cable():
    """Two network namespaces, joined: (namespace, device) of each end."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need root and the program ip")
    number = f"{os.getpid()}-{next(numbers)}"
    spaces = [f"pst{number}a", f"pst{number}b"]
    made = subprocess.run(["ip", "netns", "add", spaces[0]], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
    try:
        ip("netns", "add", spaces[1])
        ip("link", "add", "va", "netns", spaces[0], "type", "veth", "peer", "name", "vb", "netns", spaces[1])
        for space, device, address in zip(spaces, ("va", "vb"), ("10.99.0.1/24", "10.99.0.2/24"), strict=True):
            ip("-n", space, "addr", "add", address, "dev", device)
            ip("-n", space, "link", "set", device, "up")
        for space, device in zip(spaces, ("va", "vb"), strict=True):
            wait_until_running(space, device)
        yield [(spaces[0], "va"), (spaces[1], "vb")]
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def wait_until_running(space, device, wait_s=10.0):
    """The kernel says that a device is up a moment before it carries anything; UCX sees only those that do."""
    deadline = time.monotonic() + wait_s
    shown = ["ip", "-n", space, "link", "show", "dev", device, "up"]
    while "LOWER_UP" not in subprocess.run(shown, check=True, capture_output=True, text=True).stdout:
        assert time.monotonic() < deadline, f"{device} carries nothing after {wait_s} s"


def refused(kind, function, *arguments, **keywords):
    with pytest.raises(Failed) as caught:
        function(*arguments, **keywords)
    assert caught.value.kind == kind, caught.value
    return caught.value.text


def scattered(count, nbytes, gap):
    return [[i * (nbytes + gap), i * (nbytes + gap), nbytes] for i in range(count)]


def test_says_what_it_uses(pair):
    initiator, owner = pair
    assert owner.about["version"].startswith("1.")
    assert owner.about["transports"] == "tcp/lo"
    again = initiator.connect(owner.about)
    assert again == {"peer": "owner", "transport": "tcp/lo", "alive": True}


SIZES = (1, 8, 4096, 65_536, 100_000, 262_144, MIB + 1, 3 * MIB)


@both_ways
@pytest.mark.parametrize("operation", ["write", "read"])
def test_a_transfer_moves_exactly_its_bytes(pair, operation):
    initiator, owner = pair
    here, there = (initiator, 10), (owner, 64)
    (source, begin), (sink, at) = (here, there) if operation == "write" else (there, here)
    for nbytes in SIZES:
        initiator.fill(1)
        owner.fill(2)
        before, after = sink.sum(0, at), sink.sum(at + nbytes)
        assert initiator.move(operation, [[10, 64, nbytes]]) == 2
        assert sink.sum(at, nbytes) == source.sum(begin, nbytes)
        assert (sink.sum(0, at), sink.sum(at + nbytes)) == (before, after)


@both_ways
@pytest.mark.parametrize("operation", ["write", "read"])
def test_many_scattered_pieces_of_all_sizes(pair, operation):
    initiator, owner = pair
    source, sink = (initiator, owner) if operation == "write" else (owner, initiator)
    source.fill(3)
    pieces = scattered(900, 1000, 24)  # packed, several messages
    pieces += [[MIB, MIB + 7, 300_000], [2 * MIB, 2 * MIB, 64], [3 * MIB, 3 * MIB, MIB]]
    assert initiator.move(operation, pieces) == 2
    side = 0 if operation == "write" else 1
    for piece in pieces[::50] + pieces[900:]:
        assert sink.sum(piece[1 - side], piece[2]) == source.sum(piece[side], piece[2])
    assert sink.sum(1000, 24) != source.sum(1000, 24)  # the gaps stay as they were


def test_a_transfer_is_posted_again_and_told_by_a_descriptor(pair):
    initiator, owner = pair
    for seed in range(3):
        initiator.fill(seed)
        assert initiator.start("write", [[0, 0, 4 * MIB]]) in (1, 2)
        ready, _ = initiator.completion()
        assert ready
        assert initiator.finish() == 2
        assert owner.sum() == initiator.sum()


def test_notifications_come_after_their_data_in_order(pair):
    initiator, owner = pair
    for turn in range(5):
        initiator.fill(turn)
        initiator.notify(f"before {turn}")
        assert initiator.move("write", [[0, 0, 2 * MIB]], notification=f"data {turn}") == 2
        initiator.notify(f"after {turn}")
        assert owner.drain(count=3) == [
            ["initiator", text, len(text)] for text in (f"before {turn}", f"data {turn}", f"after {turn}")
        ]
        assert owner.sum(0, 2 * MIB) == initiator.sum(0, 2 * MIB)
    initiator.move("read", [[0, 0, 8]], notification="")
    assert owner.drain() == [["initiator", "", 0]]


def test_a_target_that_never_takes_its_notifications_bounds_memory(pair):
    initiator, owner = pair
    before = owner.usage()["rss_kib"]
    text = refused("DeadlineExceeded", initiator.flood, 1000, 200_000, timeout_s=0.3)
    assert "did it stop reading" in text
    assert owner.usage()["rss_kib"] - before < 40_000  # of 200 MB that were meant
    # A transfer whose notification finds no room isn't done.
    refused("DeadlineExceeded", initiator.move, "write", [[0, 0, 8]], notification="more", timeout_s=0.3)
    # As soon as somebody reads, everything goes on.
    while owner.drain(wait_s=0.2):
        pass
    initiator.notify("again")
    assert owner.drain()[0][1] == "again"


def test_a_flood_arrives_in_order_each_once(pair):
    initiator, owner = pair
    initiator.ask("flood", 20_000, 16)
    assert owner.drain_numbers(20_000)
    assert initiator.answer() == 20_000


def test_wrong_secret(nodes):
    owner, initiator = nodes("owner"), nodes("initiator")
    assert "secret" in refused("PeerRefused", initiator.connect, owner.about, secret="a guess")
    assert initiator.connect(owner.about)["alive"]


def test_nobody_there(nodes):
    owner, initiator = nodes("owner"), nodes("initiator")
    assert owner.about
    owner.process.kill()
    owner.process.wait()
    refused("PeerUnreachable", initiator.connect, owner.about, timeout_s=3.0)
    damaged = {**owner.about, "address": owner.about["address"][:-2] + "00"}
    assert "damaged" in refused("PeerUnreachable", initiator.connect, damaged)


@both_ways
@pytest.mark.parametrize("operation", ["write", "read"])
def test_what_the_owner_refuses(pair, operation):
    initiator, owner = pair
    for nbytes in (100, MIB):
        check_refusals(initiator, owner, operation, nbytes)


def check_refusals(initiator, owner, operation, nbytes):
    owner.fill(1)
    untouched = owner.sum()
    good = owner.hello()
    # The owner checks, whatever the initiator believes.
    initiator.know({**good, "nbytes": 64 * MIB})
    refused("NotRegistered", initiator.move, operation, [[0, 4 * MIB - 50, nbytes]])
    refused("NotRegistered", initiator.move, operation, [[0, 32 * MIB, nbytes]])
    initiator.know({**good, "generation": good["generation"] + 1})
    refused("StaleDescriptor", initiator.move, operation, [[0, 0, nbytes]])
    initiator.know({**good, "slot": 77})
    refused("StaleDescriptor", initiator.move, operation, [[0, 0, nbytes]])
    initiator.know({**good, "base": 4096, "slot": 2**32 - 1})
    refused("StaleDescriptor", initiator.move, operation, [[0, 0, nbytes]])
    initiator.know(good)
    owner.retire()
    refused("StaleDescriptor", initiator.move, operation, [[0, 0, nbytes]])
    assert owner.sum() == untouched
    assert owner.wait_quiet(1.0)
    owner.register()
    initiator.know(owner.hello())
    assert initiator.move(operation, [[0, 0, nbytes]]) == 2


@both_ways
def test_one_bad_piece_among_many_fails_the_transfer_alone(pair):
    initiator, owner = pair
    initiator.know({**owner.about, "nbytes": 64 * MIB})
    pieces = [[0, 0, MIB]] * 40 + [[0, 20 * MIB, MIB]] + [[0, 0, MIB]] * 40
    for operation in ("write", "read"):
        refused("NotRegistered", initiator.move, operation, pieces, merge=False)
        assert initiator.quiet(2.0)
        assert initiator.move(operation, [[0, 0, MIB]]) == 2
    owner.retire()
    assert owner.wait_quiet(2.0)


def test_local_memory_that_was_deregistered(pair):
    initiator, _ = pair
    refused("StaleDescriptor", initiator.post_after_retiring)


def test_killed_in_the_middle_of_a_large_write(nodes):
    owner = nodes("owner", nbytes=16 * MIB)
    initiator = nodes("initiator", nbytes=16 * MIB, peer_timeout_s=1.0)
    initiator.connect(owner.about)
    initiator.start("write", [[0, 0, 16 * MIB]] * 256, merge=False, timeout_s=60.0)
    owner.process.kill()
    began = time.monotonic()
    refused("PeerLost", initiator.finish, timeout_s=20.0)
    assert time.monotonic() - began < 2.5
    assert initiator.quiet(2.0)
    assert initiator.lost()[0] is False
    initiator.retire()
    assert initiator.wait_quiet(2.0)


def test_killed_in_the_middle_of_a_large_read(nodes):
    owner = nodes("owner", nbytes=16 * MIB)
    initiator = nodes("initiator", nbytes=16 * MIB, peer_timeout_s=1.0)
    initiator.connect(owner.about)
    initiator.start("read", [[0, 0, 16 * MIB]] * 256, merge=False, timeout_s=60.0)
    owner.process.kill()
    refused("PeerLost", initiator.finish, timeout_s=20.0)
    assert initiator.quiet(2.0)
    initiator.fill(9)
    still = initiator.sum()
    time.sleep(0.2)  # nothing is still being written
    assert initiator.sum() == still


def test_an_owner_survives_an_initiator_that_is_killed(nodes):
    owner = nodes("owner", nbytes=16 * MIB, peer_timeout_s=1.0)
    for operation in ("write", "read"):
        initiator = nodes("initiator", nbytes=16 * MIB)
        initiator.connect(owner.about)
        initiator.start(operation, [[0, 0, 16 * MIB]] * 256, merge=False, timeout_s=60.0)
        initiator.process.kill()
        initiator.process.wait()
    owner.retire()
    assert owner.wait_quiet(5.0)  # no transfer keeps its memory
    owner.register()
    other = nodes("other")
    other.connect(owner.hello())
    assert other.move("write", [[0, 0, MIB]]) == 2


@pytest.mark.parametrize("operation", ["write", "read"])
def test_a_peer_that_stops(nodes, operation):
    owner = nodes("owner")
    initiator = nodes("initiator", peer_timeout_s=1.5)
    initiator.connect(owner.about)
    owner.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    refused("DeadlineExceeded", initiator.move, operation, [[0, 0, 4 * MIB]] * 32, merge=False, timeout_s=0.3)
    assert time.monotonic() - began < 1.2
    if operation == "write":
        assert initiator.quiet() is False  # UCX may still read it
        refused("TransferActive", initiator.repost)
    alive, why = initiator.lost(wait_s=4.0)
    assert not alive
    assert "heard" in why
    assert initiator.quiet(1.0)
    refused("PeerLost", initiator.move, operation, [[0, 0, 8]])
    refused("PeerLost", initiator.notify, "anybody there?")


@pytest.mark.parametrize("operation", ["write", "read"])
def test_a_peer_that_stops_in_the_middle(nodes, operation):
    owner = nodes("owner", nbytes=16 * MIB)
    initiator = nodes("initiator", nbytes=16 * MIB, peer_timeout_s=1.0)
    initiator.connect(owner.about)
    initiator.start(operation, [[0, 0, 16 * MIB]] * 256, merge=False, timeout_s=60.0)
    owner.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    refused("PeerLost", initiator.finish, timeout_s=20.0)
    assert time.monotonic() - began < 2.5
    assert initiator.quiet(3.0)  # although its kernel still holds our line open


@pytest.mark.parametrize("operation", ["write", "read"])
def test_an_owner_gets_its_memory_back_from_an_initiator_that_stops(nodes, operation):
    owner = nodes("owner", nbytes=16 * MIB, peer_timeout_s=1.0)
    initiator = nodes("initiator", nbytes=16 * MIB)
    initiator.connect(owner.about)
    initiator.start(operation, [[0, 0, 16 * MIB]] * 256, merge=False, timeout_s=60.0)
    initiator.process.send_signal(signal.SIGSTOP)
    owner.retire()
    assert owner.wait_quiet(4.0)


def test_a_quiet_link_stays_alive_and_costs_nothing(nodes):
    owner = nodes("owner", peer_timeout_s=0.4)
    initiator = nodes("initiator", peer_timeout_s=0.4)
    initiator.connect(owner.about)
    before = [node.usage()["cpu_s"] for node in (initiator, owner)]
    time.sleep(1.5)
    assert initiator.lost() == [True, ""]
    assert initiator.move("write", [[0, 0, 8]]) == 2
    spent = [node.usage()["cpu_s"] - then for node, then in zip((initiator, owner), before, strict=True)]
    assert max(spent) < 0.1, spent


def test_peers_that_close(pair):
    initiator, owner = pair
    owner.close()
    alive, why = initiator.lost(wait_s=3.0)
    assert not alive
    assert "closed" in why
    refused("PeerLost", initiator.move, "write", [[0, 0, 8]])


@pytest.mark.parametrize(("end", "kind"), [("lose", "PeerLost"), ("leave", "ClosedError"), ("close", "ClosedError")])
def test_losing_and_leaving_end_what_is_under_way(nodes, end, kind):
    owner, initiator = nodes("owner"), nodes("initiator")
    initiator.connect(owner.about)
    initiator.start("write", [[0, 0, 4 * MIB]] * 2048, merge=False)  # 8 GiB: a second at the least
    getattr(initiator, end)()
    refused(kind, initiator.finish)
    assert initiator.quiet(2.0)
    if end == "close":
        refused("ClosedError", initiator.connect, owner.about)


def test_connected_again_after_a_restart(nodes):
    owner, initiator = nodes("owner"), nodes("initiator", peer_timeout_s=1.0)
    initiator.connect(owner.about)
    owner.process.kill()
    assert initiator.lost(wait_s=3.0)[0] is False
    owner = nodes("owner")
    assert initiator.connect(owner.about)["alive"]
    initiator.fill(5)
    assert initiator.move("write", [[0, 0, 4 * MIB]]) == 2
    assert owner.sum() == initiator.sum()


def test_both_ways_are_independent(nodes):
    one, other = nodes("one"), nodes("other")
    one.connect(other.about)
    other.connect(one.about)
    one.leave()
    assert other.lost() == [True, ""]
    assert other.move("write", [[0, 0, MIB]], notification="still here") == 2
    assert one.drain() == [["other", "still here", 10]]


def test_threads_share_a_link(pair):
    initiator, _ = pair
    assert initiator.threads(6, 15, 200_000) == []


def test_a_thousand_connections_leave_nothing(nodes):
    owner, initiator = nodes("owner"), nodes("initiator")
    initiator.cycles(100, owner.about)
    owner.drain(count=50)
    before = [node.usage() for node in (initiator, owner)]
    initiator.cycles(900, owner.about)
    owner.drain(count=450)
    after = [node.usage() for node in (initiator, owner)]
    for then, now in zip(before, after, strict=True):
        assert now["fds"] <= then["fds"] + 2
        assert now["threads"] == then["threads"]
        assert now["rss_kib"] <= then["rss_kib"] + 4096


def test_between_namespaces(nodes, cable):
    (space_a, device_a), (space_b, device_b) = cable
    owner = nodes("owner", namespace=space_b, device=device_b, nbytes=16 * MIB)
    initiator = nodes("initiator", namespace=space_a, device=device_a, nbytes=16 * MIB)
    assert initiator.connect(owner.about)["transport"] == f"tcp/{device_a}"
    initiator.fill(1)
    assert initiator.move("write", [[0, 0, 16 * MIB]], notification="there") == 2
    assert owner.sum() == initiator.sum()
    assert owner.drain() == [["initiator", "there", 5]]
    owner.fill(2)
    assert initiator.move("read", [[0, 0, 16 * MIB]]) == 2
    assert owner.sum() == initiator.sum()


def test_a_cable_that_is_pulled(nodes, cable):
    (space_a, device_a), (space_b, device_b) = cable
    owner = nodes("owner", namespace=space_b, device=device_b, peer_timeout_s=1.0)
    initiator = nodes("initiator", namespace=space_a, device=device_a, peer_timeout_s=1.0)
    initiator.connect(owner.about)
    initiator.start("write", [[0, 0, 4 * MIB]] * 512, merge=False, timeout_s=60.0)
    ip("-n", space_b, "link", "set", device_b, "down")
    began = time.monotonic()
    refused("PeerLost", initiator.finish, timeout_s=20.0)
    assert time.monotonic() - began < 2.5
    assert initiator.quiet(2.0)
    owner.retire()
    assert owner.wait_quiet(5.0)
    ip("-n", space_b, "link", "set", device_b, "up")
    owner.register()
    assert initiator.connect(owner.hello(), timeout_s=10.0)["alive"]
    assert initiator.move("write", [[0, 0, MIB]]) == 2


def test_tcp_buffers_are_alike_whatever_the_environment_says(nodes, monkeypatch):
    # UCX begins with no receive buffer smaller than the send buffer, and writes past one that what comes doesn't fit.
    with monkeypatch.context() as changed:
        changed.setenv("UCX_TCP_RX_SEG_SIZE", "8k")
        changed.setenv("UCX_TCP_TX_SEG_SIZE", "4k")
        owner = nodes("owner")
    initiator = nodes("initiator")
    initiator.connect(owner.about)
    initiator.fill(1)
    for _ in range(4):
        assert initiator.move("write", [[0, 0, 4 * MIB]]) == 2
    assert initiator.move("write", scattered(900, 1000, 24)) == 2
    assert initiator.move("read", [[0, 0, 4 * MIB]]) == 2
    assert owner.sum() == initiator.sum()


def test_shared_memory_when_it_is_asked_for(nodes):
    owner = nodes("owner", tls=SHARED_MEMORY)
    initiator = nodes("initiator", tls=SHARED_MEMORY, peer_timeout_s=1.0)
    assert "tcp" not in initiator.connect(owner.about)["transport"]
    initiator.fill(1)
    pieces = [*scattered(100, 1000, 24), [MIB, MIB, 2 * MIB]]
    assert initiator.move("write", pieces, notification="there") == 2
    assert owner.drain()[0][1] == "there"
    assert owner.sum(MIB, 2 * MIB) == initiator.sum(MIB, 2 * MIB)
    assert initiator.move("read", [[0, MIB, MIB]]) == 2
    assert initiator.sum(0, MIB) == owner.sum(MIB, MIB)
    refused("PeerRefused", nodes("other", tls=SHARED_MEMORY).connect, owner.about, secret="no")
    owner.process.kill()
    alive, why = initiator.lost(wait_s=4.0)
    assert not alive
    assert "heard" in why


def test_a_wait_is_interrupted_by_ctrl_c(nodes):
    """Connecting to a peer that is stopped, with a long deadline."""
    owner = nodes("owner")
    assert owner.about
    owner.process.send_signal(signal.SIGSTOP)
    initiator = nodes("initiator")
    initiator.ask("interrupted_connect", owner.about)
    assert initiator.answer(10) == "KeyboardInterrupt"
    owner.process.send_signal(signal.SIGCONT)
    assert initiator.connect(owner.about)["alive"]


@pytest.mark.gpu
@pytest.mark.parametrize("kinds", ["gpu to gpu", "host to gpu", "gpu to host"])
def test_memory_of_a_gpu(nodes, kinds):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    tls = "tcp,cuda_copy,cuda_ipc"
    initiator, owner = nodes("initiator", tls=tls), nodes("owner", tls=tls)
    ours, theirs = (kind == "gpu" for kind in kinds.split(" to "))
    if ours:
        initiator.use_gpu()
    initiator.connect(owner.use_gpu() if theirs else owner.about)

    def content(node, on_gpu):
        return node.gpu_sum() if on_gpu else node.sum()

    for seed, (operation, source, on_gpu) in enumerate((("write", initiator, ours), ("read", owner, theirs))):
        (source.gpu_fill if on_gpu else source.fill)(seed)
        assert initiator.move(operation, [[0, 0, 100], [100, 100, 4 * MIB - 100]], merge=False) == 2
        assert content(initiator, ours) == content(owner, theirs)


def test_signal_handlers_and_environment_stay_as_they_were():
    program = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import faulthandler
faulthandler.enable()
def handlers():
    return [line for line in open("/proc/self/status") if line.startswith(("SigCgt", "SigIgn", "SigBlk"))]
import network_node
before, environment = handlers(), dict(os.environ)
node = network_node.Node("one", {"TLS": "tcp", "NET_DEVICES": "lo"}, 4096, 5.0)
assert handlers() == before, (before, handlers())
node.close()
assert handlers() == before
assert dict(os.environ) == environment
"""
    subprocess.run([sys.executable, "-c", program, str(NODE.parent)], check=True, timeout=60)
