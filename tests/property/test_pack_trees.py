"""Any tree of files packs so that every sample comes back, whatever the names, sizes, shards and segments."""

from __future__ import annotations

import os
import tarfile
import tempfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock import _core
from penstock.dataset.labels import label_id_of, read_labels
from penstock.errors import PackError
from penstock.packing import gather, pack_dir, run

NAMES = (
    st.binary(min_size=1, max_size=12)
    .map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"0"))
    .filter(lambda name: name not in (b".", b"..", b"_mx8", b"shards"))
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
TREES = st.dictionaries(PATHS, st.integers(1, 6000), min_size=1, max_size=25).filter(
    lambda tree: not any(other.startswith(path + b"/") for path in tree for other in tree)
)


def write_tree(root: bytes, tree: dict[bytes, int]) -> dict[bytes, bytes]:
    contents = {path: (path * size)[:size] for path, size in tree.items()}
    for path, data in contents.items():
        os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
        with open(os.path.join(root, path), "wb") as file:
            file.write(data)
    return contents


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(TREES, st.integers(1, 40_000), st.integers(1025, 20_000), st.sampled_from(["auto", "none", "imagefolder"]))
def test_every_sample_comes_back(tree, shard_bytes, segment_bytes, mode):
    every_file_has_a_label = all(b"/" in path for path in tree)
    labels = sorted({path.split(b"/")[0] for path in tree if b"/" in path})
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for module in (gather, run):
            patch.setattr(module, "SEGMENT_BYTES", segment_bytes)
        out = f"{folder}/out"
        contents = write_tree(os.fsencode(f"{folder}/in"), tree)
        if mode == "imagefolder" and not every_file_has_a_label:
            with pytest.raises(PackError, match="requires files under"):
                pack_dir(f"{folder}/in", out=out, label_mode=mode)
            assert os.listdir(folder) == ["in"]
            return
        result = pack_dir(f"{folder}/in", out=out, shard_mb=shard_bytes / (1 << 20), label_mode=mode)
        shards = [f"{out}/shards/shard-{number:05d}.tar" for number in range(result["shards"])]
        found_hints = check_samples(out, shards, [contents[path] for path in sorted(contents)])
        check_labels(out, mode, labels if every_file_has_a_label else [], sorted(contents), found_hints)


def check_samples(out: str, shards: list[str], expected: list[bytes]) -> list[str]:
    members = []
    for shard in shards:
        with tarfile.open(shard, "r:") as archive:
            members += archive.getmembers()
    with open(f"{out}/_mx8/manifest.tsv", newline="") as file:
        rows = [line.split("\t") for line in file.read().split("\n")[1:-1]]
    assert len(rows) == len(expected) == len(members)
    for sample_id, (row, payload, member) in enumerate(zip(rows, expected, members, strict=True)):
        with open(f"{out}/{row[1]}", "rb") as shard:
            shard.seek(int(row[2]))
            assert shard.read(int(row[3])) == payload
        assert row[0] == str(sample_id)
        assert row[5] == f"{_core.crc32c(payload):08x}"
        assert (member.offset_data, member.size) == (int(row[2]), len(payload))
        assert member.name.startswith(f"{sample_id:020d}.")
    return [row[4] for row in rows]


def check_labels(out: str, mode: str, labels: list[bytes], paths: list[bytes], hints: list[str]) -> None:
    active = mode == "imagefolder" or (mode == "auto" and len(labels) >= 2)
    assert os.path.exists(f"{out}/_mx8/labels.tsv") == active
    if not active:
        assert set(hints) == {""}
        return
    with open(f"{out}/_mx8/labels.tsv", "rb") as file:
        read = [os.fsencode(label) for label in read_labels(file.read())]
    assert read == labels
    assert [read[label_id_of(hint)] for hint in hints] == [path.split(b"/")[0] for path in paths]
