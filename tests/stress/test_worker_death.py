"""Workers that are killed, that never answer, and whose loader's process is killed: nothing lost, nothing left."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.integration import transforms_used as used

import penstock
from penstock.errors import ClosedError, DeadlineExceeded, WorkerDied

# From Python 3.12 on, fork() beside threads is a warning; who asks for it knows.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

FORKED = {"workers": "processes", "multiprocessing_context": "fork", "num_workers": 2, "batch_size": 8}
COUNT = 60


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("deaths")
    (root / "in").mkdir()
    for index in range(COUNT):
        (root / "in" / f"{index:03d}.bin").write_bytes(bytes([index]) * (index + 1))
    penstock.pack_dir(str(root / "in"), out=str(root / "out"))
    return str(root / "out"), str(root / "store")


@pytest.fixture
def workers():
    """This test's own children; what else the tests' process has begun isn't looked at, nor killed."""
    others = set(multiprocessing.active_children())
    return lambda: [child for child in multiprocessing.active_children() if child not in others]


@pytest.fixture
def load(dataset):
    loaders = []

    def make(**arguments):
        loaders.append(penstock.load(dataset[0], manifest_store_root=dataset[1], **{**FORKED, **arguments}))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


def eventually(what, timeout_s: float = 20) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while not what():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.01)
    return True


def whole_epoch(loader) -> list[tuple[int, bytes]]:
    found = []
    for ids, (payload, offsets) in loader:
        found += [(i, payload[a:b].tobytes()) for i, a, b in zip(ids.tolist(), offsets, offsets[1:], strict=False)]
    return found


EVERYTHING = [(index, bytes([index]) * (index + 1)) for index in range(COUNT)]


def test_samples_that_kill_their_worker_once_are_done_again(load, tmp_path):
    loader = load(transform=used.DieOnce(tmp_path, (0, 13, 14, 40, 59)))
    assert whole_epoch(loader) == EVERYTHING
    assert loader.stats()["worker_restarts_total"] >= 4


@settings(max_examples=10)
@given(
    deadly=st.sets(st.integers(0, COUNT - 1), max_size=8),
    batch_size=st.integers(1, 30),
    workers=st.integers(1, 3),
    prefetch=st.integers(1, 3),
    shuffle=st.booleans(),
)
def test_whichever_samples_are_deadly_once_the_epoch_is_the_same(
    dataset, deadly, batch_size, workers, prefetch, shuffle
):
    arguments = {**FORKED, "batch_size": batch_size, "num_workers": workers, "shuffle": shuffle}
    with tempfile.TemporaryDirectory() as folder:
        loader = penstock.load(
            dataset[0],
            manifest_store_root=dataset[1],
            transform=used.DieOnce(Path(folder), tuple(deadly)),
            transform_bytes=100,
            prefetch_batches=prefetch,
            **arguments,
        )
        found = whole_epoch(loader)
        assert loader.stats()["worker_restarts_total"] >= bool(deadly)
        loader.close()
    plain = {key: value for key, value in arguments.items() if key not in ("workers", "multiprocessing_context")}
    with penstock.load(dataset[0], manifest_store_root=dataset[1], **plain) as loader:
        order = [i for batch in loader for i in batch.sample_ids]
    assert found == [EVERYTHING[i] for i in order]


def test_workers_killed_from_outside_lose_nothing(load, workers, tmp_path):
    moments = random.Random(7)
    loader = load(transform=used.DieOnce(tmp_path, ()), persistent_workers=True, batch_size=3)
    found = []
    for epoch in range(6):
        loader.set_epoch(epoch)
        kills = 2  # a third one over the same sample would be an error
        for ids, (payload, offsets) in loader:
            found += [(i, payload[a:b].tobytes()) for i, a, b in zip(ids.tolist(), offsets, offsets[1:], strict=False)]
            if kills and moments.random() < 0.2:
                kills -= 1
                victim = moments.choice(workers())
                victim.kill()
        assert found == EVERYTHING
        found.clear()


def test_a_sample_that_always_kills_its_worker_is_named(load, tmp_path):
    loader = load(transform=used.DieOnce(tmp_path, (21,), always=True))
    with pytest.raises(
        WorkerDied, match=r"killed by signal 9 .* as 3 of them did .* at sample 21 \(.*shard-00000.tar"
    ) as raised:
        whole_epoch(loader)
    assert raised.value.sample_id == 21 and "shard-00000.tar" in raised.value.location


def test_a_sample_that_always_kills_its_worker_can_be_left_out(load, tmp_path):
    loader = load(transform=used.DieOnce(tmp_path, (21, 22), always=True), on_error="skip")
    assert whole_epoch(loader) == [each for each in EVERYTHING if each[0] not in (21, 22)]
    assert loader.stats()["faulty_samples_total"] == 2


def test_a_death_is_an_error_when_told_so(load, tmp_path):
    loader = load(transform=used.DieOnce(tmp_path, (21,)), on_worker_death="raise")
    with pytest.raises(WorkerDied, match="killed by signal 9 .* on_worker_death is 'raise'"):
        whole_epoch(loader)


def test_a_transform_that_never_returns_ends_at_the_deadline(load, workers, tmp_path):
    loader = load(transform=used.Announce(tmp_path, stay_at=9), timeout_seconds=1.5)
    assert next(loader).tolist() == list(range(8))
    with pytest.raises(DeadlineExceeded):
        next(loader)
    loader.close()
    assert eventually(lambda: not workers())


def test_close_ends_workers_in_the_middle_of_a_transform(load, tmp_path):
    loader = load(transform=used.Announce(tmp_path, stay_at=0))
    assert eventually((tmp_path / "stays").exists)
    started = time.monotonic()
    loader.close()
    assert time.monotonic() - started < 8
    with pytest.raises(ClosedError):
        next(loader)
    pids = [int(path.name[4:]) for path in tmp_path.glob("pid-*")]
    assert pids and not any(psutil.pid_exists(pid) for pid in pids)


def test_a_dropped_loader_ends_its_workers(load, workers, dataset):
    loader = penstock.load(
        dataset[0], manifest_store_root=dataset[1], transform=used.head, persistent_workers=True, **FORKED
    )
    next(loader)
    assert workers()
    del loader
    assert eventually(lambda: not workers())


PROGRAM = """
import sys
from pathlib import Path

import penstock
from tests.integration import transforms_used as used

if __name__ == "__main__":
    link, store, folder, context = sys.argv[1:]
    loader = penstock.load(link, manifest_store_root=store, transform=used.Announce(Path(folder), 30),
                           workers="processes", multiprocessing_context=context, num_workers=2, batch_size=8)
    for batch in loader:
        print(batch[0], flush=True)
"""


def shared_memory_files(pid: int) -> list[str]:
    """Files of /dev/shm that a process has open or mapped: what a kill would leave behind."""
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    return [name for name in [*links, *Path(f"/proc/{pid}/maps").read_text().split()] if name.startswith("/dev/shm")]


@pytest.mark.parametrize("context", ["spawn", "fork", "forkserver"])
def test_nothing_is_left_when_the_loaders_process_is_killed(dataset, tmp_path, context):
    (tmp_path / "marks").mkdir()
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), *dataset, str(tmp_path / "marks"), context]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == b"0\n"
    assert eventually((tmp_path / "marks" / "stays").exists)
    family = psutil.Process(process.pid).children(recursive=True)
    workers = {int(path.name[4:]) for path in (tmp_path / "marks").glob("pid-*")}
    assert workers <= {child.pid for child in family}
    assert [shared_memory_files(pid) for pid in (process.pid, *workers)] == [[]] * (1 + len(workers))
    process.send_signal(signal.SIGKILL)
    assert process.wait(20) == -signal.SIGKILL
    process.stdout.close()
    gone, alive = psutil.wait_procs(family, timeout=20)
    assert len(gone) == len(family) and not alive
