"""Conversations with a coordinator that go wrong: floods, nobody who reads, hundreds at once, ends in the middle."""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from immutables import Map
from tests.coordinators import BACK_SOON, CAPS, JOB_ID, WAIT_S, Node, Process, running

from leftovers import held, left_since
from penstock.coordinator import client as client_module
from penstock.coordinator.client import Client
from penstock.coordinator.events import Heartbeat, Register, RequestLease
from penstock.coordinator.journal import MemoryJournal
from penstock.coordinator.line import Line
from penstock.coordinator.state import Caps
from penstock.coordinator.wire import coordinator_pb2 as wire
from penstock.coordinator.wire.coordinator_pb2_grpc import CoordinatorStub
from penstock.errors import ClosedError, CoordinatorUnreachable
from waiting import wait_until

ME = {"job_id": JOB_ID, "node_id": "a", "instance": "1"}
MIB = 1 << 20
APART = [("grpc.use_local_subchannel_pool", 1), *BACK_SOON]  # a connection for each channel
HEARTBEAT = wire.HeartbeatRequest(**ME)
MANY = """
import queue, sys
sys.path[:0] = sys.argv[2:]
from tests.integration.test_conversations_broken import conversations
kept = conversations(sys.argv[1], 60, 6)
print("ready", flush=True)
sys.stdin.read()
"""


def conversations(addr, count, connections):
    """So many, each of which has said something; what each says further, and their calls and channels."""
    channels = [grpc.insecure_channel(addr, options=APART) for _ in range(connections)]
    said, calls = [], []
    for number in range(count):
        said.append(queue.SimpleQueue())
        calls.append(CoordinatorStub(channels[number % connections]).Converse(iter(said[-1].get, None)))
        said[-1].put(wire.Saying(heartbeat=HEARTBEAT))
    for call in calls:
        assert next(call) == wire.Answer()
    return said, calls, channels


class Watched:
    """What a process has of the system."""

    def __init__(self, pid: int) -> None:
        self._proc = Path(f"/proc/{pid}")

    @property
    def files(self) -> int:
        return len(os.listdir(self._proc / "fd"))

    @property
    def threads(self) -> int:
        return len(os.listdir(self._proc / "task"))

    @property
    def rss_bytes(self) -> int:
        return int((self._proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def busy(self) -> bool:
        """Whether it uses a third of a core, or more, for a moment."""
        before = self._ticks()
        time.sleep(0.3)
        return self._ticks() - before > 0.1 * os.sysconf("SC_CLK_TCK")

    def _ticks(self) -> int:
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """A coordinator in a process of its own, whose only node is here."""
    options = ("--addr=127.0.0.1:0", "--journal=memory:", "--dev-total-samples=1000000", "--dev-block-size=100")
    with Process(tmp_path_factory.mktemp("coordinator") / "log", *options) as coordinator:
        with Node(coordinator.addr, "a", instance="1") as node:
            node.register()
            yield coordinator, node
        assert "Traceback" not in coordinator.log.read_text()


def test_who_says_much_and_reads_nothing_takes_no_memory(process):
    coordinator, node = process
    watched = Watched(coordinator.process.pid)
    before_bytes, sent = watched.rss_bytes, []
    request = wire.Saying(request=wire.RequestLeaseRequest(**ME, want=1024, request="again and again"))

    def sayings():
        for number in range(20_000):
            sent.append(number)
            yield request

    with grpc.insecure_channel(coordinator.addr, options=[*APART, ("grpc.max_receive_message_length", -1)]) as channel:
        call = CoordinatorStub(channel).Converse(sayings())
        wait_until(lambda: len(sent) > 5_000, "it says much")
        while watched.busy():  # it answers what there is room for, of 50 KiB each
            assert watched.rss_bytes - before_bytes < 30 * MIB
        node.heartbeat()  # others are answered
        assert len(next(call).granted.leases) == 1024
        call.cancel()


def test_thousands_of_calls_at_once_are_all_answered(process):
    _, node = process
    asked = [node.stub.Heartbeat.future(HEARTBEAT, timeout=WAIT_S) for _ in range(3_000)]
    assert {call.code() for call in asked} == {grpc.StatusCode.OK}


def test_conversations_that_end_somehow_leave_nothing_behind(process):
    coordinator, node = process
    node.heartbeat()
    watched = Watched(coordinator.process.pid)
    files = watched.files
    said, calls, channels = conversations(coordinator.addr, 200, 8)
    unused = [CoordinatorStub(channels[0]).Converse(iter(queue.SimpleQueue().get, None)) for _ in range(20)]
    command = [sys.executable, "-c", MANY, coordinator.addr, *sys.path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        assert watched.files >= files + 8 + 6
        threads = watched.threads
        other.kill()
    for number, (mine, call) in enumerate(zip(said, calls, strict=True)):
        if number % 2:
            mine.put(wire.Saying(heartbeat=HEARTBEAT))  # said, half closed, and not read
            mine.put(None)
        else:
            call.cancel()
            mine.put(None)
    assert [len(list(call)) for call in calls[1::2]] == [1] * 100
    for call in unused:
        call.cancel()
    for channel in channels:
        channel.close()
    wait_until(lambda: watched.files <= files, "its connections are closed")
    assert watched.threads <= threads < 40
    node.heartbeat()


def test_names_that_would_fill_a_journal_are_refused(process):
    coordinator, _ = process
    long = "x" * MIB
    with grpc.insecure_channel(coordinator.addr) as channel:
        line = Line(channel, ())
        for saying in (
            wire.Saying(heartbeat=wire.HeartbeatRequest(**{**ME, "instance": long})),
            wire.Saying(request=wire.RequestLeaseRequest(**ME, want=1, request=long)),
            wire.Saying(progress=wire.ReportProgressRequest(**ME, lease_id=long, cursor=1)),
        ):
            answer = line.say(saying, WAIT_S)
            assert answer.refused == "INVALID_ARGUMENT" and "at most 256" in answer.reason
        with pytest.raises(grpc.RpcError) as caught:
            line.call("RegisterNode", wire.RegisterNodeRequest(**{**ME, "instance": long}, caps=CAPS), WAIT_S)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        line.close()


@pytest.fixture
def joined():
    """A coordinator in this process, and a client that is its only node."""
    with running(samples=80_000) as coordinator, ExitStack() as stack:

        def another():
            client = Client(coordinator.addr, JOB_ID, timeout_s=WAIT_S)
            stack.callback(client.close)
            return client

        first = another()
        first.register(Register(JOB_ID, "a", Caps(), "1"))
        yield coordinator, first, another


def test_a_coordinator_that_stops_answers_what_it_is_about_to_keep(joined, monkeypatch):
    coordinator, client, _ = joined
    entered, free = threading.Event(), threading.Event()
    commit = MemoryJournal.commit

    def slow(journal, changes):
        entered.set()
        assert free.wait(WAIT_S)
        commit(journal, changes)

    monkeypatch.setattr(MemoryJournal, "commit", slow)
    with ThreadPoolExecutor(2) as threads:
        asking = threads.submit(client.request, RequestLease(JOB_ID, "a", 1, "1", "q"), lease_ttl_s=10)
        assert entered.wait(WAIT_S)
        stopping = threads.submit(coordinator.stop)
        wait_until(lambda: coordinator.server._service.conversations._ending)
        assert not asking.done()
        free.set()
        assert [lease.start for lease in asking.result(WAIT_S).leases] == [0]
        stopping.result(WAIT_S)
    with pytest.raises(CoordinatorUnreachable):
        client.heartbeat(Heartbeat(JOB_ID, "a", Map(), "1"), 0)


def test_a_leader_that_steps_down_ends_what_is_said_next(joined):
    coordinator, client, _ = joined
    said = Heartbeat(JOB_ID, "a", Map(), "1")
    client.heartbeat(said)
    coordinator.server.seat._journal._shared.depose()
    with pytest.raises(CoordinatorUnreachable, match="lead"):
        client.heartbeat(said, 0)
    client.heartbeat(said)  # it leads again


def test_several_threads_each_get_the_answer_to_what_they_said(joined):
    _, client, another = joined
    second = another()

    def work(number):
        found = []
        for turn in range(20):
            line = (client, second)[turn % 2]
            granted = line.request(RequestLease(JOB_ID, "a", number, "1", f"{number}-{turn}"), lease_ttl_s=10)
            line.heartbeat(Heartbeat(JOB_ID, "a", Map(), "1"))
            assert len(granted.leases) == number
            found += [lease.start for lease in granted.leases]
        return found

    with ThreadPoolExecutor(8) as threads:
        found = [start for some in threads.map(work, range(1, 9)) for start in some]
    assert sorted(found) == [8 * number for number in range(20 * sum(range(1, 9)))]


def test_closing_wakes_who_waits_and_nobody_asks_afterwards(joined, monkeypatch):
    _, client, _ = joined
    entered, free, before = threading.Event(), threading.Event(), held()
    commit = MemoryJournal.commit
    monkeypatch.setattr(MemoryJournal, "commit", lambda *given: (entered.set(), free.wait(WAIT_S), commit(*given)))
    request = RequestLease(JOB_ID, "a", 1, "1", "q")
    with ThreadPoolExecutor(3) as threads:  # one waits for an answer, the others for their turn
        asking = [threads.submit(client.request, request, lease_ttl_s=10) for _ in range(3)]
        assert entered.wait(WAIT_S)
        began = time.monotonic()
        client.close()
        for each in asking:
            with pytest.raises(ClosedError):
                each.result(WAIT_S)
        assert time.monotonic() - began < 2.0
    free.set()
    for ask in (lambda: client.heartbeat(Heartbeat(JOB_ID, "a", Map(), "1")), client.checkpoint):
        with pytest.raises(ClosedError, match="make another one"):
            ask()
    wait_until(lambda: not left_since(before), "its threads end")


def test_an_interrupted_wait_does_not_shift_the_answers(joined, monkeypatch):
    coordinator, _, _ = joined
    with grpc.insecure_channel(coordinator.addr) as channel:
        line = Line(channel, ())
        heartbeat = wire.Saying(heartbeat=HEARTBEAT)
        assert line.say(heartbeat, WAIT_S) == wire.Answer()

        class Signal(BaseException):
            pass

        class Interrupted(queue.Queue):
            first = True

            def get(self, *given, **named):
                if self.first:
                    self.first = False
                    raise Signal
                return super().get(*given, **named)

        line._conversation._answers = Interrupted()
        with pytest.raises(Signal):
            line.say(wire.Saying(request=wire.RequestLeaseRequest(**ME, want=1, request="q")), WAIT_S)
        assert line.say(heartbeat, WAIT_S) == wire.Answer(), "not the leases"
        line.close()


class Hole:
    """A way to a coordinator, whose connections so far can become black holes: nothing comes through, nothing ends."""

    def __init__(self, addr: str) -> None:
        host, port = addr.split(":")
        self._to = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.addr = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._swallowing: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def swallow(self) -> None:
        self._swallowing.update(self._open)

    def _accept(self) -> None:
        while True:
            try:
                near = self._listener.accept()[0]
                far = socket.create_connection(self._to)
            except OSError:
                return
            self._open += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                if source not in self._swallowing:
                    target.sendall(data)
        except OSError:
            return

    def close(self) -> None:
        self._listener.close()
        for each in self._open:
            each.close()


def test_a_connection_on_which_nothing_comes_through_any_more_is_left_for_another(joined, monkeypatch):
    coordinator, _, _ = joined
    monkeypatch.setattr(client_module, "_KEEPALIVE_MS", 300)
    monkeypatch.setattr(client_module, "_PING_TIMEOUT_MS", 200)
    hole = Hole(coordinator.addr)
    client = Client(hole.addr, JOB_ID, timeout_s=5.0)
    client.attempt_s = 0.2
    said = Heartbeat(JOB_ID, "a", Map(), "1")
    client.heartbeat(said)
    hole.swallow()
    client.heartbeat(said)
    client.close()
    hole.close()
