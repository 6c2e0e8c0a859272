"""A running loader, seen from another process."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from packing import pack_thousands

import penstock
from penstock.cli.main import main
from penstock.observe import live
from penstock.observe.live import LiveLoader, snapshots
from waiting import wait_until

TIMEOUT_S = 60
TRAINING = """
import sys, penstock
loader = penstock.load(sys.argv[1], batch_size_samples=10, max_inflight_bytes=1 << 20)
next(loader).release()
loader._live._due_s = 0.0  # not only after a second
next(loader).release()
print("shown", flush=True)
sys.stdin.read()  # a long step
"""


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_MANIFEST_STORE_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "run" / "penstock"


@pytest.fixture
def packed(tmp_path) -> str:
    return pack_thousands(tmp_path, (f"{index:04}.bin" for index in range(2000)))


@pytest.fixture
def training(packed):
    """A process with a loader that has shown itself."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", TRAINING, packed], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "shown\n"
        yield process
        process.kill()


def top(*arguments, **options):
    command = [sys.executable, "-m", "penstock", "top", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, **options)


def test_another_process_is_seen_and_then_gone_without_a_trace(training, packed, folder):
    found = top("--once", "--json")
    assert (found.returncode, found.stderr) == (0, "")
    (loader,) = json.loads(found.stdout)["loaders"]
    assert (loader["pid"], loader["dataset"], loader["max_inflight_bytes"]) == (training.pid, packed, 1 << 20)
    assert loader["samples_per_s"] > 0
    assert loader["bytes_per_s"] == pytest.approx(1000 * loader["samples_per_s"])
    assert 0 <= loader["inflight_bytes"] <= 1 << 20
    assert loader["process_rss_bytes"] > 10 << 20
    assert 0 <= loader["data_wait_share"] <= 1.01
    (path,) = folder.iterdir()
    assert (folder.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    training.send_signal(signal.SIGKILL)
    training.wait()
    assert json.loads(top("--json").stdout) == {"loaders": []}
    assert not list(folder.iterdir()), "what the killed process left was removed"


def test_one_process_can_be_chosen(training):
    assert json.loads(top(training.pid, "--json").stdout)["loaders"][0]["pid"] == training.pid
    other = top(os.getpid(), "--once")
    assert other.returncode == 1
    assert f"process {os.getpid()}" in other.stderr


def test_lines_for_a_log_and_ctrl_c_ends_it(training):
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock", "top", "--interval", "0.1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    header, first, second_header = (process.stdout.readline().decode() for _ in range(3))
    assert header.split()[:3] == ["pid", "dataset", "samples/s"]
    assert first.split()[0] == str(training.pid)
    assert second_header == header
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, err) == (0, b"")


def test_a_terminal_gets_a_live_table_and_gets_its_cursor_back(training):
    main_end, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": "150", "TERM": "xterm"}
    command = [sys.executable, "-m", "penstock", "top", "--interval", "0.1"]
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    shown = b""
    while str(training.pid).encode() not in shown or shown.count(b"samples/s") < 2:
        shown += os.read(main_end, 4096)
    assert b"\x1b[?25l" in shown, "the cursor is hidden"
    process.send_signal(signal.SIGINT)
    while b"\x1b[?25h" not in shown:
        shown += os.read(main_end, 4096)
    assert process.wait(TIMEOUT_S) == 0
    os.close(main_end)


def test_nobody_there(folder, capsys):
    assert main(["top", "--once"]) == 0
    assert str(folder) in capsys.readouterr().out


@pytest.fixture
def shown(folder):
    """Makes a loader's file now; the numbers can be changed."""
    made = []

    def show(**stats):
        loader = LiveLoader("data", "0" * 64, lambda: dict(stats))
        loader._due_s = 0.0
        loader.tick()
        made.append(loader)
        return loader

    yield show
    for loader in made:
        loader.close()


def test_a_closed_loader_takes_its_file_with_it(shown, folder):
    first, second = shown(delivered_samples_total=1), shown(delivered_samples_total=2)
    assert len(list(folder.iterdir())) == 2
    first.close()
    first.close()
    first.tick()
    assert [snapshot.stats["delivered_samples_total"] for snapshot in snapshots()] == [2]
    second.close()
    assert not list(folder.iterdir())


def test_a_loader_that_is_dropped_takes_its_file_with_it(packed, folder):
    loader = penstock.load(packed, batch_size_samples=10)
    loader._live._due_s = 0.0
    next(loader).release()
    assert [snapshot.pid for snapshot in snapshots()] == [os.getpid()]
    del loader
    wait_until(lambda: not list(folder.iterdir()), "its own thread takes it down")


def test_a_shorter_reading_leaves_nothing_of_a_longer_one(shown):
    numbers = {"delivered_samples_total": 10**15}
    loader = LiveLoader("data", "0" * 64, lambda: dict(numbers))
    for value in (10**15, 7):
        numbers["delivered_samples_total"] = value
        loader._due_s = 0.0
        loader.tick()
        assert snapshots()[0].stats == {"delivered_samples_total": value}
    loader.close()


def test_a_new_loader_removes_what_the_dead_left(shown, folder):
    dead = shown(delivered_samples_total=1)
    dead.forget()  # as the kernel does at the end of a process
    assert len(list(folder.iterdir())) == 1
    shown(delivered_samples_total=2)
    assert len(list(folder.iterdir())) == 1
    assert [snapshot.stats["delivered_samples_total"] for snapshot in snapshots()] == [2]


def test_strange_files_and_links_are_left_out(shown, folder, tmp_path):
    shown(delivered_samples_total=1)
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (folder / "1-1.json").symlink_to(secret)
    os.mkfifo(folder / "2-1.json")
    (folder / "3-1.json").write_bytes(b"")
    assert len(snapshots()) == 1
    assert secret.exists()


def test_a_folder_that_others_can_enter_is_not_used(folder, shown):
    folder.mkdir(mode=0o755)
    loader = shown(delivered_samples_total=1)
    loader.tick()
    assert not list(folder.iterdir())
    assert snapshots() == []


def test_a_program_that_ends_without_closing_leaves_no_file_and_a_whole_trace(packed, folder, tmp_path):
    code = (
        "import sys, penstock\n"
        "loader = penstock.load(sys.argv[1], batch_size_samples=10)\n"
        "loader._live._due_s = 0.0\n"
        "next(loader).release()\n"
    )
    environment = {**os.environ, "PENSTOCK_TRACE": str(tmp_path / "traces")}
    subprocess.run([sys.executable, "-c", code, packed], check=True, timeout=TIMEOUT_S, env=environment)
    assert not list(folder.iterdir())
    (trace,) = (tmp_path / "traces").iterdir()
    assert any(event["name"] == "data_wait" for event in json.loads(trace.read_text()))


def test_it_can_be_turned_off(monkeypatch, packed, folder):
    monkeypatch.setenv("PENSTOCK_TOP", "0")
    with penstock.load(packed) as loader:
        assert loader._live._due_s == float("inf")
        assert sum(len(batch) for batch in loader) == 2000
    assert not folder.exists()


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")  # Python 3.12 and later
def test_a_forked_child_has_no_loaders_and_removes_nobodys_file(shown, folder):
    loader = shown(delivered_samples_total=1)
    child = os.fork()
    if child == 0:
        loader.close()
        os._exit(0 if not live.totals() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(snapshots()) == 1


def test_a_ticking_loader_writes_once_a_second(packed):
    with penstock.load(packed, batch_size_samples=10) as loader:
        started = time.monotonic()
        loader._live._due_s = 0.0
        written = set()
        for batch in loader:
            batch.release()
            written.add(loader._live._before_s)
        assert len(written) <= 2 + int(time.monotonic() - started)


def test_faulty_samples_are_shown(shown, folder, capsys):
    shown(faulty_samples_total=1234, prefetch_batches=3, tune_decisions_total=5)
    assert main(["top", "--once"]) == 0
    assert "1,234 faulty" in capsys.readouterr().out
    assert main(["top", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["loaders"]
    assert row["faulty_samples"] == 1234


def test_a_tuned_loader_says_where_it_is(shown, folder, capsys):
    shown(prefetch_batches=3, max_queue_batches=4, decode_threads=2, tune_decisions_total=5)
    assert main(["top", "--once"]) == 0
    assert "tuned, 3 at once" in capsys.readouterr().out
    assert main(["top", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["loaders"]
    names = ("prefetch_batches", "max_queue_batches", "decode_threads", "tune_decisions")
    assert [row[name] for name in names] == [3, 4, 2, 5]
