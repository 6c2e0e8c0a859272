"""Loaders where people run them: a notebook, a program without a guard, a child, a process that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import penstock

WAIT_S = 120
SHARED = Path("/dev/shm")

READ = """
import penstock
with penstock.load({link!r}, manifest_store_root={store!r}, batch_size=10, shuffle=True, prefetch=2) as loader:
    total = sum(batch.payload_bytes for batch in loader)
print(total)
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A packed dataset, where its manifests are, and how many bytes it has."""
    root = tmp_path_factory.mktemp("places")
    random = np.random.default_rng(8)
    (root / "in").mkdir()
    sizes = random.integers(0, 3000, 95).tolist()
    for index, size in enumerate(sizes):
        (root / "in" / f"{index:03d}.bin").write_bytes(random.bytes(size))
    penstock.pack_dir(root / "in", out=str(root / "packed"), shard_mb=1, label_mode="none")
    return {"link": str(root / "packed"), "store": str(root / "store")}, sum(sizes)


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments, program], capture_output=True, text=True, timeout=WAIT_S)


def test_a_notebook_cell_loads_as_a_program_does(dataset):
    where, total = dataset
    cells = [
        READ.format(**where),
        READ.format(**where),  # once more: people run cells again
        "import asyncio\nasync def cell():\n    " + READ.format(**where).strip().replace("\n", "\n    "),
        "await cell()",  # a notebook's own loop is running
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=WAIT_S, kernel_name="python3").execute()
    printed = [cell["outputs"][0]["text"] if cell["outputs"] else "" for cell in notebook["cells"]]
    assert printed == [f"{total}\n", f"{total}\n", "", f"{total}\n"]


def test_a_program_without_a_main_guard_needs_none(dataset, tmp_path):
    where, total = dataset
    program = tmp_path / "program.py"
    program.write_text("import multiprocessing\nmultiprocessing.set_start_method('spawn')\n" + READ.format(**where))
    done = run(str(program))
    assert (done.returncode, done.stdout) == (0, f"{total}\n"), done.stderr


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_a_child_process_makes_a_loader_of_its_own(dataset, tmp_path, start):
    where, total = dataset
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, warnings, penstock\n"
        "def read():\n    " + READ.format(**where).strip().replace("\n", "\n    ") + "\n"
        "if __name__ == '__main__':\n"
        "    warnings.simplefilter('ignore', DeprecationWarning)\n"  # fork() beside threads: what is tested here
        f"    mine = penstock.load({where['link']!r}, manifest_store_root={where['store']!r}, batch_size_samples=10)\n"
        "    first = next(mine).payload_bytes\n"
        f"    child = multiprocessing.get_context({start!r}).Process(target=read)\n"
        "    child.start()\n"
        f"    child.join({WAIT_S})\n"
        "    print(child.exitcode, first + sum(batch.payload_bytes for batch in mine))\n"
    )
    done = run(str(program))
    assert (done.returncode, done.stdout) == (0, f"{total}\n0 {total}\n"), done.stderr


def test_a_loader_that_was_killed_leaves_nothing_behind(dataset, tmp_path):
    where, _ = dataset
    program = (
        "import penstock, sys, time\n"
        f"loader = penstock.load({where['link']!r}, manifest_store_root={where['store']!r}, batch_size_samples=5,\n"
        "    prefetch_batches=3)\n"
        "batch = next(loader)\n"
        "print('loading', flush=True)\n"
        "sys.stdin.read()\n"
    )
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "loading\n"
    files = {line.split(maxsplit=5)[5] for line in maps(process.pid) if line.count(" ") > 5}
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=WAIT_S)
    assert any("memfd:" in name for name in files)  # that goes with the process,
    assert not [name for name in files if str(SHARED) in name]  # and there is nothing that wouldn't
    assert list(temporary.iterdir()) == []


def maps(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/maps").read_text().splitlines()
