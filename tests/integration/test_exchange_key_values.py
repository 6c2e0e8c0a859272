"""The key-value server and its client, over real sockets."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from leftovers import held, left_since
from penstock.errors import ConfigError, DeadlineExceeded, MetadataError, PeerRefused, PeerUnreachable
from penstock.transfer.exchange import KeyValueClient, KeyValueServer, Limits
from waiting import wait_until


@pytest.fixture
def server():
    with KeyValueServer(port=0) as server:
        yield server


@pytest.fixture
def client(server):
    return KeyValueClient(port=server.port)


def dial(server):
    return socket.create_connection((server.host, server.port), timeout=10)


def said(connection, *lines: bytes) -> list[dict]:
    """What the server answers to lines that are sent as they are."""
    connection.sendall(b"".join(line + b"\n" for line in lines))
    file = connection.makefile("rb")
    return [json.loads(file.readline()) for _ in lines]


def test_the_protocol_is_the_contracts(server):
    with dial(server) as connection:
        replies = said(
            connection,
            b'{"cmd": "SET", "key": "k", "value": "v"}',
            b'{"cmd": "GET", "key": "k"}',
            b'{"cmd": "GET", "key": "other"}',
            b'{"cmd": "SET", "key": "k", "value": {"deep": [1, 2.5, null, true, "\\u00e9"]}}',
            b'{"cmd":"GET","key":"k"}',
            b'{"cmd": "SET", "key": "k", "value": null}',
            b'{"cmd": "GET", "key": "k"}',
            b'{"cmd": "NOPE"}',
            b"{not json",
            b'{"cmd": "SET", "key": "k", "value": "v"}',
            b'{"cmd": "CLEAR"}',
            b'{"cmd": "GET", "key": "k"}',
        )
    ok = {"status": "OK"}
    assert replies == [
        ok,
        {"status": "OK", "value": "v"},
        {"status": "ERROR", "message": "Key 'other' not found"},
        ok,
        {"status": "OK", "value": {"deep": [1, 2.5, None, True, "é"]}},
        ok,
        {"status": "ERROR", "message": "Key 'k' not found"},
        {"status": "ERROR", "message": "Unknown command: NOPE"},
        {"status": "ERROR", "message": "Invalid JSON"},
        ok,
        ok,
        {"status": "ERROR", "message": "Key 'k' not found"},
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", "Invalid JSON"),
        (b"[]", "Invalid JSON"),
        (b"null", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[" * 100_000, "Invalid JSON"),
        (b'{"a":' * 100_000, "Invalid JSON"),
        (b'{"cmd": "SET", "key": "k", "value": [' + b"0," * 300_000 + b"0]}", "Invalid JSON"),
        (b'{"cmd": "SET", "key": "k", "value": ' + b"9" * 10_000 + b"}", "Invalid JSON"),
        (b"{}", "Unknown command: None"),
        (b'{"cmd": ["SET"]}', "Unknown command: ['SET']"),
        (b'{"cmd": "SET", "value": 1}', "A key is a string"),
        (b'{"cmd": "SET", "key": 1, "value": 1}', "A key is a string"),
        (b'{"cmd": "GET"}', "Key 'None' not found"),
        (b'{"cmd": "DELETE"}', "A prefix is a string that isn't empty; CLEAR forgets everything"),
        (b'{"cmd": "SET", "key": "' + b"k" * 1025 + b'", "value": 1}', "A key has at most 1024 characters"),
    ],
)
def test_a_bad_line_is_answered_and_the_connection_goes_on(server, line, message):
    with dial(server) as connection:
        assert said(connection, line, b'{"cmd": "GET", "key": "x"}') == [
            {"status": "ERROR", "message": message},
            {"status": "ERROR", "message": "Key 'x' not found"},
        ]


def test_set_get_clear_delete(client):
    client.set("a/1", {"x": [1, None]})
    client.set("a/2", "é\ud800")
    client.set("b", False)
    assert [client.get(key) for key in ("a/1", "a/2", "b", "c")] == [{"x": [1, None]}, "é\ud800", False, None]
    client.delete("a/")
    assert [client.get(key) for key in ("a/1", "a/2", "b")] == [None, None, False]
    client.set("b", None)
    assert client.get("b") is None
    client.set("b", 1)
    client.clear()
    assert client.get("b") is None


@pytest.mark.parametrize("size", [4096, 5000, 1 << 20, (16 << 20) - 100])
def test_large_values_survive(client, size):
    value = "x" * size
    client.set("k", value, timeout_s=20.0)
    assert client.get("k", timeout_s=20.0) == value


@pytest.mark.parametrize("size", [16 << 20, 50 << 20])
def test_a_value_that_is_too_large_is_refused_with_the_limit(client, size):
    """The client reads why, although the server had stopped listening long before all of it was sent."""
    with pytest.raises(PeerRefused, match="Line longer than 16777216 bytes"):
        client.set("k", "x" * size, timeout_s=20.0)
    client.set("k", 1)


def test_what_was_refused_takes_no_memory():
    with KeyValueServer(port=0, most_line_bytes=1000, limits=Limits(buffered_bytes=5000)) as server:
        client = KeyValueClient(port=server.port)
        for _ in range(20):
            with pytest.raises(PeerRefused, match="Line longer"):
                client.set("k", "x" * 1500)
        with dial(server) as connection:
            connection.sendall(b'{"cmd": "GET"')
            client.set("k", 1)  # by now the server has seen that there is no end to it yet
            assert said(connection, b', "key": "k"}') == [{"status": "OK", "value": 1}]


def test_keys_and_bytes_are_bounded():
    with KeyValueServer(port=0, most_keys=2, most_total_bytes=1000) as server:
        client = KeyValueClient(port=server.port)
        client.set("a", 1)
        client.set("b", 1)
        with pytest.raises(PeerRefused, match="Full: 2 keys"):
            client.set("c", 1)
        client.set("b", 2)
        with pytest.raises(PeerRefused, match="Full: 1000 bytes"):
            client.set("b", "x" * 800)
        assert client.get("b") == 2
        client.set("a", None)
        client.set("c", "x" * 400)
        client.clear()
        for _ in range(10):  # what was forgotten no longer counts
            client.set("d", "x" * 700)


def test_a_token_is_asked_for_every_time():
    with KeyValueServer(port=0, token="s3cret") as server:
        good = KeyValueClient(port=server.port, token="s3cret")
        good.set("k", "v")
        for token in (None, "s3cre", "s3cret ", "\ud800"):
            bad = KeyValueClient(port=server.port, token=token)
            for call in (bad.clear, lambda bad=bad: bad.get("k"), lambda bad=bad: bad.set("k", 1)):
                with pytest.raises(PeerRefused, match="Wrong or missing token"):
                    call()
        assert good.get("k") == "v"
        with dial(server) as connection:
            assert said(connection, b'{"cmd": "GET", "key": "k", "token": 7}') == [
                {"status": "ERROR", "message": "Wrong or missing token"}
            ]
            assert connection.recv(1) == b""


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "192.0.2.1"])
def test_beyond_loopback_takes_a_token(host):
    with pytest.raises(ConfigError, match=r"could be reached from other machines.*token.*host='127\.0\.0\.1'"):
        KeyValueServer(host, 0)


def test_with_a_token_everybody_may_be_served():
    with KeyValueServer("0.0.0.0", 0, token="s3cret") as server:
        KeyValueClient("127.0.0.2", server.port, token="s3cret").set("k", 1)


def test_an_empty_token_is_none_at_all():
    with pytest.raises(ConfigError, match="token is empty"):
        KeyValueServer(port=0, token="")
    with pytest.raises(ConfigError, match="token is empty"):
        KeyValueClient(token="")


def test_a_taken_port_is_an_error(server):
    with pytest.raises(ConfigError, match=f"can't listen on 127.0.0.1:{server.port}.*in use.*another port"):
        KeyValueServer(port=server.port)


def test_a_port_is_free_again_at_once(server, client):
    client.set("k", 1)
    server.close()
    with KeyValueServer(port=server.port) as again:
        assert KeyValueClient(port=again.port).get("k") is None


def test_ipv6_loopback_is_loopback():
    with KeyValueServer("::1", 0) as server:
        KeyValueClient("::1", server.port).set("k", 1)


def test_close_leaves_no_thread_and_no_descriptor():
    before = held()
    for _ in range(20):
        server = KeyValueServer(port=0)
        idle, half = dial(server), dial(server)
        half.sendall(b'{"cmd":')
        KeyValueClient(port=server.port).set("k", 1)
        server.close()
        server.close()
        assert idle.recv(1) == b""
        idle.close()
        half.close()
    assert left_since(before) == []


def test_close_from_many_threads_at_once():
    server = KeyValueServer(port=0)
    threads = [threading.Thread(target=server.close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)


def test_nobody_there_is_said_at_once(server, client):
    server.close()
    with pytest.raises(PeerUnreachable, match=f"nothing answers at 127.0.0.1:{server.port}") as caught:
        client.get("k")
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    with pytest.raises(PeerUnreachable):
        client.wait_for("k", 10.0, server_may_be_late=False)
    began = time.monotonic()
    with pytest.raises(PeerUnreachable):
        client.wait_for("k", 0.3)
    assert 0.25 < time.monotonic() - began < 1.0


def test_a_port_joined_to_itself_is_nobody(server, client, monkeypatch):
    """tcp(7): who connects to a port that nobody listens on may be given the same one, and talk to itself."""

    class Joined(socket.socket):
        def connect(self, address):
            self.bind(address)
            super().connect(address)

    server.close()
    monkeypatch.setattr("penstock.net.socket.socket", Joined)
    with pytest.raises(PeerUnreachable, match="nothing listens there"):
        client.get("k")


def test_a_server_that_comes_late_is_waited_for(server, client):
    server.close()
    got: list[object] = []
    waiting = threading.Thread(target=lambda: got.append(client.wait_for("k", 10.0)))
    waiting.start()
    waiting.join(0.2)
    with KeyValueServer(port=server.port):
        client.set("k", "here")
        waiting.join(10.0)
    assert got == ["here"]


def test_a_wait_outlives_a_request_that_falls_silent():
    """The first request is taken and never answered; the next one is."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = []

        def answer_the_second():
            taken.append(listener.accept()[0])
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b'{"status": "OK", "value": "here"}\n')

        answering = threading.Thread(target=answer_the_second)
        answering.start()
        client = KeyValueClient(port=listener.getsockname()[1], timeout_s=0.2)
        assert client.wait_for("k", 10.0) == "here"
        answering.join()
        taken[0].close()


@pytest.mark.parametrize("first_bytes", [b"", b'{"status": "OK"', b" " * 5])
def test_a_server_that_is_silent_is_a_deadline(first_bytes):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = KeyValueClient(port=silent.getsockname()[1], timeout_s=0.3)
        calls: list[BaseException] = []

        def get():
            try:
                client.get("k")
            except DeadlineExceeded as error:
                calls.append(error)

        asking = threading.Thread(target=get)
        asking.start()
        connection, _ = silent.accept()
        with connection:
            connection.sendall(first_bytes)
            asking.join(5)
        assert "not done within 0.3 s" in str(calls[0])


def test_a_server_that_trickles_meets_the_deadline_too():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def trickle():
            connection, _ = listener.accept()
            with connection:
                while not ended.wait(0.02):
                    connection.send(b" ")

        trickling = threading.Thread(target=trickle)
        trickling.start()
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            KeyValueClient(port=listener.getsockname()[1], timeout_s=0.3).get("k")
        assert time.monotonic() - began < 1.5
        ended.set()
        trickling.join()


@pytest.mark.parametrize("reply", [b"SSH-2.0-OpenSSH\r\n", b"[]\n", b'{"a": 1}\n', b"[" * 100_000 + b"\n", b"\xff\n"])
def test_something_else_on_the_port_is_named(reply):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = KeyValueClient(port=listener.getsockname()[1])

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(reply)

        answering = threading.Thread(target=answer)
        answering.start()
        with pytest.raises(MetadataError, match="isn't a key-value server"):
            client.get("k")
        answering.join()


def test_an_answer_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr("penstock.transfer.exchange.client._MOST_REPLY_BYTES", 1000)
    with KeyValueServer(port=0) as server:
        client = KeyValueClient(port=server.port)
        client.set("k", "x" * 1000)
        with pytest.raises(MetadataError, match="longer than 1000 bytes"):
            client.get("k")


def test_what_isnt_json_is_refused_before_anything_is_sent(client):
    for value in (b"bytes", {1, 2}, object()):
        with pytest.raises(ConfigError, match="isn't JSON.*base64"):
            client.set("k", value)


LIMITS = Limits(connections=4, buffered_bytes=1 << 20, stall_timeout_s=0.2, request_timeout_s=0.6, idle_timeout_s=0.4)


@pytest.fixture
def strict():
    with KeyValueServer(port=0, most_line_bytes=1 << 20, limits=LIMITS) as server:
        yield server


def test_a_stalled_request_is_cut_off():
    with KeyValueServer(port=0, limits=Limits(stall_timeout_s=0.2)) as server, dial(server) as connection:
        connection.sendall(b'{"cmd": "GET"')
        began = time.monotonic()
        assert connection.recv(1) == b""
        assert 0.1 < time.monotonic() - began < 5.0


def test_an_idle_connection_is_cut_off(strict):
    with dial(strict) as connection:
        began = time.monotonic()
        assert connection.recv(1) == b""
        assert 0.3 < time.monotonic() - began < 1.5


def test_a_request_that_trickles_is_cut_off(strict):
    with dial(strict) as connection:
        connection.settimeout(0.05)
        began = time.monotonic()
        with pytest.raises(OSError):
            while True:
                connection.sendall(b" ")
                try:
                    if connection.recv(1) == b"":
                        raise OSError
                except TimeoutError:
                    continue
        assert 0.4 < time.monotonic() - began < 2.0


def test_an_answer_that_nobody_reads_is_cut_off(strict):
    KeyValueClient(port=strict.port).set("k", "x" * 900_000)
    with dial(strict) as connection:
        connection.sendall(b'{"cmd": "GET", "key": "k"}\n' * 60)  # far more than the system's own buffers take
        time.sleep(0.7)  # nothing can be seen of the server's time-out before what is buffered was read
        total = 0
        while piece := connection.recv(1 << 20):
            total += len(piece)
        assert total < 60 * 900_000
    KeyValueClient(port=strict.port).set("k", 1)


def test_while_others_wait_at_the_door_a_pause_is_short():
    limits = Limits(connections=4, crowd_timeout_s=0.3)
    with KeyValueServer(port=0, limits=limits) as server:
        insiders = [dial(server) for _ in range(4)]
        for insider in insiders:
            assert said(insider, b'{"cmd": "CLEAR"}') == [{"status": "OK"}]
        began = time.monotonic()
        KeyValueClient(port=server.port).set("k", 1)
        assert 0.1 < time.monotonic() - began < 2.0
        assert insiders[0].recv(1) == b""
        for insider in insiders:
            insider.close()


def test_nobody_is_turned_out_of_a_crowd_that_is_served():
    """Every one of many more clients than connections is answered, when all come at once."""
    with KeyValueServer(port=0, limits=Limits(connections=8)) as server:
        barrier, failures = threading.Barrier(300), []

        def meet(me):
            client = KeyValueClient(port=server.port, timeout_s=30.0)
            barrier.wait()
            try:
                client.set(f"{me}", me)
                assert client.wait_for(f"{(me + 1) % 300}", 30.0) == (me + 1) % 300
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=meet, args=(me,)) for me in range(300)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_without_descriptors_the_server_goes_on(monkeypatch, caplog):
    """The oldest connection makes room; with none of its own to give back it tries again."""
    accept, refused = socket.socket.accept, [2]

    def full(self):
        if threading.current_thread().name == "penstock-key-values" and refused[0]:
            refused[0] -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", full)
    with KeyValueServer(port=0) as server:
        KeyValueClient(port=server.port).set("k", 1)
        with dial(server) as oldest:
            assert said(oldest, b'{"cmd": "GET", "key": "k"}')[0]["value"] == 1
            wait_until(lambda: len(server._service._connections) == 1, "the first client's is gone")
            refused[0] = 1
            KeyValueClient(port=server.port).set("k", 2)
            assert oldest.recv(1) == b""
    assert "couldn't be taken: [Errno 24]" in caplog.text


def test_requests_share_a_bound_on_memory(strict):
    holders = [dial(strict) for _ in range(3)]
    for holder in holders:
        holder.sendall(b" " * 500_000)
    (first, *_), _, _ = select.select(holders, [], [], 10)
    refused = json.loads(first.recv(1000) or b"{}")
    for holder in holders:
        holder.close()
    assert refused == {"status": "ERROR", "message": "Busy: too many requests are coming in; try again"}
    KeyValueClient(port=strict.port).set("k", 1)


def test_many_lines_in_one_piece_are_answered_in_order(server):
    with dial(server) as connection:
        lines = [b'{"cmd": "GET", "key": "%d"}' % n for n in range(5000)]
        sending = threading.Thread(target=connection.sendall, args=(b"\n".join(lines) + b"\n",))
        sending.start()
        file = connection.makefile("rb")
        for n in range(5000):
            assert json.loads(file.readline())["message"] == f"Key '{n}' not found"
        sending.join()


def test_a_killed_server_is_noticed_in_time():
    program = (
        "from penstock.transfer.exchange import KeyValueServer; import time; "
        "print(KeyValueServer(port=0).port, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        client = KeyValueClient(port=int(process.stdout.readline()), timeout_s=0.5)
        client.set("k", 1)
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        with pytest.raises(DeadlineExceeded):
            client.get("k")
        killing = threading.Timer(0.3, process.kill)
        killing.start()
        began = time.monotonic()
        with pytest.raises((PeerUnreachable, DeadlineExceeded)):
            client.wait_for("other", 1.0)
        assert time.monotonic() - began < 2.0
        killing.join()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
