"""Nothing that anybody sends brings a server down, or a client to anything but our errors."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from penstock.errors import MetadataError, PenstockError
from penstock.transfer.exchange import (
    EtcdExchange,
    KeyValueClient,
    KeyValueServer,
    MetadataListener,
    fetch_metadata,
    send_metadata,
)
from penstock.transfer.exchange.frames import HEAD_BYTES, NONCE_BYTES, Kind, frame, parse_head
from penstock.transfer.exchange.server import KeyValues, Lines, TooMuch
from penstock.transfer.exchange.sockets import Introductions

SOCKETS = settings(max_examples=40)
KEYS = st.sampled_from(["a", "a/b", "é", "k" * 2000]) | st.text(max_size=3)


class KeyValuesModel(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.values = KeyValues(most_keys=4, most_bytes=3000)
        self.model: dict[str, bytes] = {}

    @rule(key=KEYS, value=st.binary(max_size=1500))
    def set(self, key, value):
        try:
            self.values.set(key, value)
        except TooMuch:
            assert len(key) > 1024 or (len(self.model) == 4 and key not in self.model) or self._full(key, value)
        else:
            self.model[key] = value

    def _full(self, key, value):
        after = {**self.model, key: value}
        return sum(4 * len(key) + len(value) + 200 for key, value in after.items()) > 3000

    @rule(key=KEYS)
    def drop(self, key):
        self.values.drop(key)
        self.model.pop(key, None)

    @rule(prefix=KEYS | st.just(""))
    def delete(self, prefix):
        self.values.delete(prefix)
        self.model = {key: value for key, value in self.model.items() if not key.startswith(prefix)}

    @invariant()
    def it_is_a_dict_inside_its_limits(self):
        assert len(self.values) == len(self.model) <= 4
        assert all(self.values.get(key) == value for key, value in self.model.items())
        assert self.values.total_bytes == sum(4 * len(k) + len(v) + 200 for k, v in self.model.items()) <= 3000


TestKeyValues = KeyValuesModel.TestCase

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "cmd": st.sampled_from(["SET", "GET", "CLEAR", "DELETE"]) | JSON,
        "key": KEYS | JSON,
        "value": JSON,
        "prefix": KEYS | JSON,
        "token": st.just("s3cret") | JSON,
    },
).map(lambda request: json.dumps(request).encode())


@st.composite
def mutated(draw, good: st.SearchStrategy[bytes]) -> bytes:
    """What is good, but for some bytes that were changed, lost, or came in."""
    data = bytearray(draw(good))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["change", "cut", "insert", "drop"]))
        if kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=8))
        elif kind == "drop":
            del data[at : at + draw(st.integers(1, 8))]
        elif at < len(data):
            data[at] = draw(st.integers(0, 255))
    return bytes(data)


LINES = st.lists(st.binary(max_size=60) | mutated(REQUESTS), max_size=8).map(lambda lines: b"\n".join(lines) + b"\n")


def talk(conversation, data: bytes, cuts: list[int]) -> tuple[list[bytes], bool]:
    """What a conversation answers to bytes that come in pieces; whether it ended."""
    received, answers, start = bytearray(), [], 0
    for end in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        received += data[start:end]
        start = end
        while received:
            before = len(received)
            answer = conversation.answer(received)
            if answer is None:
                assert len(received) == before
                break
            answers.append(b"".join(answer.pieces))
            if answer.last:
                return answers, True
    return answers, False


@given(LINES, st.lists(st.integers(0, 500), max_size=4), st.sampled_from([b"", b"s3cret"]))
def test_every_line_has_its_answer_however_it_comes(data, cuts, token):
    answers, ended = talk(Lines(KeyValues(10, 10_000), token, 1000), data, cuts)
    replies = [json.loads(answer) for answer in answers]
    assert all(answer.endswith(b"\n") and answer.count(b"\n") == 1 for answer in answers)
    assert all(reply["status"] in {"OK", "ERROR"} for reply in replies)
    assert ended or len(replies) == data.count(b"\n")
    whole, _ = talk(Lines(KeyValues(10, 10_000), token, 1000), data, [])
    assert whole == answers


@given(st.lists(mutated(REQUESTS), max_size=5), JSON.filter(lambda token: token != "s3cret"))
def test_nothing_is_done_without_the_token(lines, token):
    values = KeyValues(10, 10_000)
    values.set("kept", b"1")
    for line in lines:
        try:
            request = json.loads(line)
        except ValueError:
            continue
        if isinstance(request, dict):
            data = json.dumps({**request, "token": token}).encode() + b"\n"
            answers, ended = talk(Lines(values, b"s3cret", 10_000), data, [])
            assert ended
            assert json.loads(answers[0])["message"] == "Wrong or missing token"
    assert values.get("kept") == b"1"
    assert len(values) == 1


class Familiar:
    name = "b"

    def __init__(self):
        self.peers = {b"here"}

    def metadata(self):
        return b"blob of b"

    def add_peer(self, blob):
        if not blob.startswith(b"good"):
            raise MetadataError("metadata: bad")
        self.peers.add(blob)

    def remove_peer(self, name):
        self.peers.discard(name.encode())


@given(
    st.sampled_from(Kind),
    st.binary(max_size=20) | st.sampled_from([b"good", b"b", b"here"]),
    st.lists(st.integers(0, 100), max_size=4),
    st.data(),
)
def test_every_question_has_one_answer_however_it_comes(kind, body, cuts, data):
    agent = Familiar()
    conversation = Introductions(agent, b"s3cret")
    nonce = b"".join(conversation.greeting())[-NONCE_BYTES:]
    right = data.draw(st.booleans())
    good = b"".join(frame(kind, body, b"s3cret" if right else b"guess", nonce))
    said = data.draw(st.just(good) | mutated(st.just(good)))
    answers, ended = talk(conversation, said, cuts)
    assert len(answers) == ended <= 1
    if said == good:
        head = parse_head(answers[0][:HEAD_BYTES])
        assert (head.kind is Kind.REFUSED) or (right and kind in {Kind.FETCH, Kind.SEND, Kind.INVALIDATE})
    if not right:
        assert agent.peers == {b"here"}
        assert all(b"blob of b" not in answer for answer in answers)


@pytest.fixture(scope="module")
def key_value_server():
    with KeyValueServer(port=0) as server:
        yield server


@pytest.fixture(scope="module")
def listener():
    with MetadataListener(Familiar()) as listener:
        yield listener


def throw_at(server, data: bytes, reset: bool) -> None:
    with socket.create_connection((server.host, server.port), timeout=10) as connection:
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        with contextlib.suppress(OSError):  # cut off in the middle of it
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            if not reset:
                while connection.recv(1 << 16):
                    pass


@SOCKETS
@given(data=st.binary(max_size=200) | LINES, reset=st.booleans())
def test_the_key_value_server_answers_the_next_one(key_value_server, data, reset):
    throw_at(key_value_server, data, reset)
    client = KeyValueClient(port=key_value_server.port)
    client.set("after", len(data))
    assert client.get("after") == len(data)


@SOCKETS
@given(
    data=st.binary(max_size=200) | mutated(st.just(b"".join(frame(Kind.SEND, b"good", b"", b"")))), reset=st.booleans()
)
def test_the_listener_answers_the_next_one(listener, data, reset):
    throw_at(listener, data, reset)
    assert fetch_metadata("b", listener.host, listener.port) == b"blob of b"


class Replying:
    """A server that answers whatever it is told to, to whoever comes."""

    def __init__(self):
        self.greeting = self.answer = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                connection.sendall(self.greeting)
                connection.recv(1 << 16)
                connection.sendall(self.answer)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture(scope="module")
def replying():
    server = Replying()
    yield server
    server.close()


def only_our_errors(call: Callable[[], object]) -> None:
    with contextlib.suppress(PenstockError):
        call()


REPLIES = st.sampled_from([b'{"status": "OK", "value": "Zm9v"}\n', b'{"status": "ERROR", "message": "no"}\n'])


@SOCKETS
@given(answer=st.binary(max_size=100) | mutated(REPLIES))
def test_the_key_value_client_raises_only_our_errors(replying, answer):
    replying.greeting, replying.answer = b"", answer
    client = KeyValueClient(port=replying.port)
    only_our_errors(lambda: client.get("k"))
    only_our_errors(lambda: client.set("k", 1))


NONCE = bytes(NONCE_BYTES)
GREETING = b"".join(frame(Kind.GREETING, NONCE, b"", NONCE))
ANSWERS = st.sampled_from([b"".join(frame(kind, b"blob", b"", NONCE)) for kind in Kind])


@SOCKETS
@given(greeting=st.just(GREETING) | mutated(st.just(GREETING)), answer=st.binary(max_size=100) | mutated(ANSWERS))
def test_the_sockets_client_raises_only_our_errors(replying, greeting, answer):
    replying.greeting, replying.answer = greeting, answer
    only_our_errors(lambda: fetch_metadata("b", "127.0.0.1", replying.port, 0.1))
    only_our_errors(lambda: send_metadata(b"x", "127.0.0.1", replying.port, 0.1))


def http_answer(body: bytes, chunked: bool) -> bytes:
    if chunked:
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


ETCD_BODIES = st.sampled_from(
    [
        b'{"header":{"revision":"3"},"kvs":[{"key":"Zm9v","mod_revision":"2","value":"YmFy"}],"count":"1"}',
        b'{"header":{"revision":"3"}}',
        b'{"result":{"header":{"revision":"3"},"created":true}}\n{"result":{"header":{"revision":"3"},'
        b'"events":[{"type":"DELETE","kv":{"key":"Zm9v","mod_revision":"3"}}]}}\n',
        b'{"result":{"canceled":true,"compact_revision":"2"}}\n',
        b'{"error":{"grpc_code":14,"message":"gone"}}\n',
    ]
)
ETCD_ANSWERS = mutated(
    st.builds(
        http_answer, ETCD_BODIES | mutated(ETCD_BODIES) | JSON.map(lambda v: json.dumps(v).encode()), st.booleans()
    )
)


@settings(max_examples=50)
@given(answer=st.binary(max_size=100) | ETCD_ANSWERS)
@example(b"HTTP/1.1 100 Continue\r\n\r\n" * 3)
@example(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n")
@example(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
@example(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc")
@example(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nabc")
@example(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\nabc")
@example(b"HTTP/1.1 200 OK\r\nContent-Length: -7\r\n\r\n{}")
@example(http_answer(b'{"header": 5}', False))
@example(http_answer(b'{"header": {"revision": "x"}}', False))
@example(http_answer(b'{"header": {"revision": "1"}, "kvs": [5]}', False))
@example(http_answer(b'{"header": {"revision": "1"}, "kvs": [{"value": 5}]}', False))
@example(http_answer(b'{"result": {"events": [{}]}}', True))
def test_the_etcd_client_raises_only_our_errors(replying, answer):
    replying.greeting, replying.answer = b"", answer
    with EtcdExchange(f"127.0.0.1:{replying.port}", timeout_s=0.1) as exchange:
        only_our_errors(lambda: exchange.publish("a", "metadata", b"x"))
        only_our_errors(lambda: exchange.retrieve("a", "metadata", 0.05))
        with exchange.watch_removals(print) as watch:
            only_our_errors(lambda: watch.follow("a"))
            only_our_errors(watch._survey)
            only_our_errors(lambda: watch._watch(1))
            assert watch._thread.is_alive()
