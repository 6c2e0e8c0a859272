"""Links to manifests where the dataset, the manifest store, or both lie in an object store."""

from __future__ import annotations

import hashlib
import logging

import pytest

from penstock.dataset.links import intent_key
from penstock.dataset.resolve import resolve, resolve_manifest_hash
from penstock.errors import ConfigError, EmptyDataset, ManifestError, ManifestNotFound, ResolveError, StoreError
from penstock.store import open_store

pytestmark = pytest.mark.s3


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def base(s3_root):
    return f"{s3_root}/data"


def put(base, *keys, data=b"x"):
    store = open_store(base)
    for key in keys:
        store.put(key, data)


def names_and_labels(resolved):
    manifest = resolved.manifest
    assert manifest.location_index.tolist() == list(range(len(manifest)))
    return [(manifest.location(i), int(manifest.label_id[i])) for i in range(len(manifest))]


def test_two_refreshes_of_an_unchanged_prefix_give_one_hash_and_labels_by_class(base, tmp_path):
    put(base, *(f"class{n}/{i}.bin" for n in (3, 1, 5, 2, 4) for i in range(2)))
    first = resolve(f"{base}@refresh", manifest_store_root=tmp_path / "store")
    assert resolve_manifest_hash(f"{base}/@refresh", manifest_store_root=tmp_path / "store") == first.hash
    text = (tmp_path / "store" / "by-hash" / first.hash).read_bytes()
    assert hashlib.sha256(text).hexdigest() == first.hash
    expected = [(f"class{n}/{i}.bin", n - 1) for n in range(1, 6) for i in range(2)]
    assert names_and_labels(first) == expected
    assert first.location(0) == f"{base}/class1/0.bin"
    assert first.manifest.has_labels


def test_a_prefix_is_sorted_by_key_and_written_absolute_in_version_0(base, tmp_path):
    put(base, "b/1", "b-c/1", "a", "b.d")
    resolved = resolve(base, manifest_store_root=tmp_path / "store", manifest_version=0)
    # Whole keys compare here: "-" and "." sort before "/".
    assert names_and_labels(resolved) == [(f"{base}/{key}", -1) for key in ("a", "b-c/1", "b.d", "b/1")]
    text = (tmp_path / "store" / "by-hash" / resolved.hash).read_bytes()
    assert text.startswith(f"schema_version=0\n0\t{base}/a\t\t\t\n".encode())


@pytest.mark.parametrize(
    ("mode", "keys", "labels"),
    [
        ("none", ["a/1", "b/1"], [-1, -1]),
        ("auto", ["a/1", "a/2"], [-1, -1]),  # one class tells nothing
        ("auto", ["a/1", "b/1", "root"], [-1, -1, -1]),
        ("Image-Folder", ["a/1", "a/2"], [0, 0]),
        ("auto", ["a/1", "a-b/1"], [1, 0]),  # keys sort as a-b/1, a/1; labels as a, a-b
    ],
)
def test_labels_of_a_listed_prefix_follow_the_mode(base, tmp_path, monkeypatch, mode, keys, labels):
    monkeypatch.setenv("MX8_S3_LABEL_MODE", mode)
    put(base, *keys)
    found = resolve(base, manifest_store_root=tmp_path / "store").manifest
    assert found.label_id.tolist() == labels


def test_a_mode_that_does_not_fit_or_does_not_exist_is_an_error(base, tmp_path, monkeypatch):
    put(base, "a/1", "root")
    monkeypatch.setenv("MX8_S3_LABEL_MODE", "imagefolder")
    with pytest.raises(ResolveError, match="root"):
        resolve(base, manifest_store_root=tmp_path / "store")
    monkeypatch.setenv("MX8_S3_LABEL_MODE", "folders")
    with pytest.raises(ConfigError, match=r"auto\|none\|imagefolder"):
        resolve(base, manifest_store_root=tmp_path / "store")


def test_a_packed_prefix_brings_its_own_manifest(base, tmp_path, caplog):
    caplog.set_level(logging.INFO, "penstock.proof")
    text = b"schema_version=1\n0\tshards/shard-00000.tar\t512\t3\t\t0000000a\n"
    put(base, "_mx8/manifest.tsv", data=text)
    put(base, "shards/shard-00000.tar")
    assert resolve_manifest_hash(base, manifest_store_root=tmp_path / "s") == hashlib.sha256(text).hexdigest()
    assert "snapshot_index_precomputed_manifest" in caplog.text


def test_e2_19_an_empty_prefix_is_an_empty_dataset_and_a_missing_bucket_is_not(base, tmp_path):
    with pytest.raises(EmptyDataset, match="zero objects"):
        resolve_manifest_hash(base, manifest_store_root=tmp_path / "store")
    with pytest.raises(StoreError) as caught:
        resolve_manifest_hash("s3://no-such-bucket-here/x", manifest_store_root=tmp_path / "store")
    assert "no-such-bucket-here" in str(caught.value)


def test_a_manifest_store_in_an_object_store_keeps_what_a_folder_keeps(s3_root, tmp_path, cache):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_bytes(b"x")
    root, link = f"{s3_root}/store", str(tmp_path / "data")
    resolved = resolve(link, manifest_store_root=root)
    store = open_store(root)
    assert hashlib.sha256(store.read(f"by-hash/{resolved.hash}")).hexdigest() == resolved.hash
    assert store.read(f"intent/{intent_key(link)}/current").decode().strip() == resolved.hash
    assert {info.key.split("/")[0] for info in store.list()} == {"by-hash", "intent"}
    assert resolved.location(0) == f"{link}/a"
    assert resolve_manifest_hash(f"{link}@sha256:{resolved.hash}", manifest_store_root=root) == resolved.hash
    with pytest.raises(ManifestNotFound):
        resolve(f"{link}@sha256:beef", manifest_store_root=root)


def test_a_fetched_text_is_hashed_again_and_fetched_again_when_it_was_changed(s3_root, tmp_path, cache):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_bytes(b"x")
    root, link = f"{s3_root}/store", str(tmp_path / "data")
    manifest_hash = resolve(link, manifest_store_root=root).hash
    copy = cache / "texts" / manifest_hash
    good = copy.read_bytes()
    copy.write_bytes(good.replace(b"a", b"b"))
    assert resolve(link, manifest_store_root=root).manifest.location(0) == "a"
    assert copy.read_bytes() == good
    open_store(root).put(f"by-hash/{manifest_hash}", good.replace(b"a", b"b"))
    copy.unlink()
    with pytest.raises(ManifestError, match=manifest_hash):
        resolve(link, manifest_store_root=root)
    with pytest.raises(ManifestError, match=manifest_hash):
        resolve_manifest_hash(f"{link}@sha256:{manifest_hash}", manifest_store_root=root)
    with pytest.raises(ManifestError, match="do not match existing content"):
        resolve_manifest_hash(f"{link}@refresh", manifest_store_root=root)
