"""The page's server, over real sockets: what it answers, and what those who look can cost it."""

import base64
import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from job_on_show import JOB, JobOnShow
from penstock.coordinator.events import Leave
from penstock.coordinator.page import Limits
from penstock.coordinator.state import Job
from penstock.errors import ConfigError
from waiting import wait_until

TIMEOUT_S = 10


@pytest.fixture
def show():
    with JobOnShow() as show:
        yield show


def get(show, path="/", method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", show.port, timeout=TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def snapshot(show):
    return json.loads(get(show, "/snapshot")[2])


class Stream:
    """A client of /events."""

    def __init__(self, show, **headers):
        self.connection = http.client.HTTPConnection("127.0.0.1", show.port, timeout=TIMEOUT_S)
        self.connection.request("GET", "/events", headers=headers)
        self.answer = self.connection.getresponse()

    def event(self):
        while line := self.answer.readline():
            if line.startswith(b"data: "):
                return json.loads(line[6:])
        return None

    def close(self):
        self.answer.close()
        self.connection.close()


def raw(show, data=b"", *, wait=True):
    """What comes back for these bytes, until the other side ends; without ``wait``, the connection."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(TIMEOUT_S)
    connection.connect(("127.0.0.1", show.port))
    if not wait:
        connection.sendall(data)
        return connection
    with connection:
        connection.sendall(data)
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                got += piece
        return got


def test_the_page_is_one_document_that_needs_nothing_from_elsewhere(show):
    status, headers, body = get(show)
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert b"<style>:root" in body and b'<script>"use strict"' in body
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    outside = [word for word in body.decode().split('"') if word.startswith(("http:", "https:", "//"))]
    assert outside == ["http://www.w3.org/2000/svg"], "a name, not an address that is fetched"


def test_snapshot_and_events_show_the_job_as_it_moves(show):
    show.register("a", "b")
    (lease,) = show.lease("a")
    assert (snapshot(show)["done"], snapshot(show)["leased"]) == (0, 100)
    stream = Stream(show)
    assert stream.answer.headers["Content-Type"].startswith("text/event-stream")
    assert stream.event()["done"] == 0
    show.report(lease, 60)
    while (event := stream.event())["done"] != 60:
        assert event["done"] == 0
    stream.close()


def test_events_tell_what_matters_however_much_else_happens(show):
    show.register("a", "b")
    (lease,) = show.lease("a")
    show.report(lease, 60)
    show.do(Leave(JOB, "a"))
    for _ in range(9):
        for each in show.lease("b"):
            show.report(each, each.end)
    told = [event["event"] for event in snapshot(show)["events"]]
    assert {"lease_expired", "range_requeued", "rank_released", "lease_granted"} <= set(told)
    assert "progress" not in told, "bars show it"


def test_metrics_are_prometheus_own_text(show):
    show.register("a", "b")
    (lease,) = show.lease("a")
    show.report(lease, 60)
    status, headers, body = get(show, "/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain; version=")
    from prometheus_client.parser import text_string_to_metric_families as parse

    values = {
        (each.name, *each.labels.values()): each.value for family in parse(body.decode()) for each in family.samples
    }
    assert values[("penstock_job_done",)] == 60
    assert values[("penstock_job_leased",)] == 40
    assert values[("penstock_job_nodes", "live")] == 2
    assert values[("penstock_job_phase", "running")] == 1 and values[("penstock_job_phase", "drained")] == 0
    assert values[("penstock_job_events_total", "lease_granted")] == 1
    assert values[("penstock_job_done_samples_total",)] == 60


def test_metrics_say_what_they_need(show, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    status, _, body = get(show, "/metrics")
    assert status == 501 and b"pip install prometheus-client" in body


def test_a_coordinator_that_doesnt_lead_says_who_does(show):
    show.seat.state = None
    assert snapshot(show) == {"format": 1, "phase": "following", "leader": "10.0.0.7:50051"}
    assert b"penstock_job_leads 0.0" in get(show, "/metrics")[2]
    assert get(show, "/health")[0] == 200


def test_head_methods_and_places_that_arent_there(show):
    status, headers, body = get(show, "/", "HEAD")
    assert status == 200 and int(headers["Content-Length"]) > 10_000 and body == b""
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        status, headers, _ = get(show, "/", method)
        assert status == 405 and headers["Allow"] == "GET, HEAD"
    for path in ("/nothing", "/../etc/passwd", "/page.js", "/events/"):
        status, _, body = get(show, path)
        assert status == 404 and b"/snapshot" in body


# Who may look.


def test_with_a_token_nobody_looks_without():
    with JobOnShow(token="a long enough secret") as show:
        for path in ("/", "/snapshot", "/events", "/metrics"):
            status, headers, _ = get(show, path)
            assert status == 401 and headers["WWW-Authenticate"].startswith("Basic ")
        assert get(show, "/health")[0] == 200
        assert get(show, Authorization="Bearer a long enough secret")[0] == 200
        login = base64.b64encode(b"me:a long enough secret").decode()
        assert get(show, Authorization=f"Basic {login}")[0] == 200
        stream = Stream(show, Authorization=f"Basic {login}")
        assert stream.event()["phase"] == "gathering"
        stream.close()


def test_without_a_token_only_this_machine_and_only_by_its_own_name(show):
    assert get(show, Host="somebody.example")[0] == 421
    with pytest.raises(ConfigError, match=r"could be reached from other machines.*token"), JobOnShow(host="0.0.0.0"):
        pass
    with pytest.raises(ConfigError, match="the token is empty"), JobOnShow(token=""):
        pass
    with JobOnShow(host="0.0.0.0", token="a long enough secret") as elsewhere:
        assert get(elsewhere)[0] == 401


def test_a_port_in_use_is_named(show):
    other = JobOnShow()
    other.port = show.port
    with pytest.raises(ConfigError, match=rf"127.0.0.1:{show.port}.*--page-addr"), other:
        pass


def test_over_tls(tmp_path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*make, *name, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with JobOnShow(tls=context) as show:
        assert show.page.url == f"https://127.0.0.1:{show.port}/"
        trusted = ssl.create_default_context(cafile=str(certificate))
        with urllib.request.urlopen(show.page.url + "snapshot", timeout=TIMEOUT_S, context=trusted) as answer:
            assert json.load(answer)["phase"] == "gathering"


# What they may cost.


def test_oversized_requests_are_refused_and_the_answer_arrives(show):
    for data in (b"GET /" + b"a" * 100_000, b"GET / HTTP/1.1\r\nHost: localhost\r\nx: " + b"a" * 100_000 + b"\r\n\r\n"):
        answer = raw(show, data)
        assert answer.startswith(b"HTTP/1.1 431 ") and b"at most 16384 bytes" in answer


def test_what_isnt_http_hears_so(show):
    assert raw(show, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").startswith(b"HTTP/1.1 505 ")
    assert b"gRPC has another" in raw(show, b"\x16\x03\x01\x00\xa5" + bytes(200) + b"\r\n\r\n")


def test_half_a_request_is_waited_for_only_so_long():
    with JobOnShow(limits=Limits(request_s=0.2)) as show:
        started = time.monotonic()
        assert raw(show, b"GET / HTTP/1.1\r\nHost: loc").startswith(b"HTTP/1.1 408 ")
        assert raw(show).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - started < TIMEOUT_S / 2
        drip = raw(show, b"GET / HTTP/1.1\r\n", wait=False)  # a byte now and then buys no time
        with drip, contextlib.suppress(OSError):
            while time.monotonic() - started < TIMEOUT_S:
                drip.sendall(b"x")
                drip.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    assert drip.recv(100).startswith(b"HTTP/1.1 408 ")
                    break
            else:
                pytest.fail("it was never told that it's late")


def test_who_doesnt_read_is_let_go_of():
    limits = Limits(answer_s=0.2, event_every_s=0.0, streams=1)
    with JobOnShow(Job("ab" * 32, 10**9, world_size=3), limits=limits) as show:
        show.register("a", "b", "c")
        deaf = raw(show, b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n", wait=False)
        with deaf:
            # Its place is free again, once the kernel's buffers are full and the deadline is over.
            wait_until(lambda: get_stream_status(show) == 200, "its place is freed", 60)


def get_stream_status(show):
    stream = Stream(show)
    status = stream.answer.status
    stream.close()
    return status


def test_a_hundred_may_stay_and_the_next_one_is_told_so(show):
    show.register("a", "b")
    streams = [Stream(show) for _ in range(100)]
    try:
        assert all(stream.answer.status == 200 and stream.event()["registered"] == 2 for stream in streams)
        status, headers, body = get(show, "/events")
        assert status == 503 and b"100 look already" in body and headers["Retry-After"]
        assert get(show, "/snapshot")[0] == 200, "others than streams are answered"
        show.lease("a")
        for stream in streams:
            while stream.event()["leased"] == 0:
                pass
    finally:
        for stream in streams:
            stream.close()
    wait_until(lambda: get_stream_status(show) == 200, "places of those who went are free again")


def test_connections_are_counted():
    with JobOnShow(limits=Limits(connections=3, request_s=30)) as show:
        idle = [raw(show, b"GET", wait=False) for _ in range(3)]
        try:
            deadline = time.monotonic() + TIMEOUT_S
            while not raw(show, b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 503 "):
                assert time.monotonic() < deadline
        finally:
            for each in idle:
                each.close()
        while not raw(show, b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 "):
            assert time.monotonic() < deadline


def test_random_bytes_leave_a_page_that_answers(show):
    import random

    draw = random.Random(11)
    words = [b"GET ", b"/", b"/events", b" HTTP/1.1\r\n", b"Host: localhost\r\n", b"\r\n", b"\r\n\r\n", b"\x00", b":"]
    for _ in range(150):
        data = b"".join(draw.choice([*words, draw.randbytes(draw.randrange(20))]) for _ in range(draw.randrange(12)))
        connection = socket.create_connection(("127.0.0.1", show.port), timeout=TIMEOUT_S)
        with connection, contextlib.suppress(OSError):
            connection.sendall(data)
            if draw.random() < 0.7:
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1000)
    assert get(show)[0] == 200


def test_close_ends_streams_and_a_page_can_be_served_again(show):
    stream = Stream(show)
    assert stream.event() is not None
    show.stop()
    with contextlib.suppress(http.client.HTTPException, ConnectionResetError):
        while stream.event() is not None:
            pass
    stream.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(show.url, timeout=TIMEOUT_S)
    show.serve()
    assert get(show)[0] == 200
