import numpy as np
import pytest

from leftovers import held, left_since
from penstock.dataset.manifest import Manifest, ManifestWriter
from penstock.errors import ManifestError, ManifestNotFound, StoreFull


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_manifest(path, rows=100, version=1):
    ids = np.arange(rows)
    with open(path, "wb") as file:
        writer = ManifestWriter(file, version=version)
        for start in range(0, rows, 50):
            part = ids[start : start + 50]
            hints = [f"mx8:vision:imagefolder;label_id={i % 7}" for i in part]
            writer.add(f"shards/shard-{start // 50:05d}.tar", part * 1024 + 512, part + 1, hints, part * 3)
        return writer.finish()


@pytest.fixture
def text(tmp_path):
    return tmp_path / "text"


@pytest.mark.parametrize("opening", ["first", "later"])
def test_columns_hold_what_was_written(text, opening):
    manifest_hash = write_manifest(text)
    if opening == "later":
        Manifest.open(text, expected_hash=manifest_hash)
    manifest = Manifest.open(text, expected_hash=manifest_hash)
    assert (manifest.hash, manifest.version, len(manifest)) == (manifest_hash, 1, 100)
    ids = np.arange(100)
    assert np.array_equal(manifest.location_index, ids // 50)
    assert np.array_equal(manifest.offset, ids * 1024 + 512)
    assert np.array_equal(manifest.length, ids + 1)
    assert np.array_equal(manifest.label_id, ids % 7)
    assert np.array_equal(manifest.crc32c, ids * 3)
    assert [manifest.location(i) for i in range(manifest.location_count)] == [
        "shards/shard-00000.tar",
        "shards/shard-00001.tar",
    ]
    assert manifest.has_lengths and manifest.has_labels and manifest.has_crcs


def test_columns_are_read_only_views_that_outlive_the_manifest_and_its_file(text, cache):
    manifest_hash = write_manifest(text)
    length = Manifest.open(text, expected_hash=manifest_hash).length
    for file in cache.rglob("*.arrow"):
        file.unlink()
    assert length.sum() == sum(range(1, 101))
    assert not length.flags.writeable and not length.flags.owndata


def test_absent_values_are_minus_one_and_counted(text):
    with open(text, "wb") as file:
        writer = ManifestWriter(file)
        writer.add(["a", "b", "b"], [-1, 0, 5], [-1, 5, 5], ["", "mx8:vision:imagefolder;label_id=3", "jpeg"])
        manifest_hash = writer.finish()
    manifest = Manifest.open(text, expected_hash=manifest_hash)
    assert manifest.offset.tolist() == [-1, 0, 5]
    assert manifest.length.tolist() == [-1, 5, 5]
    assert manifest.label_id.tolist() == [-1, 3, -1]
    assert manifest.crc32c.tolist() == [-1, -1, -1]
    assert manifest.location_index.tolist() == [0, 1, 1]
    assert (manifest.sized_count, manifest.labelled_count, manifest.checked_count) == (2, 1, 0)
    assert not (manifest.has_lengths or manifest.has_labels or manifest.has_crcs)


def test_a_manifest_without_rows_opens(text, cache):
    manifest_hash = write_manifest(text, rows=0)
    Manifest.open(text, expected_hash=manifest_hash)
    built = next(cache.rglob("*.arrow")).stat().st_mtime_ns
    manifest = Manifest.open(text, expected_hash=manifest_hash)
    assert len(manifest) == 0 == len(manifest.length) == manifest.location_count
    assert next(cache.rglob("*.arrow")).stat().st_mtime_ns == built


def test_the_columns_are_made_once(text, cache):
    manifest_hash = write_manifest(text)
    Manifest.open(text, expected_hash=manifest_hash)
    (built,) = (cache / "manifests").iterdir()
    before = built.stat()
    Manifest.open(text, expected_hash=manifest_hash)
    assert built.name == f"{manifest_hash}.arrow"
    assert (built.stat().st_ino, built.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("opening", ["first", "later"])
def test_a_changed_text_is_refused_naming_both_hashes(text, opening):
    manifest_hash = write_manifest(text)
    if opening == "later":
        Manifest.open(text, expected_hash=manifest_hash)
    data = bytearray(text.read_bytes())
    data[-2] ^= 1
    text.write_bytes(data)
    with pytest.raises(ManifestError) as caught:
        Manifest.open(text, expected_hash=manifest_hash)
    import hashlib

    assert manifest_hash in str(caught.value)
    assert hashlib.sha256(data).hexdigest() in str(caught.value)


def test_a_changed_text_that_no_longer_parses_is_blamed_on_its_hash(text):
    manifest_hash = write_manifest(text)
    text.write_bytes(b"garbage")
    with pytest.raises(ManifestError, match="hashes to"):
        Manifest.open(text, expected_hash=manifest_hash)


def test_text_that_hashes_well_but_does_not_parse_names_its_line(text):
    import hashlib

    text.write_bytes(b"schema_version=1\n0\ta\t1\n")
    with pytest.raises(ManifestError, match=r"text: line 2: 3 fields"):
        Manifest.open(text, expected_hash=hashlib.sha256(text.read_bytes()).hexdigest())


def test_a_missing_text_is_not_found(text):
    with pytest.raises(ManifestNotFound, match="manifest not found: abc"):
        Manifest.open(text, expected_hash="abc")


@pytest.mark.parametrize("damage", ["empty", "torn", "zeroed", "one bit", "another manifest", "text"])
def test_a_damaged_cache_is_made_again(text, cache, damage):
    manifest_hash = write_manifest(text)
    Manifest.open(text, expected_hash=manifest_hash)
    (built,) = (cache / "manifests").iterdir()
    good = built.read_bytes()
    if damage == "empty":
        bad = b""
    elif damage == "torn":
        bad = good[: len(good) // 2]
    elif damage == "zeroed":
        bad = good[:-4096].ljust(len(good), b"\0") if len(good) > 4096 else bytes(len(good))
    elif damage == "one bit":
        place = good.index((512 + 1024 * 60).to_bytes(8, "little"))
        bad = good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :]
    elif damage == "another manifest":
        other = text.with_name("other")
        other_hash = write_manifest(other, rows=10)
        Manifest.open(other, expected_hash=other_hash)
        bad = (cache / "manifests" / f"{other_hash}.arrow").read_bytes()
    else:
        bad = b"not arrow at all"
    built.write_bytes(bad)
    manifest = Manifest.open(text, expected_hash=manifest_hash)
    assert np.array_equal(manifest.offset, np.arange(100) * 1024 + 512)
    assert built.read_bytes() == good


def test_a_cache_that_cannot_be_written_is_done_without(text, tmp_path, monkeypatch):
    blocker = tmp_path / "file"
    blocker.write_bytes(b"")
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(blocker / "cache"))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    manifest_hash = write_manifest(text)
    assert len(Manifest.open(text, expected_hash=manifest_hash)) == 100
    assert list(temporary.iterdir()) == []


def test_no_room_anywhere_says_what_to_do(text, tmp_path, monkeypatch):
    manifest_hash = write_manifest(text)
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", "/dev/full/cache")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(StoreFull, match="PENSTOCK_CACHE_DIR"):
        Manifest.open(text, expected_hash=manifest_hash)


def test_nothing_but_the_cache_file_stays_behind(text, cache):
    manifest_hash = write_manifest(text)
    before = held()
    manifest = Manifest.open(text, expected_hash=manifest_hash)
    assert [file.name for file in cache.rglob("*") if file.is_file()] == [f"{manifest_hash}.arrow"]
    assert len(manifest) == 100
    assert left_since(before) == []
