"""Conversations: what a node says again and again, without a call for each."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from immutables import Map
from tests.coordinators import CAPS, JOB_ID, WAIT_S, running

from leftovers import held, left_since
from penstock.coordinator.access import Access
from penstock.coordinator.client import Client
from penstock.coordinator.conversations import Conversations
from penstock.coordinator.events import Heartbeat, Progress, Register, RequestLease
from penstock.coordinator.line import Line
from penstock.coordinator.server import Settings
from penstock.coordinator.state import Caps
from penstock.coordinator.wire import coordinator_pb2 as wire
from penstock.errors import CoordinatorRefused, CoordinatorUnreachable, LeaseLost
from waiting import wait_until

ME = {"job_id": JOB_ID, "node_id": "a", "instance": "1"}


async def _heard(silence):
    while True:
        yield await silence.get()


def heartbeat():
    return wire.Saying(heartbeat=wire.HeartbeatRequest(**ME))


@pytest.fixture
def line():
    made = []

    def to(addr, token=None):
        metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        made.append(Line(grpc.insecure_channel(addr), metadata))
        return made[-1]

    yield to
    for each in made:
        each.close()


@pytest.fixture
def joined(line):
    """A coordinator, and the line of its only node."""
    with running() as coordinator:
        to = line(coordinator.addr)
        to.call("RegisterNode", wire.RegisterNodeRequest(**ME, caps=CAPS), WAIT_S)
        yield coordinator, to


def test_each_saying_is_answered_as_its_call_would_be(joined):
    _, line = joined
    assert line.say(heartbeat(), WAIT_S) == wire.Answer()
    request = wire.Saying(request=wire.RequestLeaseRequest(**ME, want=2))
    answer = line.say(request, WAIT_S)
    assert [(lease.range.start_id, lease.range.end_id) for lease in answer.granted.leases] == [(0, 8), (8, 16)]
    lease = answer.granted.leases[0]
    report = {**ME, "lease_id": lease.lease_id, "fence": lease.fence}
    assert line.say(wire.Saying(progress=wire.ReportProgressRequest(**report, cursor=5)), WAIT_S) == wire.Answer()
    refused = line.say(wire.Saying(progress=wire.ReportProgressRequest(**report, cursor=4)), WAIT_S)
    assert refused.refused == "FAILED_PRECONDITION" and "never goes back" in refused.reason
    assert line.say(heartbeat(), WAIT_S) == wire.Answer(), "a refusal ends nothing"


def test_what_nobody_knows_is_refused_and_what_cannot_be_read_ends_it(joined):
    coordinator, line = joined
    assert line.say(wire.Saying(), WAIT_S).refused == "INVALID_ARGUMENT"
    with grpc.insecure_channel(coordinator.addr) as channel:
        raw = channel.stream_stream("/mx8.v0.Coordinator/Converse")
        with pytest.raises(grpc.RpcError) as caught:
            next(raw(iter([b"\xff\xff\xff"]), timeout=WAIT_S))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert line.say(heartbeat(), WAIT_S) == wire.Answer(), "others hear nothing of it"


def test_strangers_have_no_conversations(line):
    settings = Settings(addr="127.0.0.1:0", access=Access(token="secret"))
    with running(settings=settings) as coordinator:
        for token in (None, "wrong"):
            with pytest.raises(grpc.RpcError) as caught:
                line(coordinator.addr, token).say(heartbeat(), WAIT_S)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "register" in line(coordinator.addr, "secret").say(heartbeat(), WAIT_S).reason


def test_a_coordinator_that_ends_ends_what_is_silent_at_once(joined):
    coordinator, line = joined
    line.say(heartbeat(), WAIT_S)
    began = time.monotonic()
    coordinator.stop()  # which would wait for a call for 5 s
    assert time.monotonic() - began < 4
    with pytest.raises(grpc.RpcError) as caught:
        line.say(heartbeat(), 1.0)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_node_that_vanished_before_its_answer_ends_its_conversation_without_a_word():
    class Context:
        async def write(self, answer):
            raise RuntimeError("the node vanished")  # gRPC's own is private

    async def said():
        yield "one"
        raise AssertionError("nobody listens any more")

    async def answer(saying):
        return saying

    asyncio.run(Conversations().follow(said(), answer, Context()))


def test_one_that_cannot_be_ended_any_more_keeps_no_other_from_its_end():
    class Context:
        ended = False

        async def abort(self, code, details):
            self.ended = code is grpc.StatusCode.UNAVAILABLE and "ends" in details
            raise RuntimeError("the node vanished")  # gRPC's own is private

    async def both():
        conversations, silence = Conversations(), asyncio.Queue()
        contexts = [Context(), Context()]

        async def follow(context):
            await conversations.follow(_heard(silence), None, context)

        following = [asyncio.ensure_future(follow(context)) for context in contexts]
        await asyncio.sleep(0)
        await conversations.end()
        for task in following:
            task.cancel()
        return [context.ended for context in contexts]

    assert asyncio.run(both()) == [True, True]


def test_a_follower_says_whom_to_ask_and_the_client_goes_there(tmp_path):
    journal = f"file:{tmp_path / 'journal'}"
    with running(journal=journal) as leader, running(journal=journal, server={"follow": True}) as follower:
        client = Client(f"{follower.addr},{leader.addr}", JOB_ID, timeout_s=WAIT_S)
        client.register(Register(JOB_ID, "a", Caps(), "1"))
        client._at = follower.addr
        client.heartbeat(Heartbeat(JOB_ID, "a", Map(), "1"))
        assert client._at == leader.addr
        client.close()


def test_one_that_is_silent_is_hung_up_on_and_asked_again_when_it_is_back(tmp_path):
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from tests.coordinators import running\n"
        "with running() as coordinator: print(coordinator.addr, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, *sys.path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        client = Client(process.stdout.readline().strip(), JOB_ID, timeout_s=WAIT_S)
        client.register(Register(JOB_ID, "a", Caps(), "1"))
        said = Heartbeat(JOB_ID, "a", Map(), "1")
        client.heartbeat(said)
        client.attempt_s = 0.2
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(CoordinatorUnreachable, match="DEADLINE_EXCEEDED, no answer within 0.2 s"):
            client.heartbeat(said, 0)
        os.kill(process.pid, signal.SIGCONT)
        client.heartbeat(said)
        client.close()


@pytest.mark.parametrize("name", ["checkpoint", "snapshot"])
def test_a_coordinator_of_another_version_is_told_from_one_that_refuses(name):
    """What is asked later than MX8 knows of, of a server that knows nothing of it."""
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        client = Client(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", JOB_ID, timeout_s=WAIT_S)
        server.start()
        with pytest.raises(CoordinatorRefused, match=f"doesn't know {name.title()} .* of another version") as caught:
            getattr(client, name)()
        client.close()
        server.stop(0).wait()
    assert caught.value.code == "UNIMPLEMENTED"


def test_refusals_are_typed(joined):
    coordinator, _ = joined
    client = Client(coordinator.addr, JOB_ID)
    with pytest.raises(CoordinatorRefused, match="refused Heartbeat: .*isn't registered") as caught:
        client.heartbeat(Heartbeat(JOB_ID, "b", Map()))
    assert caught.value.code == "FAILED_PRECONDITION"
    with pytest.raises(LeaseLost, match="never was"):
        client.progress(Progress(JOB_ID, "a", "lease-9", 1, 0, 0, "1", 1))
    client.close()


def test_closing_leaves_no_thread_and_wakes_who_waits(joined):
    coordinator, _ = joined
    before = held()
    client = Client(coordinator.addr, JOB_ID)
    client.heartbeat(Heartbeat(JOB_ID, "a", Map(), "1"))
    client.request(RequestLease(JOB_ID, "a", 1, "1"), lease_ttl_s=10)
    client.close()
    wait_until(lambda: not left_since(before), "its threads and descriptors are gone")
