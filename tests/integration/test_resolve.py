"""Links to manifests, on real folders."""

import hashlib
import logging
import os
import subprocess
import sys
import threading
import time

import pytest

from penstock.dataset import resolve as resolve_module
from penstock.dataset.index import write_index
from penstock.dataset.intent_lock import IntentLock
from penstock.dataset.links import intent_key
from penstock.dataset.resolve import resolve, resolve_manifest_hash
from penstock.errors import (
    AccessDenied,
    ConfigError,
    DeadlineExceeded,
    EmptyDataset,
    LinkError,
    ManifestError,
    ManifestNotFound,
    ObjectNotFound,
    ResolveError,
    StoreError,
)
from penstock.store import open_store
from waiting import wait_until


class Place:
    """A dataset and a manifest store in two folders."""

    def __init__(self, folder):
        self.data = folder / "data"
        self.root = folder / "store"
        self.data.mkdir()

    def files(self, *names):
        for name in names:
            path = self.data / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())

    def hash(self, suffix="", base=None, **arguments):
        return resolve_manifest_hash(f"{base or self.data}{suffix}", manifest_store_root=self.root, **arguments)

    def text(self, manifest_hash):
        return (self.root / "by-hash" / manifest_hash).read_bytes()

    def pointer(self, base=None):
        return self.root / "intent" / intent_key(str(base or self.data)) / "current"

    def lock(self, base=None):
        return self.root / "locks" / f"{intent_key(str(base or self.data))}.lock"

    def table(self, *rows):
        path = self.root.parent / "table.tsv"
        path.write_text("".join(row + "\n" for row in rows))
        return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("DEV_MANIFEST_PATH", "SNAPSHOT_LOCK_STALE_MS", "SNAPSHOT_WAIT_TIMEOUT_MS"):
        monkeypatch.delenv(f"PENSTOCK_{name}", raising=False)
        monkeypatch.delenv(f"MX8_{name}", raising=False)
    return Place(tmp_path)


@pytest.fixture
def proofs(caplog):
    caplog.set_level(logging.INFO, "penstock.proof")
    return lambda *names: [
        (record.event, record.fields) for record in caplog.records if not names or record.event in names
    ]


def write_lock(place, age_s=0.0, text=None):
    place.lock().parent.mkdir(parents=True, exist_ok=True)
    written_ms = int((time.time() - age_s) * 1000)
    place.lock().write_text(f"unix_time_ms={written_ms}\npid=1\nnode_id=other\n" if text is None else text)


# --- hashes and texts
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1])
def test_e2_05_the_kept_text_hashes_to_its_name(place, version):
    place.files("b", "a")
    manifest_hash = place.hash(manifest_version=version)
    text = place.text(manifest_hash)
    assert text.startswith(b"schema_version=%d\n" % version)
    assert hashlib.sha256(text).hexdigest() == manifest_hash


def test_e2_06_a_table_in_any_order_gives_the_hash_of_the_sorted_one(place):
    rows = [f"{i}\t/x/{i % 3}\t{i * 10}\t10\thint{i}" for i in range(20)]
    in_order = place.hash("@refresh", dev_manifest_path=place.table(*rows))
    assert place.hash("@refresh", dev_manifest_path=place.table(*reversed(rows))) == in_order
    assert place.text(in_order).count(b"\n") == 21
    assert b"7\t/x/1\t70\t10\thint7\t\n" in place.text(in_order)


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([0, 2], "expected sample_id 1 but found 2"),
        ([0, 1, 1], "expected sample_id 2 but found 1"),
        ([1, 2], "expected sample_id 0 but found 1"),
    ],
)
def test_e2_07_gap_or_duplicate_id_is_refused(place, ids, says):
    with pytest.raises(ManifestError, match=says):
        place.hash(dev_manifest_path=place.table(*(f"{i}\t/x" for i in ids)))
    assert not place.pointer().exists()
    assert not place.lock().exists()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("0\t/x\t1", "line 1: 3 columns; byte_offset and byte_length"),
        ("0\t/x\t1\t", "line 1: byte_offset and byte_length"),
        ("0\t/x\t\t1", "line 1: byte_offset and byte_length"),
        ("0\t/x\t1\t0", "line 1: byte_length is 0"),
        ("0\t \t1\t1", "line 1: the location is blank"),
        ("0", "line 1: '0' has one column"),
        ("x\t/x", "line 1: sample_id 'x' is not a whole number"),
        ("0\t/x\t-1\t1", "line 1: byte_offset '-1'"),
        ("0\t/x\t1\t1.5", "line 1: byte_length '1.5'"),
        ("0\t/x\t\t\tmx8:vision:imagefolder;label_id=x", "label_id"),
    ],
)
def test_e2_08_rows_that_cannot_be_meant_are_refused_by_line(place, row, says):
    with pytest.raises(ManifestError, match=says):
        place.hash(dev_manifest_path=place.table(row))


def test_e2_09_comments_and_blank_lines_of_a_table_are_ignored(place):
    plain = place.hash("@refresh", dev_manifest_path=place.table("0\t/x", "1\t/y"))
    table = place.table("# head", "", "0\t/x", "  ", "  # more", "1\t/y\t\t\t\textra\tcolumns")
    assert place.hash("@refresh", dev_manifest_path=table) == plain


def test_a_table_with_other_line_ends_and_no_last_newline_reads_the_same(place):
    plain = place.hash("@refresh", dev_manifest_path=place.table("0\t/x", "1\t/y"))
    table = place.table()
    table.write_bytes(b"1\t/y\r\n0\t/x")
    assert place.hash("@refresh", dev_manifest_path=table) == plain


def test_e2_20_a_missing_table_is_an_io_error(place):
    with pytest.raises(ObjectNotFound, match=r"nowhere\.tsv") as caught:
        place.hash(dev_manifest_path=place.root / "nowhere.tsv")
    assert isinstance(caught.value, OSError) and isinstance(caught.value, RuntimeError)


def test_a_table_without_rows_is_an_empty_dataset(place):
    with pytest.raises(EmptyDataset, match="no rows"):
        place.hash(dev_manifest_path=place.table("# nothing"))


def test_the_table_may_come_from_the_environment(place, monkeypatch):
    monkeypatch.setenv("MX8_DEV_MANIFEST_PATH", str(place.table("0\t/from-the-environment")))
    assert b"/from-the-environment" in place.text(place.hash())


# --- plain, refresh, pinned
# ---------------------------------------------------------------------------------------


def test_e2_10_a_plain_link_keeps_its_manifest_until_a_refresh(place, proofs):
    place.files("a")
    first = place.hash()
    place.files("b")
    assert place.hash() == first
    second = place.hash("@refresh")
    assert second != first
    assert place.hash() == second
    modes = [fields["mode"] for _, fields in proofs("snapshot_resolved")]
    assert modes == ["create", "plain", "refresh", "plain"]
    assert [fields["hash"] for _, fields in proofs("snapshot_indexed")] == [first, second]


def test_e2_03_a_slash_at_the_end_of_the_base_makes_no_other_intent(place):
    place.files("a")
    first = place.hash()
    place.files("b")
    assert place.hash(base=f"{place.data}//") == first


def test_e2_11_a_plain_link_with_a_pointer_ignores_the_table(place):
    place.files("a")
    first = place.hash()
    assert place.hash(dev_manifest_path=place.table("0\t/x")) == first
    assert place.hash(dev_manifest_path="/does/not/exist") == first


def test_e2_12_a_pinned_link_needs_no_base_and_an_unknown_hash_is_an_error(place):
    place.files("a")
    manifest_hash = place.hash()
    pointer = place.pointer().stat()
    assert place.hash(f"@sha256:{manifest_hash}", base="s3://nowhere.invalid/x") == manifest_hash
    resolved = resolve(f"/gone@sha256:{manifest_hash}", manifest_store_root=place.root)
    assert resolved.location(0) == "/gone/a"
    assert place.pointer().stat().st_mtime_ns == pointer.st_mtime_ns
    with pytest.raises(ManifestNotFound, match="manifest not found: beef"):
        place.hash("@sha256:beef")
    with pytest.raises(ManifestNotFound, match=r"manifest not found: beef.*; name the manifest store that has it"):
        resolve(f"{place.data}@sha256:beef", manifest_store_root=place.root)


def test_a_manifest_store_that_cannot_be_written_says_what_it_is_and_how_to_have_another(place):
    place.files("a")
    place.root = place.data / "a"  # a file: even root can't make folders in it
    told = rf"{place.root}.*That is where manifests are kept.*PENSTOCK_MANIFEST_STORE_ROOT"
    for use in (place.hash, lambda: resolve(str(place.data), manifest_store_root=place.root)):
        with pytest.raises(StoreError, match=told):
            use()


@pytest.mark.parametrize("call", ["hash", "open"])
def test_a_pinned_manifest_that_was_changed_is_refused(place, call):
    place.files("a")
    manifest_hash = place.hash()
    kept = place.root / "by-hash" / manifest_hash
    kept.write_bytes(kept.read_bytes().replace(b"a", b"b"))
    with pytest.raises(ManifestError, match=manifest_hash):
        if call == "hash":
            place.hash(f"@sha256:{manifest_hash}")
        else:
            resolve(f"{place.data}@sha256:{manifest_hash}", manifest_store_root=place.root)


def test_e2_13_other_bytes_under_a_hash_are_a_collision_and_equal_ones_are_not(place):
    place.files("a")
    manifest_hash = place.hash()
    kept = place.root / "by-hash" / manifest_hash
    written = kept.stat()
    assert place.hash("@refresh") == manifest_hash
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    for other in (b"something else", kept.read_bytes().replace(b"a", b"b")):
        kept.write_bytes(other)
        with pytest.raises(ManifestError, match="do not match existing content for hash"):
            place.hash("@refresh")
        assert kept.read_bytes() == other


@pytest.mark.parametrize("bad", ["a/b", "a\\b", "..", "a..b", "../../etc/passwd"])
def test_e2_14_a_hash_that_is_a_path_is_refused(place, bad):
    place.files("a")
    with pytest.raises(ConfigError, match="manifest hash"):
        place.hash(f"@sha256:{bad}")


def test_e2_02_an_empty_link_is_a_link_error(place):
    for link in ("", "  ", "@refresh"):
        with pytest.raises(LinkError):
            resolve_manifest_hash(link, manifest_store_root=place.root)


def test_a_folder_named_from_here_is_not_the_one_of_that_name_elsewhere(place, monkeypatch, tmp_path):
    place.files("a")
    (tmp_path / "other" / "data").mkdir(parents=True)
    (tmp_path / "other" / "data" / "b").write_bytes(b"b")
    monkeypatch.chdir(tmp_path)
    here = place.hash(base="data")
    assert here == place.hash()
    monkeypatch.chdir(tmp_path / "other")
    assert place.hash(base="data") != here


def test_a_pointer_to_nothing_says_what_to_do(place):
    place.files("a")
    manifest_hash = place.hash()
    (place.root / "by-hash" / manifest_hash).unlink()
    with pytest.raises(ManifestNotFound, match="@refresh"):
        place.hash()
    assert place.hash("@refresh") == manifest_hash


def test_an_empty_pointer_counts_as_none(place):
    place.files("a")
    place.pointer().parent.mkdir(parents=True)
    place.pointer().write_text(" \n")
    assert place.pointer().read_text().strip() == ""
    assert place.hash() == place.pointer().read_text().strip()


def test_the_default_store_is_the_one_of_the_environment(place, monkeypatch):
    place.files("a")
    monkeypatch.setenv("MX8_MANIFEST_STORE_ROOT", str(place.root))
    assert place.text(resolve_manifest_hash(str(place.data)))


# --- indexing
# -----------------------------------------------------------------------------------------------------


def test_e2_18_a_folder_is_indexed_sorted_without_labels_or_ranges(place):
    place.files("b/1", "b-c/1", "b/0", "a", "b.d", "_mx8/x", "b/_mx8/y", "shards/z", "c/shards/z", "ü", "b/shards.x")
    (place.data / "link").symlink_to(place.data / "a")
    (place.data / "loop").symlink_to(place.data)
    (place.data / "empty").mkdir()
    resolved = resolve(f"{place.data}@refresh", manifest_store_root=place.root)
    manifest = resolved.manifest
    names = [manifest.location(i) for i in range(manifest.location_count)]
    # The parts of a path compare one by one: b/1 before b-c/1, although "-" sorts before "/".
    assert names == ["a", "b/0", "b/1", "b/shards.x", "b-c/1", "b.d", "ü"]
    assert manifest.label_id.tolist() == manifest.offset.tolist() == manifest.length.tolist() == [-1] * 7
    assert [resolved.location(i) for i in range(2)] == [f"{place.data}/a", f"{place.data}/b/0"]
    assert manifest.location_index.tolist() == list(range(7))


def test_e2_04_version_0_has_canonical_absolute_paths(place, tmp_path):
    place.files("b/c", "a")
    (tmp_path / "alias").symlink_to(place.data)
    manifest_hash = place.hash(base=tmp_path / "alias", manifest_version=0)
    expected = f"schema_version=0\n0\t{place.data}/a\t\t\t\n1\t{place.data}/b/c\t\t\t\n"
    assert place.text(manifest_hash).decode() == expected
    resolved = resolve(f"x@sha256:{manifest_hash}", manifest_store_root=place.root)
    assert resolved.location(1) == f"{place.data}/b/c"


def test_a_dataset_that_moves_keeps_its_hash(place, tmp_path):
    place.files("b/c", "a")
    first = place.hash()
    place.data.rename(tmp_path / "moved")
    assert place.hash(base=tmp_path / "moved") == first


def test_e2_19_an_empty_folder_and_an_unsupported_base_are_distinct_errors(place, proofs):
    with pytest.raises(EmptyDataset, match="local index produced zero files"):
        place.hash()
    for base in ("ftp://host/x", "/does/not/exist", "https://host/x"):
        says = f"indexing is not supported for dataset link base: {base}"
        with pytest.raises(ResolveError, match=says) as caught:
            place.hash(base=base)
        assert not isinstance(caught.value, EmptyDataset)
    assert len(proofs("snapshot_index_empty")) == 1
    assert list(place.root.rglob("*.lock")) == []


@pytest.mark.parametrize("name", ["a\tb", "a\nb", "bad\udcff"])
def test_a_name_that_a_manifest_cannot_write_is_named(place, name):
    place.files("a", "b")
    with open(os.fsencode(place.data / "c") + os.fsencode(name), "wb") as file:
        file.write(b"x")
    with pytest.raises(ManifestError, match="rename the file") as caught:
        place.hash()
    assert repr(f"c{name}")[1:-1] in str(caught.value)
    assert str(place.data) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_folder_is_named(place):
    place.files("a", "locked/b")
    (place.data / "locked").chmod(0)
    try:
        with pytest.raises(AccessDenied, match="locked"):
            place.hash()
    finally:
        (place.data / "locked").chmod(0o700)


def packed(place, text):
    (place.data / "_mx8").mkdir(exist_ok=True)
    (place.data / "_mx8" / "manifest.tsv").write_bytes(text)


V0 = b"schema_version=0\n0\t/x/s.tar\t512\t3\tmx8:vision:imagefolder;label_id=1\n1\t/x/s.tar\t1536\t9\t\n"
V1 = b"schema_version=1\n0\tshards/s.tar\t512\t3\t\t0000000a\n"


@pytest.mark.parametrize("text", [V0, V1])
@pytest.mark.parametrize("asked", [0, 1])
def test_a_packed_manifest_is_taken_as_it_is_in_its_own_version(place, proofs, text, asked):
    place.files("ignored")
    packed(place, text)
    manifest_hash = place.hash(manifest_version=asked)
    assert manifest_hash == hashlib.sha256(text).hexdigest()
    assert place.text(manifest_hash) == text
    assert len(proofs("snapshot_index_precomputed_manifest")) == 1


@pytest.mark.parametrize("text", [V0, V1])
def test_a_packed_manifest_with_other_line_ends_is_made_canonical(place, text):
    packed(place, b"\r\n" + text.replace(b"\n", b"\r\n\r\n"))
    assert place.text(place.hash()) == text


def test_a_packed_manifest_with_fewer_columns_is_made_canonical(place):
    packed(place, b"schema_version=0\n0\ta\n01\tb\t07\t1")
    assert place.text(place.hash()) == b"schema_version=0\n0\ta\t\t\t\n1\tb\t7\t1\t\n"


def test_a_packed_manifest_that_lies_is_named_with_its_line(place):
    packed(place, V1 + b"5\tx\n")
    with pytest.raises(ManifestError, match=r"_mx8/manifest\.tsv: line 3: expected sample_id 1 but found 5"):
        place.hash()
    packed(place, b"schema_version=1\n")
    with pytest.raises(EmptyDataset, match="has no rows"):
        place.hash()


# --- locks
# --------------------------------------------------------------------------------------------------------


def test_e2_17_the_lock_has_three_lines_while_it_is_held_and_is_gone_afterwards(place, monkeypatch):
    place.files("a")
    seen = []

    def spy(*arguments, **options):
        seen.append(place.lock().read_text())
        return write_index(*arguments, **options)

    monkeypatch.setattr(resolve_module, "write_index", spy)
    before_ms = int(time.time() * 1000)
    place.hash(node_id="node-7")
    (text,) = seen
    stamp, pid, node = text.splitlines()
    assert text.endswith("\n")
    assert before_ms <= int(stamp.removeprefix("unix_time_ms=")) <= time.time() * 1000
    assert (pid, node) == (f"pid={os.getpid()}", "node_id=node-7")
    assert not place.lock().exists()
    assert place.hash("@refresh")
    assert seen[1].splitlines()[2] == "node_id="


def test_e2_17_the_lock_is_gone_after_a_failure_too(place):
    with pytest.raises(EmptyDataset):
        place.hash()
    assert not place.lock().exists()
    place.files("a")
    assert place.hash()


def test_e2_16_a_lock_older_than_the_stale_age_is_reaped(place, proofs):
    place.files("a")
    write_lock(place, age_s=61)
    started = time.monotonic()
    assert place.hash()
    assert time.monotonic() - started < 10
    assert not place.lock().exists()
    assert len(proofs("snapshot_indexer_elected")) == 1


@pytest.mark.parametrize("stale_ms", ["60000", "0"])
def test_e2_16_a_fresh_lock_is_waited_for_until_the_wait_times_out(place, monkeypatch, proofs, stale_ms):
    monkeypatch.setenv("PENSTOCK_SNAPSHOT_WAIT_TIMEOUT_MS", "300")
    monkeypatch.setenv("PENSTOCK_SNAPSHOT_LOCK_STALE_MS", stale_ms)
    place.files("a")
    write_lock(place, age_s=3600 if stale_ms == "0" else 50)
    before = place.lock().read_text()
    with pytest.raises(DeadlineExceeded, match=r"snapshot wait timed out after 0\.3 s"):
        place.hash()
    assert place.lock().read_text() == before
    assert [event for event, _ in proofs("snapshot_index_wait", "snapshot_index_wait_timeout")] == [
        "snapshot_index_wait",
        "snapshot_index_wait_timeout",
    ]


@pytest.mark.parametrize("text", ["", "garbage", "unix_time_ms=x\npid=1\n", "pid=1\nnode_id=\n"])
def test_e2_16_an_unparsable_lock_is_never_reaped(place, monkeypatch, text):
    monkeypatch.setenv("PENSTOCK_SNAPSHOT_WAIT_TIMEOUT_MS", "200")
    monkeypatch.setenv("PENSTOCK_SNAPSHOT_LOCK_STALE_MS", "1")
    place.files("a")
    write_lock(place, text=text)
    with pytest.raises(DeadlineExceeded):
        place.hash()
    assert place.lock().read_text() == text


def while_waiting(place, proofs, work):
    """Run ``work`` once the resolution under test has begun to wait."""

    def run():
        wait_until(lambda: proofs("snapshot_index_wait"), within_s=20)
        work()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_refresh_that_waits_never_returns_the_old_pointer(place, proofs):
    place.files("a")
    old = place.hash()
    write_lock(place)

    def finish():
        (place.root / "by-hash" / ("0" * 64)).write_bytes(b"")
        place.pointer().write_text("0" * 64)
        place.lock().unlink()

    thread = while_waiting(place, proofs, finish)
    assert place.hash("@refresh") == "0" * 64 != old
    thread.join()
    assert [fields["mode"] for _, fields in proofs("snapshot_resolved")] == ["create", "wait"]


def test_a_refresh_that_waits_takes_a_new_pointer_to_the_same_hash(place, proofs):
    place.files("a")
    old = place.hash()
    write_lock(place)
    store = open_store(str(place.root))
    key = str(place.pointer().relative_to(place.root))
    thread = while_waiting(place, proofs, lambda: store.put(key, f"{old}\n".encode()))
    assert place.hash("@refresh") == old
    thread.join()
    assert place.lock().exists()
    assert len(proofs("snapshot_indexer_elected")) == 1


def test_a_refresh_indexes_itself_when_the_holder_goes_without_a_pointer(place, proofs):
    place.files("a")
    old = place.hash()
    place.files("b")
    write_lock(place)
    thread = while_waiting(place, proofs, lambda: place.lock().unlink())
    assert place.hash("@refresh") != old
    thread.join()
    assert len(proofs("snapshot_indexer_elected")) == 2


def test_a_holder_that_lost_its_lock_publishes_nothing(place, monkeypatch, proofs):
    place.files("a")

    def lose_the_lock(*arguments, **options):
        written = write_index(*arguments, **options)
        if len(proofs("snapshot_indexer_elected")) == 1:
            place.pointer().parent.mkdir(parents=True, exist_ok=True)
            place.pointer().write_text("1" * 64)
        return written

    (place.root / "by-hash").mkdir(parents=True)
    (place.root / "by-hash" / ("1" * 64)).write_bytes(b"")
    monkeypatch.setattr(resolve_module, "write_index", lose_the_lock)
    assert place.hash() == "1" * 64
    assert place.pointer().read_text() == "1" * 64


def test_a_held_lock_is_renewed_and_notices_a_thief(place):
    store = open_store(str(place.root))
    key = intent_key(str(place.data))
    lock = IntentLock.try_take(store, key, node_id="n", stale_ms=60_000)
    assert lock is not None
    with lock:
        first = place.lock().read_text()
        time.sleep(0.002)
        lock.renew()
        renewed = place.lock().read_text()
        assert renewed != first and renewed.splitlines()[1:] == first.splitlines()[1:]
        assert not lock.lost
        assert IntentLock.try_take(store, key, node_id="m", stale_ms=1) is None
        write_lock(place)
        lock.renew()
        assert lock.lost
        stolen = place.lock().read_text()
    assert place.lock().read_text() == stolen


def test_a_lock_that_is_held_by_a_living_process_is_not_taken_however_old(place):
    store = open_store(str(place.root))
    key = intent_key(str(place.data))
    lock = IntentLock.try_take(store, key, node_id="", stale_ms=60_000)
    assert lock is not None
    with lock:
        time.sleep(0.005)
        assert IntentLock.try_take(store, key, node_id="", stale_ms=1) is None
    again = IntentLock.try_take(store, key, node_id="", stale_ms=0)
    assert again is not None
    with again:
        pass
    assert not place.lock().exists()


def test_a_node_id_of_two_lines_is_refused(place):
    place.files("a")
    with pytest.raises(ConfigError, match="node_id"):
        place.hash(node_id="a\nb")


def test_eight_threads_refreshing_elect_one_indexer(place, monkeypatch, proofs):
    place.files("a")
    all_began = threading.Event()

    def wait_for_the_others(*arguments, **options):
        assert all_began.wait(20)
        return write_index(*arguments, **options)

    monkeypatch.setattr(resolve_module, "write_index", wait_for_the_others)
    hashes = []
    threads = [threading.Thread(target=lambda: hashes.append(place.hash("@refresh"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(proofs("snapshot_index_wait")) >= 7, within_s=20)
    all_began.set()
    for thread in threads:
        thread.join()
    assert len(hashes) == 8 and len(set(hashes)) == 1
    assert len(proofs("snapshot_indexer_elected")) == 1


def test_a_table_that_is_no_regular_file_is_refused_and_never_waited_for(place, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(StoreError, match="regular file"):
            place.hash(dev_manifest_path=path)


FULL = """
import resource, sys
from penstock.errors import PenstockError
from penstock.dataset.resolve import resolve
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    resolve(sys.argv[1], manifest_store_root=sys.argv[2])
except PenstockError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("room", [10_000, 40_000])
def test_no_room_is_named_and_leaves_no_lie(place, room):
    place.files(*(f"name-of-a-file-{i}" for i in range(1000)))
    command = [sys.executable, "-c", FULL, str(place.data), str(place.root), str(room)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    # The text has 30 kB, its columns more: with little room there is no manifest, with more of it no columns.
    assert done.stdout.startswith("StoreFull"), done.stdout + done.stderr
    assert not place.lock().exists()
    if room < 30_000:
        assert not place.pointer().exists()
    assert place.hash() == place.hash("@refresh")
    assert not [file for file in place.root.rglob("*") if file.name.startswith(".")]
