from __future__ import annotations

import hashlib
import logging
import os
import tarfile
from contextlib import nullcontext
from pathlib import Path

import pytest
from packing import in_byte_order, make_tree, payloads_of, random_files, rows_of, tree_of

import penstock
from penstock import _core
from penstock.dataset.labels import read_labels
from penstock.dataset.resolve import resolve_manifest_hash
from penstock.errors import ConfigError, EmptyDataset, PackError
from penstock.packing import Progress, pack, pack_dir
from penstock.packing import gather as gather_module
from penstock.proof import LOGGER_NAME

TWO_CLASSES = {"cat/1.jpg": b"meow", "cat/2.jpg": b"purr", "dog/1.jpg": b"woof"}


def test_e2_21_a_labelled_pack_writes_exactly_shards_manifest_and_labels(tmp_path):
    result = pack_dir(make_tree(tmp_path / "in", TWO_CLASSES), out=tmp_path / "out")
    assert set(tree_of(tmp_path / "out")) == {
        "shards/shard-00000.tar",
        "_mx8/manifest.tsv",
        "_mx8/labels.tsv",
    }
    assert result == {
        "samples": 3,
        "shards": 1,
        "manifest_path": str(tmp_path / "out/_mx8/manifest.tsv"),
        "manifest_hash": hashlib.sha256((tmp_path / "out/_mx8/manifest.tsv").read_bytes()).hexdigest(),
        "labels_path": str(tmp_path / "out/_mx8/labels.tsv"),
        "labels_hash": hashlib.sha256((tmp_path / "out/_mx8/labels.tsv").read_bytes()).hexdigest(),
    }


def test_e2_21_an_unlabelled_pack_writes_no_labels_and_removes_old_ones(tmp_path):
    source, out = make_tree(tmp_path / "in", TWO_CLASSES), tmp_path / "out"
    pack_dir(source, out=out)
    result = pack_dir(source, out=out, label_mode="none")
    assert set(tree_of(out)) == {"shards/shard-00000.tar", "_mx8/manifest.tsv"}
    assert result["labels_path"] is None
    assert result["labels_hash"] is None


@pytest.mark.parametrize("version", [0, 1])
def test_e2_22_every_slice_equals_its_file(tmp_path, version):
    files = random_files(60) | {"deep/er/and/deeper.x": b"z" * 513}
    out = tmp_path / "out"
    pack_dir(make_tree(tmp_path / "in", files), out=out, shard_mb=1, manifest_version=version)
    assert payloads_of(out) == [data for _, data in in_byte_order(files)]
    rows = rows_of(out)
    assert [row.sample_id for row in rows] == list(range(len(files)))
    if version == 1:
        assert [row.crc32c for row in rows] == [f"{_core.crc32c(data):08x}" for _, data in in_byte_order(files)]
        assert rows[0].location == "shards/shard-00000.tar"
    else:
        assert rows[0].crc32c is None
        assert rows[0].location == str(out.resolve() / "shards/shard-00000.tar")


def test_e2_22_samples_come_in_the_byte_order_of_their_paths_not_component_wise(tmp_path):
    names = ["a/x", "a-b/x", "a.txt", "B/x", "a/é", "a/z", "ab"]
    pack_dir(make_tree(tmp_path / "in", {name: name.encode() for name in names}), out=tmp_path / "out")
    expected = sorted(name.encode() for name in names)
    assert expected.index(b"a-b/x") < expected.index(b"a/x"), "the two orders differ here"
    assert payloads_of(tmp_path / "out") == expected


def test_e2_23_tarfile_reads_the_shards(tmp_path):
    files = {"a/one.JPG": b"1" * 600, "a/two": b"22", "a/x.waytoolong": b"333", "b/y.tar.gz": b"4"}
    pack_dir(make_tree(tmp_path / "in", files), out=tmp_path / "out")
    with tarfile.open(tmp_path / "out/shards/shard-00000.tar", "r:") as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [
            "00000000000000000000.JPG",
            "00000000000000000001.bin",
            "00000000000000000002.bin",
            "00000000000000000003.gz",
        ]
        assert [archive.extractfile(member).read() for member in members] == list(files.values())
        assert {(member.mode, member.uid, member.gid, member.mtime) for member in members} == {(0o644, 0, 0, 0)}
        assert [row.offset for row in rows_of(tmp_path / "out")] == [member.offset_data for member in members]
    shard = (tmp_path / "out/shards/shard-00000.tar").read_bytes()
    assert len(shard) % 512 == 0
    assert shard.endswith(bytes(1024))
    assert len(shard) == sum(512 + -(-len(data) // 512) * 512 for data in files.values()) + 1024


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # its own
def test_e2_23_webdataset_reads_the_shards(tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="the benchmarks' peer, not a dependency")
    files = random_files(20)
    pack_dir(make_tree(tmp_path / "in", files), out=tmp_path / "out")
    url = str(tmp_path / "out/shards/shard-00000.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{index:020d}" for index in range(20)]
    assert [sample["jpg"] for sample in samples] == [data for _, data in in_byte_order(files)]


def test_e2_24_shards_split_at_the_limit_and_an_oversize_file_sits_alone(tmp_path):
    mib = 1 << 20
    files = {
        "a": b"a" * (mib // 2 - 512),  # with its header exactly half a shard
        "b": b"b" * (mib // 2 - 512),  # fills it: the end marker doesn't count
        "c": b"c",
        "d": b"d" * (3 * mib),
        "e": b"e",
        "f": b"f",
    }
    result = pack_dir(make_tree(tmp_path / "in", files), out=tmp_path / "out", shard_mb=1)
    members = []
    for shard in sorted((tmp_path / "out/shards").iterdir()):
        with tarfile.open(shard, "r:") as archive:
            members.append([archive.extractfile(member).read(1) for member in archive])
    assert members == [[b"a", b"b"], [b"c"], [b"d"], [b"e", b"f"]]
    assert result["shards"] == 4


def test_e2_24_a_smaller_pack_leaves_no_surplus_shards_behind(tmp_path):
    source, out = make_tree(tmp_path / "in", random_files(40, largest=200_000)), tmp_path / "out"
    assert pack_dir(source, out=out, shard_mb=1)["shards"] > 2
    pack_dir(source, out=out)
    assert [path.name for path in (out / "shards").iterdir()] == ["shard-00000.tar"]


def test_e2_26_and_31_the_hash_is_what_the_link_resolves_to_labelled_or_not(tmp_path):
    source, out = make_tree(tmp_path / "in", TWO_CLASSES), tmp_path / "out"
    for mode in ("auto", "none"):
        for version in (0, 1):
            packed = pack_dir(source, out=out, label_mode=mode, manifest_version=version)
            found = resolve_manifest_hash(f"{out}@refresh", manifest_store_root=tmp_path / "store")
            assert found == packed["manifest_hash"]


@pytest.mark.parametrize("mode", ["imagefolder", "Image-Folder", "image_folder"])
def test_e2_27_imagefolder_mode_refuses_a_file_at_the_root(tmp_path, mode):
    source = make_tree(tmp_path / "in", TWO_CLASSES | {"README": b"hello"})
    with pytest.raises(PackError, match="requires files under <label>/<file>") as caught:
        pack_dir(source, out=tmp_path / "out", label_mode=mode)
    assert "README" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_e2_27_auto_disables_labels_for_a_mixture_and_says_so(tmp_path, caplog):
    source = make_tree(tmp_path / "in", TWO_CLASSES | {"README": b"hello"})
    with caplog.at_level(logging.INFO, LOGGER_NAME):
        result = pack_dir(source, out=tmp_path / "out")
    events = [record.event for record in caplog.records if record.name == LOGGER_NAME]
    assert result["labels_path"] is None
    assert {row.hint for row in rows_of(tmp_path / "out")} == {""}
    assert events == ["pack_label_mixed_layout", "pack_start", "pack_upload_shard", "pack_complete"]


@pytest.mark.parametrize("mode", ["none", "OFF", "false", "0"])
def test_e2_27_none_never_labels(tmp_path, mode):
    result = pack_dir(make_tree(tmp_path / "in", TWO_CLASSES), out=tmp_path / "out", label_mode=mode)
    assert result["labels_path"] is None
    assert {row.hint for row in rows_of(tmp_path / "out")} == {""}


def test_e2_28_auto_wants_two_classes(tmp_path):
    one = make_tree(tmp_path / "one", {"cat/1": b"1", "cat/2": b"2"})
    two = make_tree(tmp_path / "two", {"cat/1": b"1", "dog/2": b"2", "dog/deeper/3": b"3"})
    assert pack_dir(one, out=tmp_path / "out1")["labels_path"] is None
    assert pack_dir(two, out=tmp_path / "out2")["labels_path"] is not None
    assert [row.hint for row in rows_of(tmp_path / "out2")] == [
        f"mx8:vision:imagefolder;label_id={label_id}" for label_id in (0, 1, 1)
    ]


def test_e2_28_imagefolder_mode_labels_a_single_class(tmp_path):
    source = make_tree(tmp_path / "in", {"cat/1": b"1"})
    pack_dir(source, out=tmp_path / "out", label_mode="imagefolder")
    assert read_labels((tmp_path / "out/_mx8/labels.tsv").read_bytes()) == ["cat"]


def test_e2_29_require_labels_overrides_none(tmp_path):
    source = make_tree(tmp_path / "in", TWO_CLASSES)
    result = pack_dir(source, out=tmp_path / "out", label_mode="none", require_labels=True)
    assert result["labels_path"] is not None
    (source / "stray").write_bytes(b"x")
    with pytest.raises(PackError, match="require_labels/imagefolder mode requires files under <label>/<file>"):
        pack_dir(source, out=tmp_path / "out", label_mode="none", require_labels=True)


def test_e2_30_labels_text_for_odd_folder_names(tmp_path):
    names = ["golden retriever", "über", "A", "tab\there"]
    source = make_tree(tmp_path / "in", {f"{name}/1": name.encode() for name in names})
    pack_dir(source, out=tmp_path / "out")
    text = (tmp_path / "out/_mx8/labels.tsv").read_bytes()
    assert text == b"schema_version=1\n0\tA\n1\tgolden%20retriever\n2\ttab%09here\n3\t%C3%BCber\n"
    assert read_labels(text) == ["A", "golden retriever", "tab\there", "über"]


def test_names_that_are_not_text_pack_as_well(tmp_path):
    root = os.fsencode(tmp_path / "in")
    for folder in (b"caf\xe9", b"new\nline", b"...", b"%2e%2e"):
        os.makedirs(os.path.join(root, folder))
        for name in (b"tab\t.jpg", b"bad.\xff\xfe", b"a..b", b"nl.\n"):
            with open(os.path.join(root, folder, name), "wb") as file:
                file.write(folder + name)
    result = pack_dir(tmp_path / "in", out=tmp_path / "out")
    assert result["samples"] == 16
    payloads = payloads_of(tmp_path / "out")
    assert payloads == sorted(payloads)
    assert [os.fsencode(label) for label in read_labels((tmp_path / "out/_mx8/labels.tsv").read_bytes())] == [
        b"%2e%2e",
        b"...",
        b"caf\xe9",
        b"new\nline",
    ]
    with tarfile.open(tmp_path / "out/shards/shard-00000.tar") as archive:
        assert len(archive.getmembers()) == 16


def test_the_walk_skips_pack_output_symlinks_and_what_is_no_file(tmp_path):
    source = make_tree(
        tmp_path / "in",
        {"a/1": b"1", "a/shards/2": b"2", "_mx8/manifest.tsv": b"3", "b/_mx8": b"4", "shards/x.tar": b"5"},
    )
    (source / "a/loop").symlink_to(source)
    (source / "a/link").symlink_to(source / "a/1")
    (source / "a/dangling").symlink_to("nowhere")
    os.mkfifo(source / "a/pipe")
    pack_dir(source, out=tmp_path / "out")
    assert payloads_of(tmp_path / "out") == [b"1"]


def test_packing_a_folder_into_itself_again_and_again(tmp_path):
    source = make_tree(tmp_path / "in", TWO_CLASSES)
    first = pack_dir(source, out=source)
    before = tree_of(source)
    assert pack_dir(source, out=source) == first
    assert tree_of(source) == before
    assert first["samples"] == 3


@pytest.mark.parametrize("inner", ["shards", "shards/raw", "_mx8"])
def test_a_source_where_the_shards_would_go_is_refused(tmp_path, inner):
    source = make_tree(tmp_path / "out" / inner, {"a": b"1"})
    with pytest.raises(ConfigError, match="choose another out"):
        pack_dir(source, out=tmp_path / "out")
    assert tree_of(tmp_path / "out") == {f"{inner}/a": hashlib.sha256(b"1").hexdigest()}


@pytest.mark.parametrize("taken", [0, 1])
@pytest.mark.parametrize(
    "use", [lambda at: penstock.pack_dir(at, out=at.parent / "out"), lambda at: penstock.load(str(at))]
)
def test_symlinks_that_are_left_out_are_told_of(tmp_path, caplog, monkeypatch, taken, use):
    # A snapshot in Hugging Face's cache is a folder of symlinks.
    monkeypatch.setenv("PENSTOCK_MANIFEST_STORE_ROOT", str(tmp_path / "store"))
    source = tmp_path / "snapshot"
    (tmp_path / "blobs").mkdir()
    (source / "a").mkdir(parents=True)
    for name in ("1", "2"):
        (tmp_path / "blobs" / name).write_bytes(b"blob")
        (source / "a" / name).symlink_to(tmp_path / "blobs" / name)
    if taken:
        (source / "file").write_bytes(b"taken")
    with nullcontext() if taken else pytest.raises(EmptyDataset):
        use(source)
    assert f"2 of what lies below {source} were left out, as symlinks are not followed" in caplog.text
    caplog.clear()
    for name in ("1", "2"):
        (source / "a" / name).unlink()
        (source / "a" / name).write_bytes(b"blob")
    use(source)
    assert "left out" not in caplog.text


def test_the_source_may_be_a_symlink_and_the_out_may_hold_one(tmp_path):
    source = make_tree(tmp_path / "real", TWO_CLASSES)
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/shards").symlink_to(tmp_path / "elsewhere")
    pack_dir(tmp_path / "link", out=tmp_path / "out")
    assert payloads_of(tmp_path / "out") == [b"meow", b"purr", b"woof"]
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["shard-00000.tar"]


def test_a_relative_out_and_strings(tmp_path, monkeypatch):
    make_tree(tmp_path / "in", TWO_CLASSES)
    monkeypatch.chdir(tmp_path)
    result = pack_dir("in", out="deep/er/out")
    assert Path(result["manifest_path"]).is_absolute()
    assert payloads_of(tmp_path / "deep/er/out") == [b"meow", b"purr", b"woof"]


def test_files_larger_than_a_segment_are_streamed_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("penstock.packing.run.SEGMENT_BYTES", 4096)
    monkeypatch.setattr(gather_module, "SEGMENT_BYTES", 4096)
    files = random_files(50, largest=2000) | {
        f"class 0/big{size}.x": os.urandom(size) for size in (3072, 3073, 3584, 4096, 10_000, 50_000)
    }
    source = make_tree(tmp_path / "in", files)
    pack_dir(source, out=tmp_path / "small")
    monkeypatch.undo()
    pack_dir(source, out=tmp_path / "large")
    assert payloads_of(tmp_path / "small") == [data for _, data in in_byte_order(files)]
    assert tree_of(tmp_path / "small") == tree_of(tmp_path / "large")


def test_pack_of_folders_names_keys_instead_of_paths(tmp_path):
    source = make_tree(tmp_path / "in", TWO_CLASSES)
    by_path = pack_dir(source, out=tmp_path / "a")
    by_key = pack(f"file://{source}", out=tmp_path / "b")
    assert list(by_key) == ["samples", "shards", "manifest_key", "manifest_hash", "labels_key", "labels_hash"]
    assert by_key["manifest_hash"] == by_path["manifest_hash"]
    assert by_key["manifest_key"] == str(tmp_path / "b/_mx8/manifest.tsv")
    assert by_key["labels_key"] == str(tmp_path / "b/_mx8/labels.tsv")
    assert tree_of(tmp_path / "a") == tree_of(tmp_path / "b")


def test_progress_tells_every_stage_and_ends_at_the_totals(tmp_path):
    files = random_files(100)
    reports: list[Progress] = []
    pack_dir(make_tree(tmp_path / "in", files), out=tmp_path / "out", shard_mb=1, progress=reports.append)
    total_bytes = sum(map(len, files.values()))
    stages = [report.stage for report in reports]
    assert stages == sorted(stages, key=["list", "copy", "publish"].index)
    assert reports[-1] == Progress(100, 100, total_bytes, total_bytes, "publish")
    copied = [report.done_bytes for report in reports if report.stage == "copy"]
    assert copied == sorted(copied)
    assert len(reports) < 20
