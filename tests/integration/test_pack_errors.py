"""Input and places that can't be packed: each has an error that names it, and loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from packing import make_tree, payloads_of, random_files, tree_of

from penstock.errors import (
    AccessDenied,
    ConfigError,
    EmptyDataset,
    ObjectNotFound,
    PackError,
    PenstockError,
    SampleChanged,
    StoreFull,
)
from penstock.packing import Progress, pack, pack_dir


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "in", random_files(20))


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A folder with a dataset that every failing pack must leave as it is."""
    out = tmp_path / "out"
    pack_dir(make_tree(tmp_path / "old", {"a/1": b"old", "b/2": b"older"}), out=out)
    before = tree_of(out)
    yield out
    assert tree_of(out) == before


def at_start_of_copying(act: Callable[[], None]) -> Callable[[Progress], None]:
    """Acts once, after the listing and before the first file is read."""
    acted = []

    def on_progress(report: Progress) -> None:
        if report.stage == "copy" and not acted:
            acted.append(act())

    return on_progress


@pytest.mark.parametrize("shard_mb", [0, -1, True, None, "512", float("nan"), float("inf")])
def test_e2_32_shard_mb_must_be_positive(source, out, shard_mb):
    with pytest.raises(RuntimeError, match="shard_mb must be > 0") as caught:
        pack_dir(source, out=out, shard_mb=shard_mb)
    assert isinstance(caught.value, ConfigError)


def test_e2_32_missing_folder(tmp_path, out):
    with pytest.raises(RuntimeError, match="nowhere") as caught:
        pack_dir(tmp_path / "nowhere", out=out)
    assert isinstance(caught.value, ObjectNotFound)


def test_e2_32_a_file_is_not_a_directory(tmp_path, source, out):
    file = tmp_path / "file"
    file.write_bytes(b"x")
    with pytest.raises(PackError, match=r"file is not a directory"):
        pack_dir(file, out=out)
    with pytest.raises(PackError, match=r"file is not a directory"):
        pack_dir(source, out=file)


def test_a_symlink_loop_as_source(tmp_path, out):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(PackError, match="loop"):
        pack_dir(tmp_path / "loop", out=out)


def test_e2_32_empty_folder(tmp_path, out):
    (tmp_path / "empty/deeper").mkdir(parents=True)
    with pytest.raises(RuntimeError, match="zero files") as caught:
        pack_dir(tmp_path / "empty", out=out)
    assert isinstance(caught.value, EmptyDataset)


def test_e2_32_a_zero_length_file_is_named(source, out):
    (source / "class 1/empty.jpg").touch()
    with pytest.raises(PackError, match=r"class 1/empty\.jpg has zero length"):
        pack_dir(source, out=out)


def test_e2_32_bad_label_mode(source, out):
    with pytest.raises(ValueError, match=r"auto\|none\|imagefolder"):
        pack_dir(source, out=out, label_mode="folders")
    with pytest.raises(ConfigError, match=r"auto\|none\|imagefolder"):
        pack_dir(source, out=out, label_mode="folders", require_labels=True)


def test_bad_manifest_version(source, out):
    with pytest.raises(ConfigError, match="manifest_version"):
        pack_dir(source, out=out, manifest_version=2)


def test_pack_dir_takes_no_urls(source, out):
    with pytest.raises(ConfigError, match=r"pack\(\) takes URLs"):
        pack_dir("s3://bucket/prefix", out=out)
    with pytest.raises(ConfigError, match=r"pack\(\) takes URLs"):
        pack_dir(source, out="s3://bucket/prefix")


@pytest.mark.parametrize("url", ["s3://", "s3:///prefix", "ftp://host/x", "s4://bucket/x"])
def test_urls_without_a_bucket_or_with_an_unknown_scheme(source, out, url):
    with pytest.raises(RuntimeError, match=url.split(":")[0]):
        pack(url, out=out)
    with pytest.raises(RuntimeError, match=url.split(":")[0]):
        pack(source, out=url)


@pytest.mark.parametrize("size", [1, 1000, 9 << 20], ids=["tiny", "small", "in pieces"])
@pytest.mark.parametrize("how", ["grew", "shrank"])
def test_a_file_that_changes_its_size_is_named(source, out, size, how):
    victim = source / "class 0/victim.bin"
    victim.write_bytes(bytes(size))
    new_size = size + 1 if how == "grew" else size - 1
    with pytest.raises(SampleChanged, match=rf"class 0/victim\.bin {how}"):
        pack_dir(source, out=out, progress=at_start_of_copying(lambda: os.truncate(victim, new_size)))


@pytest.mark.parametrize("size", [1000, 9 << 20], ids=["small", "in pieces"])
def test_a_file_that_vanishes_is_named(source, out, size):
    victim = source / "class 0/victim.bin"
    victim.write_bytes(bytes(size))
    with pytest.raises(ObjectNotFound, match=r"class 0/victim\.bin"):
        pack_dir(source, out=out, progress=at_start_of_copying(victim.unlink))


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder that user nobody may write to, and the rights of user nobody when we are root."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        was_root = os.geteuid() == 0
        if was_root:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if was_root:
                os.seteuid(0)


def test_an_unreadable_file_is_named(as_nobody):
    source = make_tree(as_nobody / "in", random_files(5))
    (source / "class 1/00001.jpg").chmod(0)
    with pytest.raises(AccessDenied, match=r"class 1/00001\.jpg: Permission denied"):
        pack_dir(source, out=as_nobody / "out")
    assert not (as_nobody / "out").exists()


def test_an_unreadable_folder_is_named(as_nobody):
    source = make_tree(as_nobody / "in", random_files(5))
    (source / "class 1").chmod(0)
    try:
        with pytest.raises(AccessDenied, match=r"class 1/: Permission denied"):
            pack_dir(source, out=as_nobody / "out")
    finally:
        (source / "class 1").chmod(0o700)


def test_a_place_where_we_may_not_write_is_named(as_nobody):
    source = make_tree(as_nobody / "in", random_files(5))
    (as_nobody / "closed").mkdir(mode=0o500)
    with pytest.raises(AccessDenied, match=r"writing .*closed/out: Permission denied"):
        pack_dir(source, out=as_nobody / "closed/out")


def test_a_pack_that_fails_removes_the_folders_that_it_made(tmp_path, source):
    (source / "empty").touch()
    (tmp_path / "there").mkdir()
    with pytest.raises(PackError):
        pack_dir(source, out=tmp_path / "there/new/out")
    assert list((tmp_path / "there").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounting.returncode:
        pytest.skip(f"can't mount a small file system here: {mounting.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_leaves_the_old_dataset_and_no_rubbish(tmp_path, small_disk):
    small = make_tree(tmp_path / "small", random_files(10))
    large = make_tree(tmp_path / "large", random_files(40, largest=100_000))
    pack_dir(small, out=small_disk / "out")
    before = tree_of(small_disk)
    with pytest.raises(StoreFull, match=r"No space left on device; free some space"):
        pack_dir(large, out=small_disk / "out")
    assert tree_of(small_disk) == before


def test_a_disk_too_full_for_the_list_of_files(tmp_path, small_disk):
    source = make_tree(tmp_path / "in", random_files(10))
    (small_disk / "filler").write_bytes(bytes((1 << 20) - 16384))
    files = {f"{'x' * 200}{index}": b"x" for index in range(300)}
    make_tree(source, files)
    with pytest.raises(StoreFull, match=str(small_disk)):
        pack_dir(source, out=small_disk / "out")
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


FILE_SIZE_LIMIT = """
import resource, sys
from penstock.errors import StoreFull
from penstock.packing import pack_dir
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    pack_dir(sys.argv[1], out=sys.argv[2])
except StoreFull as error:
    print(error)
"""


def test_a_limit_on_file_sizes_is_told_like_a_full_disk(tmp_path, out):
    large = make_tree(tmp_path / "large", random_files(40, largest=100_000))
    run = subprocess.run(
        [sys.executable, "-c", FILE_SIZE_LIMIT, large, out], capture_output=True, text=True, check=True
    )
    assert "shard-00000.tar: File too large; the file system or your limits" in run.stdout


def test_what_the_progress_callback_raises_ends_the_pack_and_is_not_renamed(source, out):
    def broken(report: Progress) -> None:
        raise BrokenPipeError(32, "nobody listens")

    with pytest.raises(BrokenPipeError) as caught:
        pack_dir(source, out=out, progress=broken)
    assert not isinstance(caught.value, PenstockError)


def test_ctrl_c_while_copying_leaves_the_old_dataset_and_no_rubbish(source, out):
    def press_ctrl_c(report: Progress) -> None:
        if report.stage == "copy" and report.done_samples:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        pack_dir(source, out=out, progress=press_ctrl_c)


def test_a_second_pack_into_the_same_folder_is_told_so(tmp_path, source):
    refused = []

    def pack_again(report: Progress) -> None:
        if report.stage == "copy" and not refused:
            with pytest.raises(PackError, match="another pack is writing to") as caught:
                pack_dir(source, out=tmp_path / "new")
            refused.append(str(caught.value))

    pack_dir(source, out=tmp_path / "new", progress=pack_again)
    assert str(tmp_path / "new") in refused[0]
    assert len(payloads_of(tmp_path / "new")) == 20


def test_what_a_dead_pack_left_is_removed_and_its_lock_means_nothing(tmp_path, source):
    out = make_tree(
        tmp_path / "out",
        {
            "_mx8/.pack-lock": b"",
            "_mx8/.staging-manifest.tsv": b"half",
            "shards/.staging-shard-00007.tar": b"half",
            "shards/shard-00003.tar": b"of a pack that died while it was putting things in place",
        },
    )
    pack_dir(source, out=out)
    assert set(tree_of(out)) == {"_mx8/manifest.tsv", "_mx8/labels.tsv", "shards/shard-00000.tar"}


def test_foreign_files_in_the_out_folder_stay(tmp_path, source):
    out = make_tree(tmp_path / "out", {"README": b"mine", "shards/notes.txt": b"mine", "_mx8/extra": b"mine"})
    pack_dir(source, out=out)
    assert {"README", "shards/notes.txt", "_mx8/extra"} < set(tree_of(out))
