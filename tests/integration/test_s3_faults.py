"""Reading and writing through a store that fails: every promise of `stream`, `put` and their kin, over real HTTP."""

from __future__ import annotations

import os
import threading
import time
from itertools import zip_longest

import pytest

from penstock.errors import (
    AccessDenied,
    ObjectNotFound,
    PreconditionFailed,
    SampleChanged,
    StoreError,
    StoreUnavailable,
)
from penstock.store import Store, open_store
from penstock.store.limit import RequestLimit
from penstock.store.objects import ObjectStore
from penstock.store.requests import Requester
from penstock.store.retry import RetryPolicy
from penstock.store.urls import parse_store_url
from penstock.testing.fault_proxy import Fault, FaultProxy, Request
from penstock.testing.store import collect, pattern

pytestmark = pytest.mark.s3

MIB = 1 << 20
BUSY = Fault(status=503, body=b"<Error><Code>SlowDown</Code><Message>Please slow down</Message></Error>")


@pytest.fixture
def limit() -> RequestLimit:
    return RequestLimit(16)


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def store(s3_root: str, s3_proxy: FaultProxy, limit: RequestLimit, waits: list[float]) -> Store:
    """A store whose waits between tries are noted and not slept; a try's deadline is short."""
    policy = RetryPolicy(tries=4, timeout_s=2.0)
    return ObjectStore(parse_store_url(s3_root), requests=Requester(limit, policy, sleep=waits.append))


@pytest.fixture
def data(store: Store, s3_proxy: FaultProxy) -> bytes:
    data = pattern(5 * MIB + 123)
    store.put("big", data)
    s3_proxy.clear()
    return data


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_store_is_tried_again(store: Store, s3_proxy: FaultProxy, data: bytes, waits: list[float], status: int):
    s3_proxy.fail_next(3, Fault(status=status))
    assert collect(store, "big", 10, 1000) == data[10:1000]
    assert len(s3_proxy.requests) == 4
    assert len(waits) == 3
    assert 0.05 <= waits[0] <= 0.1 <= waits[1] <= 0.2 <= waits[2] <= 0.4


@pytest.mark.parametrize("fault", [BUSY, Fault(drop_answer=True), Fault(cut_after_bytes=0, reset=True)])
def test_the_last_try_s_failure_is_an_error(store: Store, s3_proxy: FaultProxy, data: bytes, fault: Fault):
    s3_proxy.fail_next(99, fault)
    with pytest.raises(StoreUnavailable, match="gave up after 4 tries") as caught:
        collect(store, "big", 0, 100)
    assert store.locate("big") in str(caught.value)
    assert len(s3_proxy.requests) == 4


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "ExpiredToken", AccessDenied),
        (400, "ExpiredToken", AccessDenied),
        (403, "AccessDenied", AccessDenied),
        (401, "", AccessDenied),
        (404, "NoSuchKey", ObjectNotFound),
        (404, "NoSuchBucket", ObjectNotFound),
        (400, "Strange", StoreError),
        (501, "NotImplemented", StoreError),
    ],
)
def test_what_does_not_pass_by_itself_is_tried_once(
    store: Store, s3_proxy: FaultProxy, data: bytes, status: int, code: str, kind: type[StoreError]
):
    body = f"<Error><Code>{code}</Code><Message>secret-in-body</Message></Error>".encode()
    uses = {
        "GET": lambda: collect(store, "big", 0, 100),
        "PUT": lambda: store.put("small", b"x"),
        "LIST": lambda: list(store.list()),
    }
    for use in uses.values():
        s3_proxy.clear()
        s3_proxy.fail_next(99, Fault(status=status, body=body))
        with pytest.raises(kind) as caught:
            use()
        assert len(s3_proxy.requests) == 1
        assert not caught.value.retryable
        assert code in str(caught.value)
        assert "secret-in-body" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("cut", [0, 1, MIB + 7, 3 * MIB])
def test_a_broken_body_is_taken_up_where_it_broke(
    store: Store, s3_proxy: FaultProxy, data: bytes, cut: int, reset: bool
):
    s3_proxy.fail_next(1, Fault(cut_after_bytes=cut, reset=reset))
    assert collect(store, "big", 100, len(data)) == data[100:]
    first, second = [each.byte_range for each in s3_proxy.requests]
    assert first == f"bytes=100-{len(data) - 1}"
    begin = int(second.removeprefix("bytes=").split("-")[0])
    assert begin <= 100 + cut
    if not reset:  # a reset may also destroy what had arrived
        assert begin > 100 + cut - 2 * MIB, "what had come before the break was asked for again"


def test_every_body_may_break_as_long_as_pieces_come(store: Store, s3_proxy: FaultProxy, data: bytes):
    s3_proxy.add_rule(lambda request: Fault(cut_after_bytes=5 * MIB // 4) if request.method == "GET" else None)
    assert collect(store, "big", 0, len(data)) == data
    assert len(s3_proxy.requests) > 4, "more breaks than tries"


def test_a_body_that_never_brings_a_piece_ends_after_the_tries(store: Store, s3_proxy: FaultProxy, data: bytes):
    s3_proxy.add_rule(lambda request: Fault(cut_after_bytes=1000))
    with pytest.raises(StoreUnavailable, match="gave up after 4 tries"):
        collect(store, "big", 0, len(data))
    assert len(s3_proxy.requests) == 4


def test_a_stalled_body_is_given_up_and_taken_up(store: Store, s3_proxy: FaultProxy, data: bytes):
    s3_proxy.fail_next(1, Fault(hang=True, after_bytes=2 * MIB + 1))
    started = time.monotonic()
    assert collect(store, "big", 0, len(data)) == data
    assert 1.5 < time.monotonic() - started < 10
    assert len(s3_proxy.requests) == 2


def test_a_server_that_answers_nothing_is_given_up(store: Store, s3_proxy: FaultProxy, data: bytes):
    s3_proxy.fail_next(1, Fault(hang=True))
    assert store.size("big") == len(data)
    assert len(s3_proxy.requests) == 2


def test_a_slow_body_arrives(store: Store, s3_proxy: FaultProxy, data: bytes):
    s3_proxy.fail_next(1, Fault(bytes_per_s=400_000))
    assert collect(store, "big", 0, 100_000) == data[:100_000]
    assert len(s3_proxy.requests) == 1


def test_a_whole_object_in_answer_to_a_range_is_refused(store: Store, s3_proxy: FaultProxy, data: bytes):
    s3_proxy.fail_next(99, Fault(ignore_range=True))
    with pytest.raises(StoreError, match="200, not 206") as caught:
        collect(store, "big", 1000, 2000)
    assert not caught.value.retryable
    assert len(s3_proxy.requests) == 1


@pytest.mark.parametrize("sent", ["bytes 0-99/1000000", "bytes 50-149/1000000", "bytes 100-119/1000000"])
def test_another_range_than_asked_for_is_refused(store: Store, s3_proxy: FaultProxy, data: bytes, sent: str):
    headers = {"Content-Range": sent, "ETag": '"x"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    length = 20 if "119" in sent else 100
    s3_proxy.fail_next(99, Fault(status=206, headers=headers, body=bytes(length)))
    with pytest.raises((StoreError, SampleChanged)):
        collect(store, "big", 100, 200)


@pytest.mark.parametrize(("size", "tries"), [(0, 4), (50, 4), (150, 1)])
def test_a_body_of_another_length_than_its_range_is_refused(
    store: Store, s3_proxy: FaultProxy, data: bytes, size: int, tries: int
):
    """The server claims to send the range, and its body is whole in the eyes of HTTP, but not the range's."""
    headers = {"Content-Range": "bytes 100-199/1000", "ETag": '"x"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}

    def of_that_size(request: Request) -> Fault:
        return Fault(status=206, headers=headers, body=bytes(size)) if "100-" in request.byte_range else BUSY

    s3_proxy.add_rule(of_that_size)
    with pytest.raises(StoreError):
        collect(store, "big", 100, 200)
    assert len(s3_proxy.requests) == tries


def test_an_object_written_anew_between_two_requests_is_noticed(store: Store, s3_proxy: FaultProxy, data: bytes):
    pieces = store.stream("big", 0, len(data))
    s3_proxy.fail_next(1, Fault(cut_after_bytes=MIB + 5), method="GET")
    first = bytes(next(pieces))
    assert first == data[: len(first)]
    store.put("big", data[::-1])
    with pytest.raises(SampleChanged, match="written anew"):
        for _ in pieces:
            pass


@pytest.mark.parametrize("key", ["new", "big"])
def test_a_put_whose_answer_got_lost_is_not_taken_for_somebody_else_s(store: Store, s3_proxy: FaultProxy, data, key):
    version = store.version(key)
    s3_proxy.fail_next(1, Fault(drop_answer=True), method="PUT")
    if version is None:
        store.put_if_absent(key, b"mine")
    else:
        store.replace(key, b"mine", version)
    assert store.read(key) == b"mine"
    assert [each.method for each in s3_proxy.requests].count("PUT") == 2


def test_a_lost_answer_does_not_hide_that_somebody_else_was_first(store: Store, s3_proxy: FaultProxy):
    store.put("k", b"theirs")
    s3_proxy.fail_next(1, Fault(drop_answer=True), method="PUT")
    with pytest.raises(PreconditionFailed):
        store.put_if_absent("k", b"mine")
    assert store.read("k") == b"theirs"


def test_throttling_halves_the_limit_and_answers_raise_it_again(
    store: Store, s3_proxy: FaultProxy, data: bytes, limit: RequestLimit
):
    assert limit.stats().limit == 16
    s3_proxy.fail_next(2, BUSY)
    store.size("big")
    stats = limit.stats()
    assert (stats.limit, stats.throttled_total, stats.in_flight, stats.waiting) == (4, 2, 0, 0)
    for _ in range(60):
        store.size("big")
    assert 8 <= limit.stats().limit <= 16


def test_no_more_requests_run_at_once_than_the_limit_allows(s3_root: str, s3_proxy: FaultProxy, data: bytes):
    limit = RequestLimit(3)
    store = ObjectStore(parse_store_url(s3_root), requests=Requester(limit, RetryPolicy(timeout_s=20.0)))
    s3_proxy.clear()
    s3_proxy.add_rule(lambda request: Fault(bytes_per_s=300_000))
    threads = [threading.Thread(target=lambda: collect(store, "big", 0, 60_000), daemon=True) for _ in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert s3_proxy.peak_count <= 3
    assert limit.stats().peak_in_flight == 3


def test_a_limit_of_one_carries_a_reader_and_a_writer_of_one_thread(s3_root: str, s3_proxy: FaultProxy, data: bytes):
    limit = RequestLimit(1)
    store = ObjectStore(parse_store_url(s3_root), requests=Requester(limit, RetryPolicy(timeout_s=5.0)))
    writer = store.open_writer("copy")
    streams = [store.stream("big", 0, len(data)) for _ in range(3)]
    for pieces in zip_longest(*streams):  # where a piece ends is the network's affair
        if pieces[0] is not None:
            writer.write(pieces[0])
    writer.commit()
    assert store.size("copy") == len(data)


def test_expired_credentials_fail_at_once_and_name_no_secret(s3_root: str, s3_proxy, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-and-expired")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-that-expired")
    started = time.monotonic()
    with pytest.raises(AccessDenied) as caught:
        open_store(s3_root).read("k")
    assert time.monotonic() - started < 2
    assert len(s3_proxy.requests) == 1
    for secret in ("very-secret-and-expired", "token-that-expired", os.environ["AWS_ACCESS_KEY_ID"]):
        assert secret not in str(caught.value)


def test_the_endpoint_that_comes_first_is_the_one_asked(s3_root: str, s3_proxy, monkeypatch: pytest.MonkeyPatch):
    """The client reads AWS_ENDPOINT_URL_S3 by itself; ours still wins."""
    monkeypatch.setenv("MX8_S3_ENDPOINT_URL", s3_proxy.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("PENSTOCK_STORE_RETRIES", "1")
    open_store(s3_root).put("k", b"x")
    assert [each.method for each in s3_proxy.requests] == ["PUT"]
