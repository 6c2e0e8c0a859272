"""Whoever knocks at an agent's socket on this host and doesn't keep to its rules: nobody else notices."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Callable
from dataclasses import replace

import pytest

from leftovers import held, left_since
from penstock.transfer import Agent
from penstock.transfer.host_messages import Gone, Hello, Map, Refused, SegmentAt, Welcome, decode, encode
from penstock.transfer.metadata import AgentMetadata
from waiting import wait_until


@pytest.fixture
def target():
    with Agent("target", timeout_s=10) as agent:
        agent.register(agent.allocate(4096))
        yield agent


def knock(metadata: AgentMetadata) -> socket.socket:
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    line.settimeout(10)
    line.connect("\0" + metadata.socket_name)
    return line


def answers(line: socket.socket) -> list[object]:
    """What comes until the other side hangs up; descriptors that come with it are closed."""
    found = []
    with contextlib.suppress(ConnectionError):
        while True:
            data, fds, *_ = socket.recv_fds(line, 65536, 8)
            for fd in fds:
                os.close(fd)
            if not data:
                break
            found.append(type(decode(data)))
    return found


def still_serves(target: Agent) -> None:
    with Agent("friend") as friend:
        peer = friend.add_peer(target.metadata())
        peer.connect(timeout_s=10)
        friend.notify("target", b"knock")
        assert ("friend", b"knock") in target.wait_notification(10)


def test_messages_that_nobody_expects_end_the_connection(target: Agent) -> None:
    metadata = AgentMetadata.from_bytes(target.metadata())
    hello = Hello("stranger", metadata.instance, metadata.secret)
    wrong: list[tuple[list[bytes], list[type]]] = [
        ([b"x"], []),
        ([bytes(60000)], []),
        ([encode(Map(1))], []),
        ([encode(Welcome(1, 2, 3))], []),
        ([encode(replace(hello, secret=bytes(16)))], [Refused]),
        ([encode(replace(hello, instance=bytes(16)))], [Refused]),
        ([encode(hello), encode(hello)], [Welcome]),
        ([encode(hello), encode(Gone(1))], [Welcome]),
        ([encode(hello), encode(SegmentAt(1, 1))], [Welcome]),
        ([encode(hello), encode(hello)[:-1]], [Welcome]),
    ]
    for messages, expected in wrong:
        with knock(metadata) as line:
            for message in messages:
                with contextlib.suppress(ConnectionError):
                    line.send(message)
            assert answers(line) == expected, messages
    still_serves(target)


def test_only_registered_segments_are_handed_over(target: Agent) -> None:
    unregistered = target.allocate(4096)
    metadata = AgentMetadata.from_bytes(target.metadata())
    allowed = {record.segment_id for record in metadata.registrations}
    with knock(metadata) as line:
        line.send(encode(Hello("stranger", metadata.instance, metadata.secret)))
        for fd in socket.recv_fds(line, 65536, 8)[1]:
            os.close(fd)
        got = set()
        for segment_id in range(max(allowed) + 20):
            line.send(encode(Map(segment_id)))
            data, fds, *_ = socket.recv_fds(line, 65536, 8)
            got |= {segment_id} if fds else set()
            assert isinstance(decode(data), SegmentAt if fds else Gone)
            for fd in fds:
                os.close(fd)
        assert got == allowed
    del unregistered


def test_noise_and_descriptors_that_nobody_asked_for_leave_nothing(target: Agent) -> None:
    metadata = AgentMetadata.from_bytes(target.metadata())
    valid = [encode(Hello("stranger", metadata.instance, metadata.secret)), encode(Map(1)), encode(Gone(1))]
    dice = random.Random(20)

    def mutated() -> bytes:
        message = bytearray(dice.choice(valid))
        for _ in range(dice.randrange(4)):
            message[dice.randrange(len(message))] = dice.randrange(256)
        return bytes(message[: dice.randrange(1, len(message) + 1)])

    makers: list[Callable[[], bytes]] = [mutated, lambda: dice.randbytes(dice.randrange(1, 200)), lambda: valid[0]]

    def noise(turns: int) -> None:
        null = os.open("/dev/null", os.O_RDONLY)
        for _ in range(turns):
            with knock(metadata) as line, contextlib.suppress(ConnectionError):
                for _ in range(dice.randrange(5)):
                    socket.send_fds(line, [dice.choice(makers)()], [null] * dice.choice([0, 0, 1, 8, 20]))
        os.close(null)

    before = held()
    noise(320)
    wait_until(lambda: not len(target.planes.host.visitors) and not left_since(before))
    still_serves(target)
