"""Metadata from agent to agent over sockets."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest

from leftovers import held, left_since
from penstock.errors import (
    ConfigError,
    DeadlineExceeded,
    MetadataError,
    PeerRefused,
    PeerUnreachable,
    UnknownPeer,
)
from penstock.transfer import Agent
from penstock.transfer.exchange import MetadataListener, fetch_metadata, send_invalidation, send_metadata, sockets
from penstock.transfer.exchange.frames import HEAD_BYTES, MOST_BODY_BYTES, Kind, frame, parse_head
from penstock.transfer.exchange.service import Limits


class Familiar:
    """As much of an agent as a listener knows."""

    def __init__(self, name="b", blob=b"blob of b"):
        self.name = name
        self.blob = blob
        self.peers = []

    def metadata(self):
        return self.blob

    def add_peer(self, blob):
        if not blob:
            raise MetadataError("metadata: 0 bytes")
        self.peers.append(blob)

    def remove_peer(self, name):
        if name.encode() not in self.peers:
            raise UnknownPeer(name)
        self.peers.remove(name.encode())


@pytest.fixture
def agent():
    return Familiar()


@pytest.fixture
def listener(agent):
    with MetadataListener(agent) as listener:
        yield listener


def dial(listener):
    connection = socket.create_connection((listener.host, listener.port), timeout=10)
    head = parse_head(exactly(connection, HEAD_BYTES))
    return connection, exactly(connection, head.size)


def exactly(connection, size):
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        assert piece, data
        data += piece
    return data


def refusal(connection):
    head = parse_head(exactly(connection, HEAD_BYTES))
    assert head.kind is Kind.REFUSED
    return exactly(connection, head.size).decode()


@pytest.mark.parametrize("size", [0, 1, 5000, 1 << 20, MOST_BODY_BYTES])
def test_fetch_brings_the_blob_as_it_is_now(agent, listener, size):
    agent.blob = os.urandom(min(size, 1 << 20)) * max(1, size >> 20)
    assert fetch_metadata("b", listener.host, listener.port, 20.0) == agent.blob
    assert fetch_metadata(None, listener.host, listener.port, 20.0) == agent.blob


def test_fetch_of_another_agent_is_refused(listener):
    with pytest.raises(PeerRefused, match=r"fetching the metadata of 'c' at 127.*this is agent 'b', not 'c'"):
        fetch_metadata("c", listener.host, listener.port)


def test_send_has_loaded_it_when_it_returns(agent, listener):
    blob = os.urandom(3 << 20)
    send_metadata(blob, listener.host, listener.port, 20.0)
    assert agent.peers == [blob]


def test_what_the_agent_refuses_the_sender_hears(agent, listener):
    with pytest.raises(PeerRefused, match="metadata: 0 bytes"):
        send_metadata(b"", listener.host, listener.port)
    agent.add_peer = lambda blob: 1 / 0
    with pytest.raises(PeerRefused, match="division by zero"):
        send_metadata(b"x", listener.host, listener.port)
    assert fetch_metadata("b", listener.host, listener.port) == agent.blob


def test_invalidation_forgets_and_may_come_twice(agent, listener):
    send_metadata(b"a", listener.host, listener.port)
    send_invalidation("a", listener.host, listener.port)
    assert agent.peers == []
    send_invalidation("a", listener.host, listener.port)


def test_blobs_beyond_the_frame_are_refused_on_either_side(agent, listener):
    with pytest.raises(MetadataError, match=f"{MOST_BODY_BYTES + 1} bytes; at most {MOST_BODY_BYTES}"):
        send_metadata(bytes(MOST_BODY_BYTES + 1), listener.host, listener.port)
    agent.blob = bytes(MOST_BODY_BYTES + 1)
    with pytest.raises(PeerRefused, match=f"at most {MOST_BODY_BYTES}"):
        fetch_metadata("b", listener.host, listener.port)


def test_a_token_is_asked_for_and_doesnt_travel(agent):
    with MetadataListener(agent, token="s3cret") as listener:
        assert fetch_metadata("b", listener.host, listener.port, token="s3cret") == agent.blob
        for token in (None, "s3cre", "S3cret"):
            with pytest.raises(PeerRefused, match="token is wrong or missing"):
                fetch_metadata("b", listener.host, listener.port, token=token)
            with pytest.raises(PeerRefused, match="token is wrong or missing"):
                send_metadata(b"x", listener.host, listener.port, token=token)
        assert agent.peers == []
        connection, nonce = dial(listener)
        with connection:
            said = b"".join(frame(Kind.FETCH, b"b", b"s3cret", nonce))
            connection.sendall(said)
            answer = parse_head(exactly(connection, HEAD_BYTES))
            assert answer.kind is Kind.METADATA
            assert b"s3cret" not in said
        again, other_nonce = dial(listener)  # what was overheard is worth nothing on another connection
        with again:
            assert nonce != other_nonce
            again.sendall(said)
            assert refusal(again) == "the token is wrong or missing"
    with MetadataListener(agent) as open_to_all, pytest.raises(PeerRefused, match="token is wrong"):
        fetch_metadata("b", open_to_all.host, open_to_all.port, token="s3cret")


def test_an_impostor_is_found_out(agent):
    """Who listens without knowing the token can't pass metadata off as the agent's."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def lie():
            connection, _ = server.accept()
            with connection:
                nonce = bytes(16)
                connection.sendall(b"".join(frame(Kind.GREETING, nonce, b"", nonce)))
                exactly(connection, HEAD_BYTES + 1)
                connection.sendall(b"".join(frame(Kind.METADATA, b"mine", b"guess", nonce)))

        lying = threading.Thread(target=lie)
        lying.start()
        with pytest.raises(PeerRefused, match="doesn't know the token"):
            fetch_metadata("b", "127.0.0.1", server.getsockname()[1], token="s3cret")
        lying.join()


def test_beyond_loopback_takes_a_token(agent):
    with pytest.raises(ConfigError, match=r"metadata listener of 'b' on 0\.0\.0\.0 could be reached.*token"):
        MetadataListener(agent, "0.0.0.0")
    with MetadataListener(agent, "0.0.0.0", token="s3cret") as listener:
        assert fetch_metadata("b", "127.0.0.2", listener.port, token="s3cret") == agent.blob


def test_a_taken_port_is_an_error(agent, listener):
    with pytest.raises(ConfigError, match="in use"):
        MetadataListener(agent, port=listener.port)


@pytest.mark.parametrize(
    ("bytes_", "why"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".ljust(HEAD_BYTES), "isn't a listener"),
        (struct.pack("<4sBBHI32s", b"PSxm", 2, 2, 0, 0, bytes(32)), "speaks version 2, we 1"),
        (struct.pack("<4sBBHI32s", b"PSxm", 1, 99, 0, 0, bytes(32)), "kind 99"),
        (struct.pack("<4sBBHI32s", b"PSxm", 1, 3, 0, 2**32 - 1, bytes(32)), f"at most {MOST_BODY_BYTES}"),
        (struct.pack("<4sBBHI32s", b"PSxm", 1, 3, 0, 0, bytes(32)), "token is wrong"),
    ],
)
def test_a_bad_frame_is_answered_with_the_reason(agent, listener, bytes_, why):
    connection, _ = dial(listener)
    with connection:
        connection.sendall(bytes_)
        assert why in refusal(connection)
        assert connection.recv(1) == b""
    assert fetch_metadata("b", listener.host, listener.port) == agent.blob


@pytest.mark.parametrize("kind", [Kind.GREETING, Kind.METADATA, Kind.DONE, Kind.REFUSED])
def test_an_answer_isnt_a_question(listener, kind):
    connection, nonce = dial(listener)
    with connection:
        connection.sendall(b"".join(frame(kind, b"x", b"", nonce)))
        assert refusal(connection) == f"{kind.name} isn't a question"


def test_names_that_are_none(listener):
    for name in ("\ud800", "x" * 5000):
        with pytest.raises(MetadataError, match="name"):
            fetch_metadata(name, listener.host, listener.port)
    for body in (b"\xff", b"x" * 5000):
        connection, nonce = dial(listener)
        with connection:
            connection.sendall(b"".join(frame(Kind.INVALIDATE, body, b"", nonce)))
            assert "name" in refusal(connection)


def test_a_body_that_stalls_is_cut_off(agent, monkeypatch):
    monkeypatch.setattr(sockets, "_LIMITS", Limits(stall_timeout_s=0.2, buffered_bytes=MOST_BODY_BYTES * 2))
    with MetadataListener(agent) as listener:
        connection, nonce = dial(listener)
        with connection:
            connection.sendall(b"".join(frame(Kind.SEND, bytes(1000), b"", nonce))[:-1])
            began = time.monotonic()
            assert connection.recv(1) == b""
            assert 0.1 < time.monotonic() - began < 1.5
    assert Limits().stall_timeout_s == 5.0


@pytest.mark.parametrize("reply", [b"", b"PSxm", b"SSH-2.0-OpenSSH_9.2\r\n" * 4, bytes(200)])
def test_something_else_on_the_port(reply):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.sendall(reply)
                with contextlib.suppress(OSError):  # it is cut off, once it was found to be something else
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1000):
                        pass

        answering = threading.Thread(target=answer)
        answering.start()
        with pytest.raises((MetadataError, PeerUnreachable)):
            fetch_metadata("b", "127.0.0.1", server.getsockname()[1])
        answering.join()


def test_nobody_there_and_nobody_who_answers():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"fetching the metadata of 'b' at 127.*not done within 0\.3 s"):
            fetch_metadata("b", "127.0.0.1", port, 0.3)
        assert time.monotonic() - began < 1.0
    for call in (
        lambda: fetch_metadata("b", "127.0.0.1", port),
        lambda: send_metadata(b"x", "127.0.0.1", port),
        lambda: send_invalidation("b", "127.0.0.1", port),
        lambda: fetch_metadata("b", "no-such-host.invalid", port),
        lambda: fetch_metadata("b", "127.0.0.1", 1 << 20),
    ):
        with pytest.raises(PeerUnreachable):
            call()


def test_close_leaves_no_thread_and_no_descriptor(agent):
    before = held()
    for _ in range(20):
        listener = MetadataListener(agent)
        connection, _ = dial(listener)
        listener.close()
        listener.close()
        connection.close()
    assert left_since(before) == []


def test_a_listener_may_be_closed_by_its_own_agent(agent):
    listener = MetadataListener(agent)
    agent.add_peer = lambda blob: listener.close()
    with pytest.raises((PeerUnreachable, DeadlineExceeded)):
        send_metadata(b"x", listener.host, listener.port)
        fetch_metadata("b", listener.host, listener.port)
    listener.close()


def test_a_forked_child_keeps_neither_port_nor_clients(agent):
    listener = MetadataListener(agent)
    client, _ = dial(listener)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        ours.close()
        theirs.send(b"x")
        theirs.recv(1)  # lives until the test is over
        os._exit(0)
    theirs.close()
    try:
        ours.recv(1)
        listener.close()
        assert client.recv(1) == b""
        with MetadataListener(agent, port=listener.port) as again:
            assert fetch_metadata("b", again.host, again.port) == agent.blob
    finally:
        client.close()
        ours.close()
        os.waitpid(child, 0)


def test_real_agents_meet_over_sockets_in_two_processes(tmp_path):
    """E2 110: fetched, sent and invalidated between two processes."""
    program = """
import sys
from penstock.transfer import Agent
from penstock.transfer.exchange import MetadataListener
with Agent("b") as agent, MetadataListener(agent) as listener:
    print(listener.port, flush=True)
    for line in sys.stdin:
        print(sorted(agent.peers), flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )

    def peers():
        process.stdin.write("\n")
        return process.stdout.readline().strip()

    try:
        port = int(process.stdout.readline())
        with Agent("a") as agent:
            assert agent.add_peer(fetch_metadata("b", "127.0.0.1", port)).name == "b"
            send_metadata(agent.metadata(), "127.0.0.1", port)
            assert peers() == "['a']"
            send_invalidation("a", "127.0.0.1", port)
            assert peers() == "[]"
            with pytest.raises(PeerRefused, match="metadata"):
                send_metadata(b"garbage", "127.0.0.1", port)
            process.send_signal(signal.SIGKILL)
            process.wait()
            with pytest.raises(PeerUnreachable):
                fetch_metadata("b", "127.0.0.1", port)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
