from __future__ import annotations

import json

import pytest

from penstock.errors import ConfigError
from penstock.store import open_store
from penstock.store.clients import connect
from penstock.store.settings import read_settings
from penstock.store.urls import parse_store_url


def client_of(url: str):
    parts = parse_store_url(url)
    return connect(parts, read_settings(parts)).requests


def set_all(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("PENSTOCK_S3_ENDPOINT_URL", "MX8_S3_ENDPOINT_URL"),
        ("MX8_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
        ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        ("AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    ],
)
def test_the_endpoint_that_comes_first_reaches_the_client(monkeypatch: pytest.MonkeyPatch, earlier: str, later: str):
    set_all(monkeypatch, **{earlier: "http://first:1", later: "http://second:2"})
    settings = read_settings(parse_store_url("s3://bucket"))
    assert settings.value("endpoint") == "http://first:1"
    assert settings.source("endpoint") == earlier
    client = client_of("s3://bucket")
    config = {str(name).lower(): value for name, value in client.config.items()}
    endpoints = {value for name, value in config.items() if "endpoint" in name}
    assert endpoints == {"http://first:1"}
    assert client.client_options is not None
    assert client.client_options["allow_http"] in {True, "true"}


@pytest.mark.parametrize(
    ("environment", "bucket", "style", "source"),
    [
        ({}, "bucket", "false", "default"),
        ({}, "buck.et", "true", "default for a bucket name with a dot"),
        ({"AWS_ENDPOINT_URL": "http://h"}, "bucket", "true", "default with an endpoint"),
        (
            {"AWS_ENDPOINT_URL": "http://h", "MX8_S3_FORCE_PATH_STYLE": "off"},
            "bucket",
            "false",
            "MX8_S3_FORCE_PATH_STYLE",
        ),
        ({"PENSTOCK_S3_FORCE_PATH_STYLE": "YES"}, "bucket", "true", "PENSTOCK_S3_FORCE_PATH_STYLE"),
    ],
)
def test_path_style(monkeypatch: pytest.MonkeyPatch, environment, bucket: str, style: str, source: str):
    set_all(monkeypatch, **environment)
    settings = read_settings(parse_store_url(f"s3://{bucket}"))
    assert (settings.value("path_style"), settings.source("path_style")) == (style, source)
    virtual = client_of(f"s3://{bucket}").config["virtual_hosted_style_request"]
    assert str(virtual).lower() == ("false" if style == "true" else "true")


def test_virtual_hosted_style_puts_the_bucket_into_the_endpoint(monkeypatch: pytest.MonkeyPatch):
    set_all(monkeypatch, AWS_ENDPOINT_URL="https://s3.example:9000", PENSTOCK_S3_FORCE_PATH_STYLE="0")
    assert client_of("s3://bucket").config["endpoint"] == "https://bucket.s3.example:9000"


def test_a_path_style_that_is_no_flag_is_refused(monkeypatch: pytest.MonkeyPatch):
    set_all(monkeypatch, MX8_S3_FORCE_PATH_STYLE="maybe")
    with pytest.raises(ConfigError, match="MX8_S3_FORCE_PATH_STYLE='maybe'"):
        open_store("s3://bucket")


@pytest.mark.parametrize("given", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_half_a_pair_of_keys_is_refused(monkeypatch: pytest.MonkeyPatch, given: str):
    set_all(monkeypatch, **{given: "x-secret-x"})
    with pytest.raises(ConfigError, match="set both or neither") as caught:
        open_store("s3://bucket")
    assert "x-secret-x" not in str(caught.value)


def test_credentials_and_region_reach_the_client_and_no_text(monkeypatch: pytest.MonkeyPatch):
    values = {
        "AWS_ACCESS_KEY_ID": "the-id",
        "AWS_SECRET_ACCESS_KEY": "the-secret",
        "AWS_SESSION_TOKEN": "the-token",
        "AWS_REGION": "eu-west-9",
    }
    set_all(monkeypatch, **values)
    config = client_of("s3://bucket").config
    assert config["access_key_id"] == "the-id"
    assert config["secret_access_key"] == "the-secret"
    assert config["session_token"] == "the-token"
    assert config["region"] == "eu-west-9"
    settings = read_settings(parse_store_url("s3://bucket"))
    for secret in ("the-id", "the-secret", "the-token"):
        assert secret not in repr(settings)
        assert secret not in " ".join(each.shown for each in settings.values)


def test_the_client_itself_retries_only_parts_of_uploads(monkeypatch: pytest.MonkeyPatch):
    set_all(monkeypatch, PENSTOCK_STORE_RETRIES="3", PENSTOCK_STORE_TIMEOUT_S="7")
    parts = parse_store_url("s3://bucket")
    settings = read_settings(parts)
    assert (settings.policy.tries, settings.policy.timeout_s) == (3, 7.0)
    clients = connect(parts, settings)
    assert clients.requests.retry_config is not None
    assert clients.uploads.retry_config is not None
    assert clients.requests.retry_config["max_retries"] == 0
    assert clients.uploads.retry_config["max_retries"] == 2


def test_stores_of_one_bucket_share_a_client_until_the_settings_change(monkeypatch: pytest.MonkeyPatch):
    first = client_of("s3://bucket/a")
    assert client_of("s3://bucket/b") is first
    assert client_of("s3://other/a") is not first
    set_all(monkeypatch, AWS_REGION="eu-west-9")
    assert client_of("s3://bucket/a") is not first


@pytest.mark.parametrize(
    ("variable", "value"),
    [("PENSTOCK_STORE_RETRIES", "0"), ("PENSTOCK_STORE_CONCURRENCY", "many"), ("PENSTOCK_STORE_TIMEOUT_S", "-1")],
)
def test_a_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, value: str):
    set_all(monkeypatch, **{variable: value})
    with pytest.raises(ConfigError, match=variable):
        open_store("s3://bucket")


# No emulator of GCS or Azure can be installed from the package registries, so these two are checked up to the point
# where the client is made; everything behind it is the client's own, and the same code as for S3.


def test_gcs_settings(monkeypatch: pytest.MonkeyPatch, tmp_path):
    set_all(monkeypatch, PENSTOCK_GCS_ENDPOINT_URL="http://127.0.0.1:4443")
    client = client_of("gs://bucket/prefix")
    assert client.config["base_url"] == "http://127.0.0.1:4443"
    assert str(client.config["skip_signature"]).lower() == "true"
    store = open_store("gs://bucket/prefix")
    assert (store.url, store.locate("a/b")) == ("gs://bucket/prefix", "gs://bucket/prefix/a/b")

    account = tmp_path / "account.json"
    account.write_text(json.dumps({"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}))
    set_all(monkeypatch, GOOGLE_SERVICE_ACCOUNT=str(account))
    settings = read_settings(parse_store_url("gs://bucket"))
    assert (settings.value("credentials"), settings.source("credentials")) == (str(account), "GOOGLE_SERVICE_ACCOUNT")
    assert client_of("gs://bucket").config["service_account"] == str(account)


def test_a_broken_google_credentials_file_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch, tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("private-and-broken")
    set_all(monkeypatch, GOOGLE_APPLICATION_CREDENTIALS=str(broken))
    with pytest.raises(ConfigError, match="credentials from GOOGLE_APPLICATION_CREDENTIALS") as caught:
        open_store("gs://bucket")
    assert "private-and-broken" not in str(caught.value)


def test_azure_settings(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        open_store("az://container")
    key = "c2VjcmV0LWtleS1zZWNyZXQta2V5"
    set_all(monkeypatch, AZURE_STORAGE_ACCOUNT="account", AZURE_STORAGE_KEY=key)
    client = client_of("az://container/prefix")
    assert client.config["account_name"] == "account"
    assert client.config["account_key"] == key
    assert "endpoint" not in client.config
    assert key not in repr(read_settings(parse_store_url("az://container")))
    set_all(monkeypatch, PENSTOCK_AZURE_ENDPOINT_URL="http://127.0.0.1:10000/account")
    assert client_of("az://container").config["endpoint"] == "http://127.0.0.1:10000/account"
    store = open_store("az://container/prefix")
    assert (store.url, store.locate("a")) == ("az://container/prefix", "az://container/prefix/a")


@pytest.mark.parametrize("value", ["127.0.0.1:9000", "localhost:9000", "ftp://x"])
def test_an_endpoint_needs_its_scheme(monkeypatch, value):
    monkeypatch.setenv("AWS_ENDPOINT_URL", value)
    with pytest.raises(ConfigError, match=r"AWS_ENDPOINT_URL is .*http://"):
        read_settings(parse_store_url("s3://bucket/x"))
