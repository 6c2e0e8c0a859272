"""What a program that uses an object store looks like from outside: it can be interrupted, it ends, it may fork."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

WAIT_S = 30.0


@pytest.fixture
def silent_environment() -> Iterator[dict[str, str]]:
    """Leads to a server that takes connections and never answers; the store's own deadline is far away."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {
            **os.environ,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "PENSTOCK_STORE_TIMEOUT_S": "300",
        }


def start(program: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ctrl_c_ends_a_request_at_once(silent_environment):
    process = start(
        "from penstock.store import open_store\nprint('waiting', flush=True)\nopen_store('s3://bucket').read('key')\n",
        silent_environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.5)  # the request itself can't be seen from outside; too early a signal would test nothing
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, errors = process.communicate(timeout=WAIT_S)
    assert time.monotonic() - started < 3
    assert "KeyboardInterrupt" in errors
    assert process.returncode == -signal.SIGINT


def test_a_program_ends_though_its_threads_wait_for_a_store(silent_environment):
    process = start(
        "import threading, time\n"
        "from penstock.store import open_store, stats\n"
        "store = open_store('s3://bucket')\n"
        "for _ in range(4):\n"
        "    threading.Thread(target=store.read, args=('key',), daemon=True).start()\n"
        "while stats().in_flight < 4:\n"
        "    time.sleep(0.01)\n"
        "print('done')\n",
        silent_environment,
    )
    started = time.monotonic()
    output, errors = process.communicate(timeout=WAIT_S)
    assert time.monotonic() - started < 10
    assert (process.returncode, output) == (0, "done\n"), errors
    assert "Fatal" not in errors


@pytest.mark.s3
def test_a_program_ends_with_a_half_read_stream_and_an_open_writer(s3_root: str):
    process = start(
        "import sys\n"
        "from penstock.store import open_store\n"
        "store = open_store(sys.argv[1] if len(sys.argv) > 1 else " + repr(s3_root) + ")\n"
        "store.put('big', bytes(8 << 20))\n"
        "stream = store.stream('big', 0, 8 << 20)\n"
        "writer = store.open_writer('never')\n"
        "writer.write(bytes(20 << 20))\n"
        "print(len(next(stream)) > 0, [each.key for each in store.list()])\n",
        dict(os.environ),
    )
    output, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, output, errors) == (0, "True ['big']\n", "")


@pytest.mark.s3
def test_a_forked_child_is_told_why_it_can_not_go_on(s3_root: str):
    program = (
        "import os, sys\n"
        "from penstock.store import open_store\n"
        f"store = open_store({s3_root!r})\n"
        "if sys.argv[1] == 'used':\n"
        "    store.put('k', b'1')\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n"
        "        store.put('child', b'1')\n"
        "        print('wrote', flush=True)\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, 'spawn' in str(error), flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
    )
    for state, expected in [("used", "StoreError True\n"), ("fresh", "wrote\n")]:
        done = subprocess.run(
            [sys.executable, "-c", program, state], capture_output=True, text=True, timeout=WAIT_S, check=True
        )
        assert done.stdout == expected, done.stderr


def test_importing_the_store_layer_starts_nothing():
    program = (
        "import sys, threading, penstock.store\n"
        "print(threading.active_count(), 'obstore' in sys.modules, 'asyncio' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT_S, check=True)
    assert done.stdout == "1 False False\n"


@pytest.mark.s3
def test_memory_stays_bounded_whatever_is_uploaded_and_streamed(s3_root: str):
    program = (
        "import resource\n"
        "from penstock.store import open_store\n"
        f"store = open_store({s3_root!r})\n"
        "def peak_bytes():\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "def upload(key, pieces):\n"
        "    writer = store.open_writer(key)\n"
        "    for _ in range(pieces):\n"
        "        writer.write(piece)\n"
        "    writer.commit()\n"
        "piece = bytes(1 << 20)\n"
        "upload('small', 1)\n"
        "list(store.stream('small', 0, 1 << 20))\n"
        "before = peak_bytes()\n"
        "upload('large', 128)\n"
        "uploaded = peak_bytes()\n"
        "assert sum(map(len, store.stream('large', 0, 128 << 20))) == 128 << 20\n"
        "print(uploaded - before, peak_bytes() - uploaded)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=2 * WAIT_S, check=True
    )
    uploading, streaming = map(int, done.stdout.split())
    assert uploading < 64 << 20  # stated: 48 MiB; the rest is the client's buffers and the allocator's slack
    assert streaming < 16 << 20
    print(f"uploading {uploading >> 20} MiB, streaming {streaming >> 20} MiB")
