from __future__ import annotations

import pytest

from penstock.errors import StoreError, StoreUnavailable
from penstock.store import ObjectInfo, Store, open_store
from penstock.testing.fault_proxy import Fault, FaultProxy
from penstock.testing.store import in_threads

pytestmark = pytest.mark.s3

COUNT = 3000


def fill(store: Store, begin: int, end: int) -> bool:
    for index in range(begin, end):
        store.put(f"many/{index:05d}", b"%d" % index)
    return True


@pytest.fixture(scope="module")
def many(s3_server) -> str:
    """Address of a prefix with 3,000 objects."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        store = open_store("s3://penstock/listing")
        step = COUNT // 8
        in_threads(lambda at: fill(store, at, at + step), range(0, COUNT, step))
    return "s3://penstock/listing"


def test_three_thousand_objects_are_written_listed_page_by_page_and_read(many: str, s3_proxy: FaultProxy):
    store = open_store(many)
    found = list(store.list("many"))
    assert found == [ObjectInfo(f"many/{index:05d}", len(str(index))) for index in range(COUNT)]
    assert len(s3_proxy.requests) == 3
    for index in range(0, COUNT, 37):
        assert store.read(found[index].key) == b"%d" % index


def test_a_listing_that_breaks_goes_on_behind_the_last_key(many: str, s3_proxy: FaultProxy):
    pages = 0

    def every_second_page_fails(request):
        nonlocal pages
        pages += 1
        return Fault(status=503) if pages % 2 == 0 else None

    s3_proxy.add_rule(every_second_page_fails)
    keys = [each.key for each in open_store(many).list("many")]
    assert keys == [f"many/{index:05d}" for index in range(COUNT)]


def test_a_listing_is_asked_for_page_by_page(many: str, s3_proxy: FaultProxy):
    listing = open_store(many).list("many")
    next(listing)
    assert len(s3_proxy.requests) == 1
    listing.close()


def test_a_listing_that_always_fails_ends(many: str, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PENSTOCK_STORE_RETRIES", "2")
    s3_proxy.add_rule(lambda request: Fault(status=500))
    with pytest.raises(StoreUnavailable, match="gave up after 2 tries"):
        list(open_store(many).list("many"))
    assert len(s3_proxy.requests) == 2


def page_of(*keys_and_sizes: tuple[str, int]) -> Fault:
    rows = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>"
        f'<ETag>"x"</ETag><Size>{size}</Size></Contents>'
        for key, size in keys_and_sizes
    )
    text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"
    return Fault(status=200, body=text.encode())


def test_markers_of_folders_are_left_out_and_empty_objects_are_not(s3_root: str, s3_proxy: FaultProxy):
    store = open_store(s3_root)
    prefix = s3_root.removeprefix("s3://penstock/")
    store.put("folder/empty", b"")
    store.put("folder/full", b"1")
    rows = [(f"{prefix}/{key}", size) for key, size in [("folder/", 0), ("folder/empty", 0), ("folder/full", 1)]]
    s3_proxy.fail_next(1, page_of(*rows), method="GET")
    assert list(store.list()) == [ObjectInfo("folder/empty", 0), ObjectInfo("folder/full", 1)]


@pytest.mark.parametrize("key", ["a//b", "a/../b", "a/&#10;b"])
def test_a_key_that_can_not_be_addressed_is_an_error(s3_root: str, s3_proxy: FaultProxy, key: str):
    s3_proxy.fail_next(1, page_of((key, 1)))
    with pytest.raises(StoreError, match="can't be addressed"):
        list(open_store(s3_root).list())
