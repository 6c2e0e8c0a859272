"""kill -9 at random moments of loading: the next run works, and nothing stays behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import penstock

LOAD = (
    "import sys, penstock\n"
    "print('up', flush=True)\n"
    "for _ in range(1000):\n"
    "    for batch in penstock.load(sys.argv[1] + '@refresh', manifest_store_root=sys.argv[2], batch_size_samples=3,\n"
    "                               prefetch_batches=3, max_inflight_bytes='1MiB'):\n"
    "        print(batch.sample_ids[0], flush=True)\n"
)


def shared_memory_files(pid: int) -> list[str]:
    """Files of /dev/shm that a process has open or mapped: what a kill would leave behind."""
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    return [name for name in [*links, *Path(f"/proc/{pid}/maps").read_text().split()] if name.startswith("/dev/shm")]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc to look at")
def test_killed_loaders_leave_nothing_and_block_nobody(tmp_path):
    for index in range(50):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{index:03d}.bin").write_bytes(os.urandom(5000))
    penstock.pack_dir(str(tmp_path / "in"), out=str(tmp_path / "out"))
    moments = random.Random(20261122)
    environment = {**os.environ, "PENSTOCK_CACHE_DIR": str(tmp_path / "cache")}
    for _ in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", LOAD, str(tmp_path / "out"), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert process.stdout is not None
        for _ in range(moments.randrange(60)):
            process.stdout.readline()
        try:
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)  # from here on its files stand still
            assert shared_memory_files(process.pid) == []
        finally:
            process.kill()
        assert process.wait(20) == -signal.SIGKILL
        process.stdout.close()
    with penstock.load(f"{tmp_path}/out@refresh", manifest_store_root=str(tmp_path / "store")) as loader:
        samples = [bytes(sample) for batch in loader for sample in batch]
    assert samples == [path.read_bytes() for path in sorted((tmp_path / "in").iterdir())]
