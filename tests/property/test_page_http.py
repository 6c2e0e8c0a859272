"""The page's HTTP: whatever comes is a request or is refused, in time that grows with its length only."""

import contextlib
import time
from http import HTTPStatus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.coordinator.page.access import refused
from penstock.coordinator.page.http import BadRequest, Request, answer_head, parse_request

TOKENS = st.text("abcXYZ019-_!#", min_size=1, max_size=12)
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=30)


def head(*lines):
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@settings(max_examples=600, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=400),
        st.lists(
            st.sampled_from([b"GET", b" ", b"/", b"HTTP/1.1", b"\r\n", b"\r", b":", b"Host", b"\x00", b"a", b"\xff"]),
            max_size=30,
        ).map(b"".join),
    )
)
def test_any_bytes_are_a_request_or_refused(data):
    try:
        request = parse_request(data + b"\r\n\r\n")
    except BadRequest as refusal:
        assert 400 <= refusal.status < 600 and refusal.reason
    else:
        assert request.path.startswith("/") and " " not in request.path
        assert all(name == name.lower() for name in request.headers)
        assert not any(character in value for value in request.headers.values() for character in "\r\n\0")


@settings(max_examples=200, deadline=None)
@given(
    TOKENS,
    st.text("abc/._%-", max_size=20),
    st.text("abc=&?/", max_size=10),
    st.dictionaries(TOKENS, VALUES, max_size=5),
)
def test_what_is_written_is_read(method, path, query, headers):
    named = {name.lower(): value.strip(" \t") for name, value in headers.items()}
    text = head(
        f"{method} /{path}?{query} HTTP/1.1", "Host: localhost", *(f"{name}:{value}" for name, value in headers.items())
    )
    request = parse_request(text)
    assert (request.method, request.path) == (method, f"/{path}")
    assert request.headers == {"host": "localhost", **named}


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["GET / HTTP/1.1"], 400),  # no Host
        (["GET  / HTTP/1.1", "Host: a"], 400),
        (["GET / HTTP/1.1", "Host: a", "Host: b"], 400),
        (["GET / HTTP/1.1", "Host: a", " folded"], 400),
        (["GET / HTTP/1.1", "Host : a"], 400),
        (["GET / HTTP/1.1", "Host: a", "Content-Length: 5"], 400),
        (["GET / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked"], 400),
        (["GET snapshot HTTP/1.1", "Host: a"], 400),
        (["GET * HTTP/1.1", "Host: a"], 400),
        (["PRI * HTTP/2.0"], 505),  # a gRPC client
        (["GET / HTTP/1.1", "Host: a", *[f"x{number}: 1" for number in range(100)]], 431),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(lines, status):
    with pytest.raises(BadRequest) as refusal:
        parse_request(head(*lines))
    assert refusal.value.status == status


def test_an_absolute_target_and_http_1_0_are_understood():
    assert parse_request(head("GET http://localhost:1/snapshot?x HTTP/1.1", "Host: localhost:1")).path == "/snapshot"
    assert parse_request(head("GET / HTTP/1.0")).path == "/"


@pytest.mark.parametrize("line", [b"a:" + b" " * 16000 + b"\x01", b"a: " + b"\t " * 8000, b"a" * 16000, b":" * 16000])
def test_no_head_takes_long_to_read(line):
    started = time.process_time()
    with contextlib.suppress(BadRequest):
        parse_request(b"GET / HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n\r\n")
    assert time.process_time() - started < 0.1  # what grows with the square would take seconds


def request(**headers):
    return Request("GET", "/", headers)


@pytest.mark.parametrize("host", ["localhost:1", "LOCALHOST", "127.0.0.1:50052", "[::1]:8", "10.0.0.1", "localhost."])
def test_without_a_token_the_page_is_named_by_address(host):
    assert refused(request(host=host), None) is None


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:80", "localhost.evil", "", "[::1", "[evil]", "x@127.0.0.1"]
)
def test_a_name_that_was_led_here_is_refused(host):
    answer = refused(request(host=host), None)
    assert (answer is None) == (host == "[::1") or answer.status == HTTPStatus.MISDIRECTED_REQUEST


@pytest.mark.parametrize(
    ("authorization", "allowed"),
    [
        ("Bearer secret", True),
        ("bearer  secret ", True),
        ("Basic dXNlcjpzZWNyZXQ=", True),  # user:secret
        ("Basic OnNlY3JldA==", True),  # :secret
        ("Bearer secre", False),
        ("Basic c2VjcmV0", False),  # no user, so no password
        ("Basic ***", False),
        ("Basic é", False),
        ("Digest secret", False),
        ("", False),
    ],
)
def test_the_token_is_a_bearers_or_a_password(authorization, allowed):
    answer = refused(request(host="evil.example", authorization=authorization), "secret")
    assert (answer is None) == allowed
    if answer is not None:
        assert answer.status == HTTPStatus.UNAUTHORIZED and "Basic" in answer.headers["WWW-Authenticate"]


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_no_authorization_breaks_the_check(value):
    assert refused(request(authorization=value), "a secret that nobody guesses") is not None


def test_an_answer_ends_its_connection_and_is_kept_nowhere():
    text = answer_head(HTTPStatus.OK, "text/plain", 3, {"Allow": "GET"}).decode()
    assert text.startswith("HTTP/1.1 200 OK\r\n") and text.endswith("\r\n\r\n")
    assert "Connection: close\r\n" in text and "Cache-Control: no-store\r\n" in text and "Allow: GET\r\n" in text
