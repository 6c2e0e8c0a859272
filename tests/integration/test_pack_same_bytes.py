"""The same input packs to the same bytes, on any machine, in any place."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packing import make_tree, random_files, tree_of

from penstock.packing import pack_dir

FILES = random_files(40) | {"class 0/é.jpg": b"e", "class 1/a b\tc": b"f", "Zebra/x.tar.gz": b"g" * 513}

SHARD_SHA256 = "28394e0515cda570242c9b0e8b3ec6517dbf1025d41ce075494f7168c7fdceac"


def test_e2_25_times_owners_rights_and_the_order_of_making_make_no_difference(tmp_path):
    first = make_tree(tmp_path / "first", FILES)
    shuffled = list(FILES.items())
    random.Random(7).shuffle(shuffled)
    second = make_tree(tmp_path / "elsewhere/deep/second", dict(shuffled))
    for index, name in enumerate(FILES):
        os.utime(second / name, (index, 1_000_000_000 + index))
        (second / name).chmod(0o400 + index % 0o100)
        if os.geteuid() == 0:
            os.chown(second / name, index, index)
    (second / "empty folder").mkdir()
    one = pack_dir(first, out=tmp_path / "out1", shard_mb=1)
    two = pack_dir(second, out=tmp_path / "somewhere/else/out2", shard_mb=1)
    assert tree_of(tmp_path / "out1") == tree_of(tmp_path / "somewhere/else/out2")
    assert one["manifest_hash"] == two["manifest_hash"]


PACK = """
import os, sys
os.umask(int(sys.argv[3], 8))
from penstock.packing import pack_dir
pack_dir(sys.argv[1], out=sys.argv[2], shard_mb=1)
"""


def test_e2_25_locale_umask_and_hash_seed_make_no_difference(tmp_path):
    source = make_tree(tmp_path / "in", FILES)
    pack_dir(source, out=tmp_path / "reference", shard_mb=1)
    surroundings = [
        ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, "000"),
        ({"LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "42"}, "077"),
    ]
    for index, (variables, umask) in enumerate(surroundings):
        out = tmp_path / f"out{index}"
        environment = {**os.environ, **variables}
        subprocess.run([sys.executable, "-c", PACK, source, out, umask], env=environment, check=True)
        assert tree_of(out) == tree_of(tmp_path / "reference")


def test_e2_25_the_bytes_of_a_shard_are_pinned(tmp_path):
    """A change of these numbers changes every user's shards: make it on purpose or not at all."""
    pack_dir(make_tree(tmp_path / "in", {"a/1.txt": b"one", "b/2": b"two" * 400}), out=tmp_path / "out")
    shard = (tmp_path / "out/shards/shard-00000.tar").read_bytes()
    assert len(shard) == 512 + 512 + 512 + 1536 + 1024
    assert hashlib.sha256(shard).hexdigest() == SHARD_SHA256
    assert (tmp_path / "out/_mx8/manifest.tsv").read_text() == (
        "schema_version=1\n"
        "0\tshards/shard-00000.tar\t512\t3\tmx8:vision:imagefolder;label_id=0\t2a94b2e9\n"
        "1\tshards/shard-00000.tar\t1536\t1200\tmx8:vision:imagefolder;label_id=1\tf98d6498\n"
    )


def test_e2_25_segments_and_shards_know_nothing_of_what_a_buffer_held_before(tmp_path):
    """Reused buffers: padding must be zero after a segment of ones."""
    files = {f"a/{index:04d}": b"\xff" * (9000 + index) for index in range(3000)}  # some segments full of ones
    out = tmp_path / "out"
    pack_dir(make_tree(tmp_path / "in", files), out=out)
    data = (out / "shards/shard-00000.tar").read_bytes()
    at = 0
    for index in range(3000):
        size = 9000 + index
        assert data[at + 512 : at + 512 + size] == b"\xff" * size
        end = at + 512 + size + -size % 512
        assert not any(data[at + 512 + size : end])
        at = end
    assert data[at:] == bytes(1024)


def test_the_source_path_is_in_no_byte(tmp_path):
    marker = "unmistakable-folder-name"
    pack_dir(make_tree(tmp_path / marker, FILES), out=tmp_path / marker / "out")
    for path in Path(tmp_path / marker / "out").rglob("*.*"):
        assert marker.encode() not in path.read_bytes()


def test_version_0_is_byte_for_byte_what_the_seed_system_packs(tmp_path):
    mx8 = pytest.importorskip("mx8", reason="the seed system itself, a peer in the benchmarks")
    names = (".hidden", "dot.", "x.JPEG", "y.tar.gz", "z.toolongext", "é.jpg", "x.éééé", "x.ééééé", "x.12345678", "x")
    files = FILES | {f"a-b/{index}{name}": b"x" * (511 + index) for index, name in enumerate(names)}
    source, out = make_tree(tmp_path / "in", files), tmp_path / "out"
    mx8.pack_dir(str(source), out=str(out), shard_mb=1)
    expected = tree_of(out)
    shutil.rmtree(out)
    pack_dir(source, out=out, shard_mb=1, manifest_version=0)
    assert tree_of(out) == expected
