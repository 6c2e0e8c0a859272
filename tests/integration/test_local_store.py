"""What only a folder does: links, pipes, rights, full disks, crashes."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.errors import AccessDenied, ObjectNotFound, PreconditionFailed, SampleChanged, StoreError, StoreFull
from penstock.store import files, open_store
from penstock.store.files import TEMPORARY_PREFIX
from penstock.testing.store import collect

WAIT_S = 30.0


def names(folder: Path) -> set[str]:
    return {os.path.relpath(os.path.join(at, name), folder) for at, _, found in os.walk(folder) for name in found}


def test_a_listing_follows_no_links_and_shows_no_special_files(tmp_path: Path):
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "f").write_bytes(b"12")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep" / "f")
    (tmp_path / "broken").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert [each.key for each in open_store(str(tmp_path)).list()] == ["real/deep/f"]


def test_a_root_that_is_a_link_is_followed(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "f").write_bytes(b"1")
    (tmp_path / "link").symlink_to("real")
    store = open_store(str(tmp_path / "link"))
    assert [each.key for each in store.list()] == ["f"]
    assert store.read("f") == b"1"


def test_a_named_pipe_and_a_folder_are_refused_and_block_nothing(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    store = open_store(str(tmp_path))
    for key in ("pipe", "folder"):
        for use in (store.read, store.size, lambda key: collect(store, key, 0, 1)):
            with pytest.raises(StoreError, match="regular file"):
                use(key)


def test_a_loop_of_links_has_its_error(tmp_path: Path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(StoreError, match="circle"):
        open_store(str(tmp_path)).read("a")


def test_a_key_below_a_file_is_not_found(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"1")
    store = open_store(str(tmp_path))
    with pytest.raises(ObjectNotFound, match="not a folder"):
        store.read("file/below")
    with pytest.raises(StoreError):
        store.put("file/below", b"x")


@pytest.fixture
def own_folder() -> Iterator[Path]:
    """A folder of a user without special rights, whom the test runs as: root may do everything."""
    user = os.geteuid()
    folder = Path(tempfile.mkdtemp(prefix="penstock-test-"))
    if user == 0:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(user)
        folder.chmod(0o700)
        shutil.rmtree(folder)


def test_what_this_user_may_not_do_has_its_error(own_folder: Path):
    store = open_store(str(own_folder))
    store.put("closed", b"1")
    store.put("below/k", b"1")
    (own_folder / "closed").chmod(0)
    (own_folder / "below").chmod(0)
    own_folder.chmod(0o500)
    uses = [
        lambda: store.read("closed"),
        lambda: store.put("new", b"x"),
        lambda: store.open_writer("new"),
        lambda: store.delete("closed"),
        lambda: store.size("below/k"),
        lambda: list(store.list()),
    ]
    try:
        for use in uses:
            with pytest.raises(AccessDenied, match=str(own_folder)):
                use()
    finally:
        (own_folder / "below").chmod(0o700)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path):
    store = open_store(str(tmp_path))
    store.put("k", bytes(5 << 20))
    pieces = store.stream("k", 0, 5 << 20)
    next(pieces)
    os.truncate(tmp_path / "k", 3 << 20)
    with pytest.raises(SampleChanged, match="ends at byte 3145728"):
        for _ in pieces:
            pass


def test_a_full_disk_has_its_error_and_leaves_nothing(tmp_path: Path):
    """A limit on the size of files fails in the middle of a write, as a full disk does."""
    store = open_store(str(tmp_path))
    store.put("k", b"old")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(StoreFull):
            store.put("k", bytes(2 << 20))
        writer = store.open_writer("w")
        with pytest.raises(StoreFull):
            for _ in range(8):
                writer.write(bytes(300_000))
            writer.commit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path) == {"k"}
    assert store.read("k") == b"old"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_when_flushed_leaves_the_old_file(tmp_path: Path, monkeypatch, number: int):
    store = open_store(str(tmp_path))
    store.put("k", b"old")
    version = store.version("k")
    assert version is not None

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    writer = store.open_writer("k")
    writer.write(b"new")
    uses = [
        lambda: store.put("k", b"new"),
        lambda: store.put_if_absent("other", b"new"),
        lambda: store.replace("k", b"new", version),
        writer.commit,
    ]
    for use in uses:
        with pytest.raises(StoreError):
            use()
    assert names(tmp_path) == {"k"}
    assert store.read("k") == b"old"


def test_temporary_files_are_in_no_listing(tmp_path: Path):
    store = open_store(str(tmp_path))
    writer = store.open_writer("a/k")
    writer.write(b"x")
    assert [name.split("/")[-1][: len(TEMPORARY_PREFIX)] for name in names(tmp_path)] == [TEMPORARY_PREFIX]
    assert list(store.list()) == []
    writer.abort()
    assert names(tmp_path) == set()


@pytest.mark.parametrize("call", ["put('k', data)", "put_if_absent('new', data)", "open_writer('k')"])
def test_a_killed_writer_leaves_old_or_new_and_nothing_in_between(tmp_path: Path, call: str):
    store = open_store(str(tmp_path))
    store.put("k", b"o" * 100)
    program = (
        "import sys\n"
        "from penstock.store import open_store\n"
        "store = open_store(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "for index in range(10**6):\n"
        "    data = b'%c' % (97 + index % 26) * 100_000\n"
        "    writer = store." + call + "\n"
        "    if writer is None: store.delete('new')\n"
        "    else: writer.write(data); writer.commit()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    seen = set()
    while len(seen) < 4 and process.poll() is None:
        for key in ("k", "new"):
            try:
                data = store.read(key)
            except ObjectNotFound:
                continue
            assert len(set(data)) == 1
            assert len(data) in {100, 100_000}
            seen.add((key, data[0]))
    process.kill()
    process.wait(WAIT_S)
    process.stdout.close()
    assert len(set(store.read("k"))) == 1
    store.put("k", b"after")
    assert store.read("k") == b"after"


@pytest.mark.parametrize("use", ["put", "replace", "delete", "commit"])
def test_a_folder_s_lock_keeps_writers_out_and_dies_with_its_holder(tmp_path: Path, use: str):
    store = open_store(str(tmp_path))
    store.put("k", b"1")
    version = store.version("k")
    assert version is not None
    writer = store.open_writer("k")
    writer.write(b"2")
    uses = {
        "put": lambda: store.put("k", b"2"),
        "replace": lambda: store.replace("k", b"2", version),
        "delete": lambda: store.delete("k"),
        "commit": writer.commit,
    }
    program = (
        "import sys\n"
        "from penstock.store.files import folder_lock\n"
        "with folder_lock(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    done = threading.Event()
    threading.Thread(target=lambda: (uses[use](), done.set()), daemon=True).start()
    assert not done.wait(0.2), "the lock kept nobody out"
    assert store.read("k") == b"1"
    holder.kill()
    assert done.wait(WAIT_S)
    holder.communicate(timeout=WAIT_S)
    writer.abort()
    assert store.version("k") is None if use == "delete" else store.read("k") == b"2"


def test_every_write_has_a_time_of_its_own_to_the_nanosecond(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The kernel's clock ticks every few milliseconds, and an inode may be used again at once."""
    monkeypatch.setattr(files.time, "time_ns", lambda: 1_700_000_000_123_456_789)
    open_store(str(tmp_path)).put("k", b"1")
    assert os.stat(tmp_path / "k").st_mtime_ns == 1_700_000_000_123_456_789


def test_where_folders_can_not_be_locked_a_hidden_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EBADF, "as NFS says it")
        real(descriptor, operation)

    monkeypatch.setattr(files.fcntl, "flock", flock)
    store = open_store(str(tmp_path))
    store.put("k", b"1")
    version = store.version("k")
    assert version is not None
    store.replace("k", b"2", version)
    with pytest.raises(PreconditionFailed):
        store.replace("k", b"3", version)
    assert [each.key for each in store.list()] == ["k"]


def test_a_file_system_without_hard_links_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not here")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StoreError, match="hard links"):
        open_store(str(tmp_path)).put_if_absent("k", b"x")
    assert names(tmp_path) == set()


def test_listing_a_wide_folder_takes_little_memory(tmp_path: Path):
    import tracemalloc

    for index in range(3000):
        (tmp_path / f"{index:06d}").touch()
    store = open_store(str(tmp_path))
    tracemalloc.start()
    count = sum(1 for _ in store.list())
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 3000
    assert peak_bytes < 200_000
