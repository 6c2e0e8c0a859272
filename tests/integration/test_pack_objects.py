"""Packing from, to and between prefixes of a real S3 server."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from packing import in_byte_order, make_tree, payloads_of, random_files, tree_of

from penstock.dataset.resolve import resolve_manifest_hash
from penstock.errors import AccessDenied, EmptyDataset, PackError, PenstockError, SampleChanged
from penstock.packing import Progress, pack, pack_dir
from penstock.store import Store, open_store, split_location
from penstock.testing.fault_proxy import Fault, Request

pytestmark = pytest.mark.s3

FILES = random_files(60, largest=60_000) | {
    "class 0/é ü+%20.jpg": b"odd",
    "class 1/deep/er/x": b"y" * 513,
    "class 2/in pieces.bin": b"0123456789abcdef" * (9 << 16),
}


def upload(url: str, files: dict[str, bytes]) -> Store:
    store = open_store(url)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: store.put(*item), files.items()))
    return store


def listing(url: str) -> dict[str, str]:
    store = open_store(url)
    return {found.key: hashlib.sha256(store.read(found.key)).hexdigest() for found in store.list()}


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """The same files in a folder, and what packing that gives."""
    source = make_tree(tmp_path / "in", FILES)
    pack_dir(source, out=tmp_path / "reference", shard_mb=1)
    return source, tree_of(tmp_path / "reference")


def test_s3_to_s3_gives_the_bytes_that_folder_to_folder_gives(s3_root, packed):
    upload(f"{s3_root}/raw", FILES)
    result = pack(f"{s3_root}/raw/", out=f"{s3_root}/packed/", shard_mb=1)
    assert listing(f"{s3_root}/packed") == packed[1]
    prefix = split_location(f"{s3_root}/packed")[1]
    assert result == {
        "samples": len(FILES),
        "shards": sum(key.startswith("shards/") for key in packed[1]),
        "manifest_key": f"{prefix}/_mx8/manifest.tsv",
        "manifest_hash": packed[1]["_mx8/manifest.tsv"],
        "labels_key": f"{prefix}/_mx8/labels.tsv",
        "labels_hash": packed[1]["_mx8/labels.tsv"],
    }


def test_folder_to_s3_and_s3_to_folder(s3_root, tmp_path, packed):
    pack(packed[0], out=s3_root, shard_mb=1)
    assert listing(s3_root) == packed[1]
    upload(f"{s3_root}/raw", FILES)
    pack(f"{s3_root}/raw", out=tmp_path / "out", shard_mb=1)
    assert tree_of(tmp_path / "out") == packed[1]
    assert payloads_of(tmp_path / "out") == [data for _, data in in_byte_order(FILES)]


def test_e2_26_the_hash_is_what_the_link_resolves_to(s3_root, tmp_path, packed):
    result = pack(packed[0], out=s3_root, shard_mb=1)
    assert resolve_manifest_hash(f"{s3_root}@refresh", manifest_store_root=tmp_path / "m") == result["manifest_hash"]


def test_version_0_names_shards_by_their_urls(s3_root, packed):
    pack(packed[0], out=s3_root, manifest_version=0)
    rows = open_store(s3_root).read("_mx8/manifest.tsv").decode().split("\n")
    assert rows[0] == "schema_version=0"
    assert rows[1].split("\t")[:3] == ["0", f"{s3_root}/shards/shard-00000.tar", "512"]


def test_a_prefix_packs_onto_itself_again_and_again(s3_root, packed):
    upload(s3_root, FILES)
    first = pack(s3_root, out=s3_root, shard_mb=1)
    assert pack(s3_root, out=s3_root, shard_mb=1) == first
    assert {key: digest for key, digest in listing(s3_root).items() if key in packed[1]} == packed[1]
    assert set(listing(s3_root)) == set(packed[1]) | set(FILES)


def test_only_what_a_pack_writes_is_skipped(s3_root, tmp_path):
    others = {"shards/mine.tar": b"1", "x/shards/shard-00000.tar": b"2", "x/_mx8/y": b"3", "shards/shard-1.tar": b"4"}
    upload(s3_root, others | {"_mx8/anything": b"5", "shards/shard-00007.tar": b"6"})
    pack(s3_root, out=tmp_path / "out")
    assert payloads_of(tmp_path / "out") == [data for _, data in in_byte_order(others)]


def test_a_new_pack_leaves_no_surplus_shards_and_no_old_labels(s3_root, packed):
    pack(packed[0], out=s3_root, shard_mb=1)
    pack(packed[0], out=s3_root, label_mode="none")
    assert set(listing(s3_root)) == {"_mx8/manifest.tsv", "shards/shard-00000.tar"}


def test_nothing_there_and_empty_objects(s3_root, tmp_path):
    with pytest.raises(EmptyDataset, match="zero files"):
        pack(f"{s3_root}/nothing", out=tmp_path / "out")
    upload(s3_root, {"a/1": b"x", "a/empty": b""})
    with pytest.raises(PackError, match="a/empty has zero length"):
        pack(s3_root, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [1000, 9 << 20], ids=["small", "in pieces"])
@pytest.mark.parametrize("how", ["grew", "shrank"])
def test_an_object_that_changes_its_size_is_named(s3_root, tmp_path, size, how):
    store = upload(s3_root, {"a/1": b"x", "a/victim": bytes(size)})
    changed = []

    def change(report: Progress) -> None:
        if report.stage == "copy" and not changed:
            changed.append(store.put("a/victim", bytes(size + 1 if how == "grew" else size - 1)))

    with pytest.raises(SampleChanged, match="a/victim"):
        pack(s3_root, out=tmp_path / "out", progress=change)
    assert not (tmp_path / "out").exists()


def test_wrong_credentials_say_so_before_anything_is_read(s3_root, monkeypatch, packed):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    reports = []
    with pytest.raises(AccessDenied):
        pack(packed[0], out=s3_root, progress=reports.append)
    assert reports == []


def test_a_failure_before_the_first_shard_is_complete_leaves_the_old_dataset(s3_root, packed, tmp_path):
    pack(packed[0], out=s3_root, shard_mb=1)
    before = listing(s3_root)
    (packed[0] / "class 2/zz empty").touch()
    with pytest.raises(PackError):
        pack(packed[0], out=s3_root)
    assert listing(s3_root) == before


def test_a_first_pack_that_fails_half_way_removes_its_shards(s3_root, packed):
    victim = packed[0] / "class 2" / max(path.name for path in (packed[0] / "class 2").iterdir())

    def cut(report: Progress) -> None:
        if report.stage == "copy":
            victim.write_bytes(b"short")

    with pytest.raises(SampleChanged):
        pack(packed[0], out=s3_root, shard_mb=1, progress=cut)
    assert listing(s3_root) == {}


PACK = """
import sys
from penstock.packing import pack
def tell(report):
    print(report.stage, report.done_samples, flush=True)
pack(sys.argv[1], out=sys.argv[2], shard_mb=1, progress=tell)
"""


@pytest.mark.parametrize("lines", [2, 4, 7])
def test_kill_9_leaves_no_manifest_that_lies_and_the_next_pack_is_whole(s3_root, packed, lines):
    source, reference = packed
    pack(source, out=s3_root, label_mode="none")  # the old dataset, in one shard
    old = listing(s3_root)
    with subprocess.Popen([sys.executable, "-c", PACK, source, s3_root], stdout=subprocess.PIPE, text=True) as packing:
        for _ in range(lines):
            packing.stdout.readline()
        packing.kill()
    found = listing(s3_root)
    assert "_mx8/manifest.tsv" not in found or found in (old, reference)
    pack(source, out=s3_root, shard_mb=1)
    assert listing(s3_root) == reference


def test_faults_on_the_way_change_no_byte(s3_proxy, s3_root, packed):
    upload(f"{s3_root}/raw", FILES)
    cuts = itertools.cycle([Fault(cut_after_bytes=50), Fault(cut_after_bytes=50, reset=True)])

    def every_seventh(request: Request) -> Fault | None:
        if request.index % 7 != 6:
            return None
        return next(cuts) if request.method == "GET" and request.index % 2 else Fault(status=503)

    s3_proxy.clear()
    s3_proxy.add_rule(every_seventh)
    pack(f"{s3_root}/raw", out=f"{s3_root}/packed", shard_mb=1)
    assert len(s3_proxy.requests) > len(FILES) + 10
    s3_proxy.clear()
    assert listing(f"{s3_root}/packed") == packed[1]


def test_a_dead_server_is_a_typed_error(s3_root, monkeypatch, packed):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PENSTOCK_STORE_RETRIES", "1")
    with pytest.raises(PenstockError):
        pack(packed[0], out=s3_root)
