"""The transfer examples as people run them: two processes, in either order, and one that is killed."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "transfer"


@pytest.fixture
def start(tmp_path):
    """Starts an example; what is left of it at the end is killed."""
    started = []

    def begin(name, role, *arguments):
        command = [sys.executable, EXAMPLES / name, role, "--folder", tmp_path, *arguments]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def ended(process, code=0):
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    return output if code == 0 else errors


@pytest.mark.parametrize("roles", [("decode", "prefill"), ("prefill", "decode")])
def test_pages(start, roles):
    processes = {role: start("pages.py", role) for role in roles}
    assert ended(processes["decode"]) == "prefill wrote pages [200, 3, 77], which begin with [200, 3, 77]\n"
    output = ended(processes["prefill"])
    assert output == "read back over shm: [200, 3, 77]\n"


@pytest.mark.parametrize("roles", [("decode", "prefill"), ("train", "load")])
def test_what_a_killed_run_left_behind_is_said(start, tmp_path, roles):
    name, found = ("pages.py", "metadata") if roles[0] == "decode" else ("stream.py", "offer")
    killed = start(name, roles[0])
    while not (tmp_path / found).exists():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    errors = ended(start(name, roles[1]), 1)
    assert errors.endswith("; start both again\n") and "Traceback" not in errors


@pytest.mark.parametrize("roles", [("train", "load"), ("load", "train")])
def test_stream(start, roles):
    processes = {role: start("stream.py", role, "--batches", "60") for role in roles}
    output = ended(processes["train"])
    assert output.startswith("batches of (64, 3, 64, 64) come from load\n60 batches of 3 MiB, ")
    assert output.endswith(f", sum {sum(range(60))}\n")
    assert ended(processes["load"]) == ""


@pytest.mark.parametrize("victim", ["train", "load"])
def test_one_end_of_the_stream_is_killed(start, victim):
    processes = {role: start("stream.py", role, "--batches", str(10**9)) for role in ("train", "load")}
    other = processes["load" if victim == "train" else "train"]
    assert "come from load" in processes["train"].stdout.readline()
    processes[victim].kill()
    assert "the other one is gone: " in ended(other, 1)
