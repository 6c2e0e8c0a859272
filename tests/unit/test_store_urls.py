from __future__ import annotations

import os

import pytest

from penstock.errors import ConfigError
from penstock.store import open_store, split_location
from penstock.store.urls import StoreUrl, parse_store_url


@pytest.mark.parametrize(
    ("text", "parts", "shown"),
    [
        ("/data/train", StoreUrl("file", "/data/train"), "/data/train"),
        ("/data/train/", StoreUrl("file", "/data/train"), "/data/train"),
        (" /data/a b%20 ", StoreUrl("file", "/data/a b%20"), "/data/a b%20"),
        ("/", StoreUrl("file", "/"), "/"),
        ("file:///data/a%20b", StoreUrl("file", "/data/a b"), "/data/a b"),
        ("s3://bucket", StoreUrl("s3", "bucket"), "s3://bucket"),
        ("s3://bucket/", StoreUrl("s3", "bucket"), "s3://bucket"),
        ("s3://bucket/a/b/", StoreUrl("s3", "bucket", "a/b"), "s3://bucket/a/b"),
        ("s3://bucket/a?b#c%20d@e", StoreUrl("s3", "bucket", "a?b#c%20d@e"), "s3://bucket/a?b#c%20d@e"),
        ("S3://bucket/a", StoreUrl("s3", "bucket", "a"), "s3://bucket/a"),
        ("gs://bucket/a", StoreUrl("gs", "bucket", "a"), "gs://bucket/a"),
        ("az://container/a", StoreUrl("az", "container", "a"), "az://container/a"),
        ("http://host:80/a%20b/", StoreUrl("http", "http://host:80", "a b"), "http://host:80/a%20b"),
        ("https://host", StoreUrl("https", "https://host"), "https://host"),
        ("https://h/a?sig=x%2F", StoreUrl("https", "https://h", "a", "sig=x%2F"), "https://h/a"),
    ],
)
def test_an_address_comes_apart(text: str, parts: StoreUrl, shown: str):
    assert parse_store_url(text) == parts
    assert str(parts) == shown


def test_a_relative_folder_is_made_absolute_and_keeps_its_links(tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    assert parse_store_url("link/x").root == os.path.join(os.getcwd(), "link/x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "address"),
        ("   ", "address"),
        ("ftp://host/x", "unknown scheme 'ftp'"),
        ("s3a://bucket", "unknown scheme 's3a'"),
        ("s3://", "names no bucket"),
        ("s3:///key", "names no bucket"),
        ("http://", "names no host"),
        ("https:///x", "names no host"),
    ],
)
def test_what_is_no_address_is_refused(text: str, words: str):
    with pytest.raises(ConfigError, match=words):
        open_store(text)


@pytest.mark.parametrize(
    ("location", "root", "key"),
    [
        ("/data/a/b.tar", "/", "data/a/b.tar"),
        ("file:///data/b.tar", "/", "data/b.tar"),
        ("s3://bucket/a/b.tar", "s3://bucket", "a/b.tar"),
        ("gs://bucket/b.tar", "gs://bucket", "b.tar"),
        ("https://host:9/a/b%20c.tar", "https://host:9", "a/b c.tar"),
        ("https://host/b.tar?sig=1", "https://host?sig=1", "b.tar"),
    ],
)
def test_a_location_comes_apart_into_root_and_key(location: str, root: str, key: str):
    assert split_location(location) == (root, key)
    if "?" not in location:
        assert open_store(root).locate(key) == location.removeprefix("file://")


@pytest.mark.parametrize("location", ["/", "s3://bucket", "s3://bucket/", "https://host/", ""])
def test_a_location_without_a_key_is_refused(location: str):
    with pytest.raises(ConfigError):
        split_location(location)
