"""Several processes that resolve one link: one indexes; and whoever is killed stands in nobody's way."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from penstock.dataset.links import intent_key
from penstock.dataset.resolve import resolve_manifest_hash
from penstock.store import open_store
from waiting import wait_until

HERE = Path(__file__).parent
DEADLINE_S = 90.0


class Child:
    """A process that resolves a link; its lines are collected as they come."""

    def __init__(self, link: str, root: str, gate: Path) -> None:
        command = [sys.executable, str(HERE / "resolve_child.py"), link, root, str(gate)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._arrived = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._arrived:
                self.lines.append(line.strip())
                self._arrived.notify_all()
        with self._arrived:
            self._arrived.notify_all()

    def said(self, *words: str) -> str | None:
        return next((line for line in self.lines for word in words if word in line), None)

    def wait_for(self, *words: str) -> str:
        with self._arrived:
            self._arrived.wait_for(lambda: self.said(*words) or not self._reader.is_alive(), DEADLINE_S)
        found = self.said(*words)
        assert found is not None, f"waited for {words}, got {self.lines}"
        return found

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def finish(self) -> str:
        found = self.wait_for("resolved to ").removeprefix("resolved to ")
        assert self.process.wait(DEADLINE_S) == 0
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def start(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    children: list[Child] = []

    def start(link: str, root: str) -> Child:
        children.append(Child(link, root, tmp_path / "gate"))
        return children[-1]

    yield start
    for child in children:
        child.close()


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    for name in ("a/1", "a/2", "b/1"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def root(request, tmp_path) -> str:
    return str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("s3_root") + "/store"


def test_e2_15_eight_concurrent_refreshes_elect_one_indexer_and_give_one_hash(start, data, root, tmp_path):
    old = resolve_manifest_hash(str(data), manifest_store_root=root)
    (data / "c").write_bytes(b"new")
    children = [start(f"{data}@refresh", root) for _ in range(8)]
    for child in children:
        child.wait_for("ready")
    for child in children:
        child.go()
    for child in children:
        child.wait_for("snapshot_indexer_elected", "snapshot_index_wait")
    (tmp_path / "gate").touch()
    hashes = {child.finish() for child in children}
    assert len(hashes) == 1
    assert old not in hashes
    assert hashes == {resolve_manifest_hash(str(data), manifest_store_root=root)}
    assert sum(child.said("snapshot_indexer_elected") is not None for child in children) == 1
    assert sum(child.said("mode=wait") is not None for child in children) == 7
    store = open_store(root)
    assert store.version(f"locks/{intent_key(str(data))}.lock") is None


def test_a_waiter_takes_over_at_once_when_the_indexer_in_a_folder_is_killed(start, data, tmp_path):
    root = str(tmp_path / "store")
    first, second = start(f"{data}@refresh", root), start(f"{data}@refresh", root)
    first.go()
    first.wait_for("snapshot_indexer_elected")
    second.go()
    second.wait_for("snapshot_index_wait")
    first.process.kill()
    (tmp_path / "gate").touch()
    started = time.monotonic()
    assert second.finish() == resolve_manifest_hash(str(data), manifest_store_root=root)
    assert time.monotonic() - started < 20  # the lock itself looks fresh for a minute
    assert second.said("snapshot_indexer_elected")


@pytest.mark.s3
@pytest.mark.parametrize(("silence_s", "stale_ms"), [("3600", "1500"), ("1.5", "60000")])
def test_in_an_object_store_a_killed_indexer_is_followed_when_its_lock_is_stale_or_silent(
    start, data, s3_root, tmp_path, monkeypatch, silence_s, stale_ms
):
    monkeypatch.setenv("TEST_SILENCE_S", silence_s)
    monkeypatch.setenv("TEST_RENEWAL_S", "0.3")
    monkeypatch.setenv("PENSTOCK_SNAPSHOT_LOCK_STALE_MS", stale_ms)
    first, second = start(str(data), s3_root), start(str(data), s3_root)
    first.go()
    first.wait_for("snapshot_indexer_elected")
    second.go()
    second.wait_for("snapshot_index_wait")
    lock = f"locks/{intent_key(str(data))}.lock"
    before = open_store(s3_root).read(lock)
    # A living holder renews its lock, so it is never stale.
    wait_until(lambda: open_store(s3_root).read(lock) != before, within_s=DEADLINE_S)
    assert second.said("snapshot_indexer_elected") is None
    first.process.kill()
    second.wait_for("snapshot_indexer_elected")
    (tmp_path / "gate").touch()
    assert second.finish() == resolve_manifest_hash(str(data), manifest_store_root=s3_root)


def test_whenever_a_resolution_dies_the_next_one_works_at_once(data, tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    folders = [str(folder) for folder in (data, tmp_path / "root", tmp_path / "cache")]
    command = [sys.executable, str(HERE / "resolve_crash.py"), *folders]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    deaths = [line.split() for line in done.stdout.splitlines()]
    assert len(deaths) > 40
    assert {(manifest_hash, rows) for _, _, manifest_hash, rows in deaths} == {(deaths[0][2], "3")}
    assert max(float(seconds) for _, seconds, _, _ in deaths) < 20  # a fresh lock would be waited for longer


def test_killed_at_random_moments_the_next_resolution_works(data, tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    for i in range(3000):
        (data / f"b/{i:05d}").touch()
    root = str(tmp_path / "root")
    expected = resolve_manifest_hash(str(data), manifest_store_root=str(tmp_path / "other"))
    program = (
        "import sys; from penstock.dataset.resolve import resolve; print('ready', flush=True)\n"
        "while True: resolve(sys.argv[1] + '@refresh', manifest_store_root=sys.argv[2])"
    )
    for attempt in range(6):
        with subprocess.Popen([sys.executable, "-c", program, str(data), root], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            time.sleep(0.013 + 0.041 * attempt)  # the moment is the test's subject
            child.kill()
        started = time.monotonic()
        assert resolve_manifest_hash(f"{data}@refresh", manifest_store_root=root) == expected
        assert time.monotonic() - started < 10
    assert os.listdir(Path(root) / "by-hash")
