"""How the servers of the tests run: programs of others on free loopback ports, which end with the test run."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

_DRAWS = random.SystemRandom()


def free_ports(count: int) -> list[int]:
    """Loopback ports that were free a moment ago, all different.

    They are none of those that the kernel gives to whoever asks for any port, and drawn: what runs meanwhile, other
    tests among it, takes none of them before the one who asked does.
    """
    with ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            each = stack.enter_context(socket.socket())
            with suppress(OSError):
                each.bind(("127.0.0.1", _DRAWS.randrange(*_not_given_by_the_kernel())))
                found.append(each.getsockname()[1])
        return found


def _not_given_by_the_kernel() -> tuple[int, int]:
    """First and last, half-open; most of all ports, where it gives nearly all of them."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    return 10_000, low if low > 12_000 else 60_000


def launched(
    command: list[str], folder: Path, log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a program in a folder and a process group of its own; what it says is added to the log."""
    with log.open("ab") as out:
        return subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent,
            cwd=folder,
            env=environment,
        )


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a launched program with all that it started, -9, and waits until it is gone."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=10)


def tail(log: Path, size_bytes: int = 4000) -> str:
    """The end of a log."""
    return log.read_bytes()[-size_bytes:].decode(errors="replace")


def _die_with_parent() -> None:
    """Even a killed test run leaves no server behind (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
