from __future__ import annotations

import json
import urllib.request

import pytest

from penstock.errors import AccessDenied, ClosedError, StoreError, StoreUnavailable
from penstock.store import open_store, uploads
from penstock.testing.fault_proxy import Fault, FaultProxy
from penstock.testing.store import collect, pattern

pytestmark = pytest.mark.s3

MIB = 1 << 20
SIZE = 35 * MIB + 17


def unfinished_uploads(s3_server) -> list[str]:
    """Uploads whose parts still lie in the bucket, as the server's own file tree shows them."""
    request = urllib.request.Request(
        f"{s3_server.filer}/buckets/penstock/.uploads/?limit=1000", headers={"Accept": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return [entry["FullPath"] for entry in json.load(answer)["Entries"] or []]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_STORE_RETRIES", "2")


def test_parts_run_side_by_side_and_arrive_in_order(s3_root: str, s3_proxy: FaultProxy):
    store = open_store(s3_root)
    data = pattern(SIZE)
    writer = store.open_writer("k")
    writer.write(data)
    writer.commit()
    assert collect(store, "k", 0, SIZE) == data
    parts = [each for each in s3_proxy.requests if "partNumber=" in each.path]
    assert [each.size_bytes for each in parts].count(uploads.PART_BYTES) == 4
    assert 1 < s3_proxy.peak_count <= uploads.PART_COUNT


def test_a_small_object_is_one_request(s3_root: str, s3_proxy: FaultProxy):
    writer = open_store(s3_root).open_writer("k")
    writer.write(b"small")
    writer.commit()
    assert [each.method for each in s3_proxy.requests] == ["PUT"]


@pytest.mark.parametrize("fault", [Fault(status=503), Fault(status=500), Fault(drop_answer=True)])
def test_a_part_that_fails_is_sent_again(s3_root: str, s3_proxy: FaultProxy, fault: Fault):
    store = open_store(s3_root)
    s3_proxy.fail_next(2, fault, path_part="partNumber=2")
    data = pattern(SIZE)
    writer = store.open_writer("k")
    writer.write(data)
    writer.commit()
    assert collect(store, "k", 0, SIZE) == data


def test_an_aborted_upload_leaves_no_object_and_no_parts(s3_root: str, s3_server):
    store = open_store(s3_root)
    before = unfinished_uploads(s3_server)
    writer = store.open_writer("k")
    writer.write(bytes(SIZE))
    assert len(unfinished_uploads(s3_server)) == len(before) + 1
    writer.abort()
    assert unfinished_uploads(s3_server) == before
    assert list(store.list()) == []


@pytest.mark.parametrize("where", ["partNumber=3", "?uploads", "uploadId="])
def test_a_failed_upload_leaves_nothing_and_stays_failed(s3_root, s3_proxy, s3_server, quick, where):
    store = open_store(s3_root)
    s3_proxy.fail_next(99, Fault(status=503), path_part=where)
    writer = store.open_writer("k")
    with pytest.raises(StoreUnavailable, match="k: "):
        writer.write(bytes(SIZE))
        writer.commit()
    with pytest.raises(ClosedError):
        writer.commit()
    assert list(store.list()) == []


def test_an_upload_without_the_right_to_write_fails_at_once(s3_root: str, s3_proxy: FaultProxy):
    s3_proxy.fail_next(99, Fault(status=403, body=b"<Error><Code>AccessDenied</Code></Error>"))
    writer = open_store(s3_root).open_writer("k")
    with pytest.raises(AccessDenied):
        writer.write(bytes(20 * MIB))
        writer.commit()
    assert len([each for each in s3_proxy.requests if each.method != "DELETE"]) == 1


def test_an_object_of_more_parts_than_stores_take_is_refused(s3_root: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(uploads, "MOST_BYTES", 1000)
    writer = open_store(s3_root).open_writer("k")
    with pytest.raises(StoreError, match="split it"):
        writer.write(bytes(1001))
    with pytest.raises(ClosedError):
        writer.commit()
