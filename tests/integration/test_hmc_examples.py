"""The HMC-style client and server of ``examples/``, and the snippets of the page about HMC."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hmc_party import Party

ROOT = Path(__file__).parents[2]
IP = "127.0.0.1"


def free_port():
    """One of three in a row that are free."""
    for port in range(20000, 30000, 10):
        try:
            for each in range(3):
                socket.create_server((IP, port + each)).close()
        except OSError:
            continue
        return port
    raise AssertionError("no three ports in a row are free")


def test_the_parameter_server_and_its_workers_learn():
    port = str(free_port())
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    command = [sys.executable, "-W", "error", "examples/hmc/server.py", IP, port, "2"]
    with subprocess.Popen(command, **options) as server:
        try:
            assert server.stdout.readline() == "listening\n"
            workers = [
                subprocess.Popen([sys.executable, "-W", "error", "examples/hmc/worker.py", IP, port, number], **options)
                for number in ("1", "2")
            ]
            for number, worker in enumerate(workers, 1):
                out, errors = worker.communicate(timeout=60)
                assert (out, errors) == (f"worker {number} is done\n", "")
            out, errors = server.communicate(timeout=60)
            assert (errors, server.returncode) == ("", 0)
            assert out == "50 rounds with 2 workers, error 0.0000\n"
        finally:
            server.kill()


def test_the_snippets_of_the_page_run():
    page = (ROOT / "docs" / "hmc.md").read_text()
    serving, sending = (
        block.replace("2025", str(port))
        for port in [free_port()]
        for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    )
    (look,) = re.findall(r"`(server\.buf\.\S+)`", page)
    with Party(serving) as server, Party(sending):
        assert server.value(f"{look}.hex()") == b"".join(n.to_bytes(4, "little") for n in range(1024)).hex()


def test_every_public_name_is_on_the_page():
    from penstock.compat import hmc

    page = (ROOT / "docs" / "hmc.md").read_text()
    missing = [name for name in hmc.__all__ if f"`{name}`" not in page]
    assert not missing


def test_importing_hmcs_names_loads_neither_torch_nor_ucx_nor_cuda():
    program = "import sys; from penstock.compat import hmc; print(*sys.modules, open('/proc/self/maps').read())"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "penstock.compat.hmc.session" in loaded.split()
    assert "torch" not in loaded.split()
    assert "libucp" not in loaded and "libcuda" not in loaded


@pytest.mark.parametrize("name", ["server", "worker"])
def test_without_its_arguments_an_example_says_what_they_are(name):
    run = subprocess.run([sys.executable, f"examples/hmc/{name}.py", IP], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert f"python examples/hmc/{name}.py 127.0.0.1 2025" in run.stderr and "Traceback" not in run.stderr
