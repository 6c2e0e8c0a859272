from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from penstock.errors import ConfigError
from penstock.store import preflight
from penstock.testing.fault_proxy import Fault, FaultProxy


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def dead_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.s3
def test_a_reachable_store(s3_root: str, s3_server):
    found = preflight(s3_root)
    assert found.reachable
    assert found.error is None
    assert found.latency_s is not None
    assert 0 < found.latency_s < 5
    assert found.tried == (f"list one page of {s3_root} at {s3_server.endpoint}",)
    sources = {each.name: each.source for each in found.settings}
    assert sources["endpoint"] == "AWS_ENDPOINT_URL"
    assert sources["access_key_id"] == "AWS_ACCESS_KEY_ID"
    assert sources["path_style"] == "default with an endpoint"
    assert s3_server.environment["AWS_SECRET_ACCESS_KEY"] not in f"{found} {found!r}"
    assert "secret_access_key = ******** (from AWS_SECRET_ACCESS_KEY)" in str(found)


@pytest.mark.s3
def test_refused_credentials_say_where_they_came_from(s3_root: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-and-secret")
    found = preflight(s3_root)
    assert not found.reachable
    assert found.error is not None
    assert "refuses these credentials" in found.error
    assert "access_key_id from AWS_ACCESS_KEY_ID" in found.error
    assert "wrong-and-secret" not in f"{found} {found!r}"


@pytest.mark.s3
def test_a_missing_bucket_is_named(s3_root: str):
    found = preflight("s3://no-such-bucket/x")
    assert not found.reachable
    assert found.error is not None
    assert "no such bucket" in found.error


@pytest.mark.s3
def test_an_overloaded_store_is_asked_once(s3_root: str, s3_proxy: FaultProxy):
    s3_proxy.fail_next(99, Fault(status=503))
    assert not preflight(s3_root).reachable
    assert len(s3_proxy.requests) == 1


@pytest.mark.parametrize("url", ["s3://b/p", "http://127.0.0.1:{port}/p"])
def test_a_dead_port_fails_at_once(dead_port: int, url: str, monkeypatch: pytest.MonkeyPatch):
    found = failing_preflight(url, dead_port, monkeypatch, within_s=2.5)
    assert "can't connect" in found


def test_a_silent_port_fails_within_five_seconds(silent_port: int, monkeypatch: pytest.MonkeyPatch):
    found = failing_preflight("s3://b/p", silent_port, monkeypatch, within_s=5)
    assert "no answer within 4 s" in found
    assert "endpoint from PENSTOCK_S3_ENDPOINT_URL" in found


def failing_preflight(url: str, port: int, monkeypatch: pytest.MonkeyPatch, *, within_s: float) -> str:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEYID-shown-to-nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET-shown-to-nobody")
    monkeypatch.setenv("PENSTOCK_S3_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    started = time.monotonic()
    found = preflight(url.format(port=port))
    assert time.monotonic() - started < within_s
    assert not found.reachable
    assert found.error is not None
    assert "shown-to-nobody" not in f"{found} {found!r}"
    return found.error


def test_settings_that_contradict_each_other_are_a_result(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "alone")
    found = preflight("s3://b")
    assert not found.reachable
    assert found.error is not None
    assert "AWS_SECRET_ACCESS_KEY is not" in found.error


def test_folders(tmp_path):
    assert preflight(str(tmp_path)).reachable
    missing = preflight(str(tmp_path / "missing"))
    assert not missing.reachable
    assert missing.error is not None
    assert "No such file" in missing.error


def test_an_unknown_scheme_is_no_result():
    with pytest.raises(ConfigError, match="unknown scheme"):
        preflight("ftp://host/x")
