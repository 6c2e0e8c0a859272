"""Keys of a profile, as `aws configure` writes them, open a real store."""

from __future__ import annotations

import pytest

from penstock.errors import ConfigError
from penstock.store import open_store, preflight
from penstock.store.settings import read_settings
from penstock.store.urls import parse_store_url
from s3_server import ACCESS_KEY_ID, BUCKET, SECRET_ACCESS_KEY

FILE = f"""[default]
aws_access_key_id = nobody
aws_secret_access_key = wrong%
[trainer]
aws_access_key_id={ACCESS_KEY_ID}
aws_secret_access_key={SECRET_ACCESS_KEY}
[temporary]
aws_access_key_id = a
aws_secret_access_key = b
aws_session_token = c
[by-role]
role_arn = arn:aws:iam::1:role/x
"""


@pytest.fixture
def credentials(tmp_path, monkeypatch):
    path = tmp_path / "credentials"
    path.write_text(FILE)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    return path


def _settings():
    return read_settings(parse_store_url("s3://bucket"))


@pytest.mark.s3
def test_a_profile_opens_a_store(s3_server, credentials, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("AWS_PROFILE", "trainer")
    store = open_store(f"s3://{BUCKET}/profile")
    store.put("key", b"value")
    assert bytes(store.read("key")) == b"value"
    found = preflight(f"s3://{BUCKET}/profile")
    assert found.reachable
    assert f"access_key_id = ******** (from profile trainer in {credentials})" in str(found)
    assert SECRET_ACCESS_KEY not in str(found) + repr(found)


def test_which_keys_count(credentials, monkeypatch):
    assert (_settings().value("access_key_id"), _settings().value("secret_access_key")) == ("nobody", "wrong%")
    monkeypatch.setenv("AWS_PROFILE", "temporary")
    assert [_settings().value(name) for name in ("access_key_id", "secret_access_key", "session_token")] == [*"abc"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "own")
    assert _settings().source("access_key_id") == "AWS_ACCESS_KEY_ID"
    assert _settings().value("session_token") is None


def test_without_a_file_the_client_looks_for_an_identity(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    assert _settings().value("access_key_id") is None
    assert "workload identity" in _settings().source("access_key_id")


@pytest.mark.parametrize("profile", ["by-role", "nowhere"])
def test_a_profile_that_was_named_and_has_no_keys_is_refused_with_what_to_do(credentials, monkeypatch, profile):
    monkeypatch.setenv("AWS_PROFILE", profile)
    with pytest.raises(ConfigError, match=rf"AWS_PROFILE is '{profile}'.*export-credentials --profile {profile}"):
        _settings()


def test_a_file_that_is_none_is_refused_without_its_text(credentials):
    credentials.write_text("secret nonsense")
    with pytest.raises(ConfigError, match="MissingSectionHeaderError") as caught:
        _settings()
    assert "nonsense" not in str(caught.value)
