"""Metadata in a real etcd: what happens when it is stopped, killed, full, guarded, or something else."""

from __future__ import annotations

import base64
import os
import queue
import signal
import socket
import ssl
import threading
import time

import pytest

from etcd_server import EtcdServer
from leftovers import held, left_since
from penstock.errors import ClosedError, ConfigError, DeadlineExceeded, MetadataError, PeerRefused, PeerUnreachable
from penstock.etcd import gateway
from penstock.transfer.exchange import EtcdExchange, etcd
from server_process import free_ports
from waiting import wait_until


@pytest.fixture
def exchange(etcd_server, etcd_namespace):
    with EtcdExchange(etcd_server.endpoint, namespace=etcd_namespace) as exchange:
        yield exchange


@pytest.fixture
def own_server(tmp_path):
    """An etcd that a test may kill."""
    server = EtcdServer.start(tmp_path / "etcd")
    yield server
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGCONT)
    server.kill()


class Waiting:
    """A thread that retrieves, and what became of it."""

    def __init__(self, exchange, timeout_s):
        self.result = None
        self.began = time.monotonic()
        self._thread = threading.Thread(target=self._run, args=(exchange, timeout_s))
        self._thread.start()

    def _run(self, exchange, timeout_s):
        try:
            self.result = exchange.retrieve("late", "metadata", timeout_s)
        except Exception as error:
            self.result = error

    def end(self):
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.result, time.monotonic() - self.began

    def until_it_watches(self, exchange):
        wait_until(lambda: exchange._gateway._open)  # the connection of the watch shows itself nowhere else
        time.sleep(0.1)
        return self


def b64(text):
    return base64.b64encode(text.encode()).decode()


def test_keys_are_the_contracts(etcd_server):
    with EtcdExchange(etcd_server.endpoint) as exchange:
        exchange.publish("trainer-0", "metadata", b"blob")
        found = etcd_server.call("/v3/kv/range", key=b64("/nixl/agents//trainer-0/metadata"))["kvs"]
        assert [base64.b64decode(kv["value"]) for kv in found] == [b"blob"]
        exchange.remove("trainer-0")


def test_the_environment_says_where_etcd_is(etcd_server, etcd_namespace, monkeypatch):
    assert EtcdExchange.from_environment() is None
    monkeypatch.setenv("NIXL_ETCD_ENDPOINTS", etcd_server.endpoint)
    monkeypatch.setenv("NIXL_ETCD_NAMESPACE", etcd_namespace)
    with EtcdExchange.from_environment() as exchange:
        exchange.publish("a", "metadata", b"blob")
    key = b64(f"{etcd_namespace}/a/metadata")
    assert etcd_server.call("/v3/kv/range", key=key)["count"] == "1"
    monkeypatch.setenv("PENSTOCK_ETCD_ENDPOINTS", "http://127.0.0.1:1")
    with EtcdExchange.from_environment() as exchange, pytest.raises(PeerUnreachable):
        exchange.publish("a", "metadata", b"blob")
    monkeypatch.setenv("PENSTOCK_ETCD_CA", "/nowhere.pem")
    with pytest.raises(ConfigError, match=r"PENSTOCK_ETCD_CA='/nowhere.pem'.*PEM"):
        EtcdExchange.from_environment()


@pytest.mark.parametrize(
    "endpoints", ["", " , ", [], "ftp://a:1", "http://", "http://a:x", "http://a:99999", "http://a/path", "http://u@a"]
)
def test_endpoints_that_are_none(endpoints):
    with pytest.raises(ConfigError, match="etcd's endpoint"):
        EtcdExchange(endpoints)


def test_endpoints_in_every_form():
    forms = [str(each) for each in etcd.parse_endpoints("10.0.0.2, https://b:1 ,http://[::1]:7/,c:2379")]
    assert forms == ["http://10.0.0.2:2379", "https://b:1", "http://::1:7", "http://c:2379"]


def test_a_member_that_is_dead_or_silent_is_passed_over(etcd_server, etcd_namespace):
    (dead,) = free_ports(1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoints = [f"http://127.0.0.1:{dead}", f"127.0.0.1:{silent.getsockname()[1]}", etcd_server.endpoint]
        with EtcdExchange(endpoints, namespace=etcd_namespace, timeout_s=2.0) as exchange:
            exchange.publish("a", "metadata", b"blob")
            began = time.monotonic()
            assert exchange.retrieve("a", "metadata", 2.0) == b"blob"
            assert time.monotonic() - began < 0.5  # it remembers who answered


def test_no_member_at_all_names_each(etcd_namespace):
    first, second = free_ports(2)
    with EtcdExchange(f"127.0.0.1:{first},127.0.0.1:{second}", namespace=etcd_namespace) as exchange:
        with pytest.raises(PeerUnreachable, match=f"publishing 'metadata' of 'a'.*{first}.*{second}"):
            exchange.publish("a", "metadata", b"")
        began = time.monotonic()
        with pytest.raises(PeerUnreachable):
            exchange.retrieve("a", "metadata", 0.5)
        assert 0.3 < time.monotonic() - began < 1.5


def test_silence_is_a_deadline(etcd_namespace):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        with EtcdExchange(endpoint, namespace=etcd_namespace, timeout_s=0.3) as exchange:
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded, match=r"not done within 0\.3 s"):
                exchange.remove("a")
            assert time.monotonic() - began < 1.0


def test_a_blob_that_etcd_wont_take_is_refused_with_its_words(exchange):
    with pytest.raises(PeerRefused, match="etcd at http.*large"):
        exchange.publish("a", "metadata", os.urandom(1_700_000))


@pytest.mark.parametrize("body", ["not json", "[]", "[" * 100_000])
def test_something_else_on_the_port_is_named(body):
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body.encode())
    says = pytest.raises(MetadataError, match="isn't etcd's JSON gateway")
    with HttpServer(answer) as server, EtcdExchange(server.endpoint) as exchange, says:
        exchange.publish("a", "metadata", b"")


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 99999999999",
        b"Transfer-Encoding: chunked\r\n\r\n-1",
        b"Transfer-Encoding: chunked\r\n\r\nfffffff",
        b"",
    ],
)
def test_an_answer_without_end_is_cut_off(head, monkeypatch):
    monkeypatch.setattr(gateway, "_MOST_BYTES", 1 << 20)
    answer = b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + bytes(20 << 20)
    with HttpServer(answer) as server, EtcdExchange(server.endpoint, timeout_s=30.0) as exchange:
        with pytest.raises((MetadataError, PeerUnreachable)):
            exchange.publish("a", "metadata", b"")
        assert server.sent_bytes < 15 << 20  # the rest wasn't even taken


def test_a_cluster_without_leader_is_passed_over(etcd_server, etcd_namespace):
    body = b'{"code": 14, "message": "etcdserver: no leader"}'
    with HttpServer(b"HTTP/1.1 503 Unavailable\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)) as server:
        with EtcdExchange([server.endpoint, etcd_server.endpoint], namespace=etcd_namespace) as exchange:
            exchange.publish("a", "metadata", b"blob")
        with EtcdExchange(server.endpoint) as exchange, pytest.raises(PeerUnreachable, match="503.*no leader"):
            exchange.publish("a", "metadata", b"blob")


@pytest.mark.parametrize("head", [b"Content-Length: 40", b"Transfer-Encoding: chunked\r\n\r\n28"])
def test_an_answer_that_is_cut_short_is_asked_for_elsewhere(etcd_server, etcd_namespace, head):
    with HttpServer(b"HTTP/1.1 200 OK\r\n" + head + b'\r\n\r\n{"header": {"revision": "1"}}') as server:
        exchange = EtcdExchange([server.endpoint, etcd_server.endpoint], namespace=etcd_namespace)
        exchange.publish("a", "metadata", head)
        assert exchange.retrieve("a", "metadata", 5.0) == head
        exchange.close()


class HttpServer:
    """Answers every connection with the same bytes."""

    def __init__(self, answer: bytes):
        self._answer = answer
        self.sent_bytes = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                try:
                    connection.recv(1 << 16)
                    for start in range(0, len(self._answer), 1 << 16):
                        connection.sendall(self._answer[start : start + (1 << 16)])
                        self.sent_bytes += 1 << 16
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1 << 16):
                        pass
                except OSError:
                    continue

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def test_etcd_killed_during_a_wait_is_an_error_in_time(own_server, etcd_namespace):
    with EtcdExchange(own_server.endpoint, namespace=etcd_namespace) as exchange:
        waiting = Waiting(exchange, 1.5).until_it_watches(exchange)
        own_server.kill()
        result, seconds = waiting.end()
    assert isinstance(result, PeerUnreachable)
    assert "no etcd answers" in str(result)
    assert 1.2 < seconds < 3.0


def test_etcd_killed_and_started_again_during_a_wait_is_no_error(own_server, etcd_namespace):
    with EtcdExchange(own_server.endpoint, namespace=etcd_namespace) as exchange:
        waiting = Waiting(exchange, 20.0).until_it_watches(exchange)
        own_server.kill()
        own_server.again()
        exchange.publish("late", "metadata", b"here")
        assert waiting.end()[0] == b"here"


def test_etcd_stopped_during_a_wait_is_a_deadline(own_server, etcd_namespace):
    with EtcdExchange(own_server.endpoint, namespace=etcd_namespace) as exchange:
        waiting = Waiting(exchange, 1.0).until_it_watches(exchange)
        own_server.process.send_signal(signal.SIGSTOP)
        result, seconds = waiting.end()
    assert isinstance(result, DeadlineExceeded)
    assert 0.9 < seconds < 2.0


def test_a_wait_doesnt_poll(exchange, monkeypatch):
    asked = []
    call = exchange._gateway.call
    monkeypatch.setattr(exchange._gateway, "call", lambda *args: asked.append(args[0]) or call(*args))
    with pytest.raises(DeadlineExceeded):
        exchange.retrieve("late", "metadata", 1.0)
    assert asked == ["/v3/kv/range"]


def test_what_is_put_between_the_look_and_the_watch_is_seen(exchange, monkeypatch):
    stream = exchange._gateway.stream

    def late(*args):
        exchange.publish("late", "metadata", b"here")
        return stream(*args)

    monkeypatch.setattr(exchange._gateway, "stream", late)
    began = time.monotonic()
    assert exchange.retrieve("late", "metadata", 5.0) == b"here"
    assert time.monotonic() - began < 1.5  # before it looks again by itself


def test_close_wakes_who_waits(exchange):
    before = held()
    waiting = Waiting(exchange, 20.0).until_it_watches(exchange)
    exchange.close()
    result, seconds = waiting.end()
    assert isinstance(result, ClosedError)
    assert seconds < 5
    with pytest.raises(ClosedError):
        exchange.publish("a", "metadata", b"")
    assert left_since(before) == []


def test_removal_is_noticed_once_and_only_of_whom_is_followed(exchange):
    for agent in ("a", "b", "other"):
        exchange.publish(agent, "metadata", b"1")
        exchange.publish(agent, "part", b"2")
    removed: queue.Queue[str] = queue.Queue()
    with exchange.watch_removals(removed.put) as watch:
        for agent in ("a", "b"):
            watch.follow(agent)
        exchange.publish("a", "metadata", b"newer")
        exchange.remove("other")
        exchange.remove("a")
        assert removed.get(timeout=10) == "a"
        exchange.publish("a", "metadata", b"again")
        exchange.remove("a")  # followed no longer
        exchange.remove("b")
        assert removed.get(timeout=10) == "b"
        exchange.publish("a", "metadata", b"again")
        watch.follow("a")
        watch.follow("b")  # gone already
        assert removed.get(timeout=10) == "b"
        watch.forget("a")
        exchange.remove("a")
        exchange.publish("c", "metadata", b"")
        watch.follow("c")
        exchange.remove("c")
        assert removed.get(timeout=10) == "c"
    assert removed.empty()


def test_an_old_removal_isnt_told_of_whoever_came_back(exchange):
    removed: queue.Queue[str] = queue.Queue()
    for _ in range(30):
        with exchange.watch_removals(removed.put) as watch:
            for _ in range(5):
                exchange.publish("a", "metadata", b"1")
                exchange.remove("a")
            exchange.publish("a", "metadata", b"2")
            watch.follow("a")  # while the watch may still be reading of the removals
            exchange.publish("last", "metadata", b"")
            watch.follow("last")
            exchange.remove("last")
            assert removed.get(timeout=10) == "last"


def test_removals_are_seen_over_a_compaction(exchange, etcd_server, monkeypatch):
    monkeypatch.setattr(etcd, "_LISTEN_S", 0.05)
    removed: queue.Queue[str] = queue.Queue()
    exchange.publish("a", "metadata", b"1")
    with exchange.watch_removals(removed.put) as watch:
        watch.follow("a")
        for round_ in range(20):
            exchange.publish("b", "metadata", b"%d" % round_)
            revision = etcd_server.call("/v3/kv/range", key=b64("x"))["header"]["revision"]
            etcd_server.call("/v3/kv/compaction", revision=revision)
        exchange.remove("a")
        revision = etcd_server.call("/v3/kv/range", key=b64("x"))["header"]["revision"]
        etcd_server.call("/v3/kv/compaction", revision=revision)
        assert removed.get(timeout=10) == "a"


def test_a_removal_that_etcd_forgets_to_tell_is_noticed(exchange, etcd_server, monkeypatch):
    """etcd-io/etcd issue 18089: asked to forget up to a removal, it leaves that out and says nothing."""
    monkeypatch.setattr(etcd, "_LISTEN_S", 0.5)
    exchange.publish("a", "metadata", b"1")
    exchange.remove("a")
    removed_at = int(etcd_server.call("/v3/kv/range", key=b64("x"))["header"]["revision"])
    etcd_server.call("/v3/kv/compaction", revision=removed_at, physical=True)
    with exchange.watch_removals(print) as watch:
        assert watch._watch(removed_at) is None


def test_a_watch_that_etcd_refuses_isnt_asked_for_without_end(monkeypatch):
    asked = []
    refusal = b'{"result":{"header":{"revision":"3"},"canceled":true,"cancel_reason":"permission denied"}}\n'
    call, stream = gateway.Gateway.call, gateway.Gateway.stream
    monkeypatch.setattr(gateway.Gateway, "call", lambda *args: asked.append(args[1]) or call(*args))
    monkeypatch.setattr(gateway.Gateway, "stream", lambda *args: asked.append(args[1]) or stream(*args))
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(refusal)
    with HttpServer(head + refusal) as server:
        watch = EtcdExchange(server.endpoint).watch_removals(print)
        with pytest.raises(PeerRefused, match="ends the watch: permission denied"):
            watch._watch(2)
        watch._closed.wait(0.5)
        watch.close()
    assert len(asked) < 20


def test_removals_are_seen_after_etcd_was_killed(own_server, etcd_namespace):
    removed: queue.Queue[str] = queue.Queue()
    with EtcdExchange(own_server.endpoint, namespace=etcd_namespace) as exchange:
        exchange.publish("a", "metadata", b"1")
        with exchange.watch_removals(removed.put) as watch:
            watch.follow("a")
            own_server.kill()
            own_server.again()
            exchange.remove("a")
            assert removed.get(timeout=10) == "a"


def test_a_watch_ends_at_once_whatever_etcd_does(own_server, etcd_namespace):
    before = held()
    with EtcdExchange(own_server.endpoint, namespace=etcd_namespace) as exchange:
        exchange.publish("a", "metadata", b"1")
        for stop in (lambda: None, lambda: own_server.process.send_signal(signal.SIGSTOP), own_server.kill):
            watch = exchange.watch_removals(print)
            deadline = time.monotonic() + 10
            while not watch._gateway._open and own_server.process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            stop()
            began = time.monotonic()
            watch.close()
            watch.close()
            assert time.monotonic() - began < 1.5
    assert left_since(before) == []


def test_a_user_and_a_password(own_server, etcd_namespace):
    own_server.call("/v3/auth/user/add", name="root", password="s3cret")
    own_server.call("/v3/auth/user/grant", user="root", role="root")
    own_server.call("/v3/auth/enable")
    options = {"namespace": etcd_namespace}
    with EtcdExchange(own_server.endpoint, user="root", password="s3cret", **options) as exchange:
        exchange.publish("a", "metadata", b"blob")
        exchange._gateway._token = "run.out"
        assert exchange.retrieve("a", "metadata", 5.0) == b"blob"
        removed: queue.Queue[str] = queue.Queue()
        with exchange.watch_removals(removed.put) as watch:
            watch.follow("a")
            exchange.remove("a")
            assert removed.get(timeout=10) == "a"
    for wrong in ({"user": "root", "password": "guess"}, {"user": "nobody"}, {}):
        with EtcdExchange(own_server.endpoint, **wrong, **options) as exchange, pytest.raises(PeerRefused):
            exchange.publish("a", "metadata", b"blob")


def test_tls(tmp_path, etcd_namespace):
    server = EtcdServer.start(tmp_path, "--auto-tls", tls=True, wait=False)
    try:
        certificate = tmp_path / "data" / "fixtures" / "client" / "cert.pem"
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
        context.check_hostname = False
        deadline = time.monotonic() + 30
        while not certificate.exists():  # etcd writes it, and trusts itself
            assert time.monotonic() < deadline, server.tail()
            time.sleep(0.05)
        context.load_verify_locations(certificate)
        with EtcdExchange(server.endpoint, namespace=etcd_namespace, tls=context) as exchange:
            while True:
                try:
                    exchange.publish("a", "metadata", b"blob")
                    break
                except PeerUnreachable:
                    assert time.monotonic() < deadline, server.tail()
                    time.sleep(0.05)
            assert exchange.retrieve("a", "metadata", 5.0) == b"blob"
            waiting = Waiting(exchange, 20.0).until_it_watches(exchange)
            exchange.publish("late", "metadata", os.urandom(300_000))
            assert len(waiting.end()[0]) == 300_000
            exchange.remove("late")
            waiting = Waiting(exchange, 20.0).until_it_watches(exchange)
            exchange.close()
            assert isinstance(waiting.end()[0], ClosedError)
        with (
            EtcdExchange(server.endpoint) as exchange,
            pytest.raises(PeerUnreachable, match="CERTIFICATE_VERIFY_FAILED"),
        ):
            exchange.publish("a", "metadata", b"blob")
    finally:
        server.kill()
