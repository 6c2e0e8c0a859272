"""Plain HTTP, from the file server that is part of the tests' S3 server; its files need no signature."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from penstock.errors import ObjectNotFound, SampleChanged, StoreError, StoreUnavailable
from penstock.store import open_store, split_location
from penstock.store.limit import RequestLimit
from penstock.store.objects import HttpStore
from penstock.store.requests import Requester
from penstock.store.settings import read_settings
from penstock.store.urls import parse_store_url
from penstock.testing.fault_proxy import Fault, FaultProxy
from penstock.testing.store import collect, pattern

pytestmark = pytest.mark.s3

MIB = 1 << 20
DATA = pattern(3 * MIB + 11)


@pytest.fixture
def proxy(s3_server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.filer) as proxy:
        yield proxy


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def store(s3_root: str, proxy: FaultProxy, waits: list[float]) -> HttpStore:
    """The prefix of ``s3_root`` behind HTTP, with one file in it; waits between tries are noted and not slept."""
    open_store(s3_root).put("a b%/data.bin", DATA)
    url = parse_store_url(f"{proxy.url}/buckets/{s3_root.removeprefix('s3://')}")
    policy = read_settings(url).policy
    return HttpStore(url, requests=Requester(RequestLimit(8), policy, sleep=waits.append))


def test_a_file_reads(store: HttpStore):
    assert store.size("a b%/data.bin") == len(DATA)
    assert store.read("a b%/data.bin") == DATA
    assert collect(store, "a b%/data.bin", 1000, 2 * MIB + 7) == DATA[1000 : 2 * MIB + 7]
    with pytest.raises(SampleChanged):
        collect(store, "a b%/data.bin", 0, len(DATA) + 1)


def test_a_location_is_a_url_and_leads_back(store: HttpStore):
    location = store.locate("a b%/data.bin")
    assert location == f"{store.url}/a%20b%25/data.bin"
    root, key = split_location(location)
    assert collect(open_store(root), key, 5, 50) == DATA[5:50]


def test_503_is_tried_five_times_and_then_an_error(store: HttpStore, proxy: FaultProxy, waits: list[float]):
    proxy.fail_next(4, Fault(status=503))
    assert collect(store, "a b%/data.bin", 0, 10) == DATA[:10]
    assert (len(proxy.requests), len(waits)) == (5, 4)
    proxy.clear()
    proxy.fail_next(5, Fault(status=503))
    with pytest.raises(StoreUnavailable, match="gave up after 5 tries"):
        collect(store, "a b%/data.bin", 0, 10)
    assert len(proxy.requests) == 5


def test_404_is_not_tried_again(store: HttpStore, proxy: FaultProxy):
    for use in (store.read, store.size, lambda key: collect(store, key, 0, 1)):
        proxy.clear()
        with pytest.raises(ObjectNotFound):
            use("missing")
        assert len(proxy.requests) == 1


def test_200_in_answer_to_a_range_is_refused(store: HttpStore, proxy: FaultProxy):
    proxy.fail_next(1, Fault(ignore_range=True))
    with pytest.raises(StoreError, match="200, not 206"):
        collect(store, "a b%/data.bin", 10, 20)
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("reset", [True, False])
def test_a_broken_body_is_taken_up(store: HttpStore, proxy: FaultProxy, reset: bool):
    proxy.fail_next(2, Fault(cut_after_bytes=MIB + 100, reset=reset))
    assert collect(store, "a b%/data.bin", 0, len(DATA)) == DATA


def test_a_query_goes_along_and_into_no_message(s3_root: str, proxy: FaultProxy, store: HttpStore):
    location = f"{store.locate('a b%/data.bin')}?X-Amz-Signature=secret-signature"
    root, key = split_location(location)
    signed = open_store(root)
    assert collect(signed, key, 0, 9) == DATA[:9]
    assert proxy.requests[-1].path.endswith("/a%20b%25/data.bin?X-Amz-Signature=secret-signature")
    with pytest.raises(ObjectNotFound) as caught:
        signed.read("missing")
    assert "secret-signature" not in f"{caught.value} {signed.url} {signed.locate(key)}"


def test_http_is_read_only_and_has_no_listing(store: HttpStore, proxy: FaultProxy):
    uses = [
        lambda: store.put("k", b"x"),
        lambda: store.put_if_absent("k", b"x"),
        lambda: store.replace("k", b"x", "v"),
        lambda: store.delete("k"),
        lambda: store.open_writer("k"),
        lambda: store.list(),
    ]
    for use in uses:
        with pytest.raises(StoreError, match="plain HTTP"):
            use()
    assert proxy.requests == []
