"""Two hosts on one machine: network namespaces joined by a veth, and UCX's own benchmark between them."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import itertools
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ports = itertools.count(13_337)  # a new one each time, for an ended connection keeps its port for a while
_PERFTEST_S, _READY_S = 60.0, 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """A network namespace and the address in it."""

    namespace: str
    device: str
    address: str

    @property
    def prefix(self) -> list[str]:
        """In front of a command that is to run there."""
        return ["ip", "netns", "exec", self.namespace]


@contextlib.contextmanager
def two_hosts(number: int) -> Iterator[tuple[Place, Place]]:
    """Two namespaces that see each other and nothing else.

    Raises:
        PermissionError: this user may not make any.
    """
    if os.geteuid() != 0:
        raise PermissionError("network namespaces need root")
    here, there = (Place(f"bench{number}-{end}", f"bench{number}{end}", f"10.213.{number}.{end + 1}") for end in (0, 1))
    try:
        for place in (here, there):
            _ip("netns", "add", place.namespace)
        _ip("link", "add", here.device, "netns", here.namespace, "type", "veth",
            "peer", "name", there.device, "netns", there.namespace)  # fmt: skip
        for place in (here, there):
            _ip("-n", place.namespace, "address", "add", f"{place.address}/24", "dev", place.device)
            for device in ("lo", place.device):
                _ip("-n", place.namespace, "link", "set", device, "up")
        for place in (here, there):
            _wait_until(place, ["ip", "-brief", "link", "show", place.device], f"{place.device}@", " UP ")
        yield here, there
    finally:
        for place in (here, there):
            subprocess.run(["ip", "netns", "delete", place.namespace], check=False, capture_output=True)


def perftest(test: str, nbytes: int, here: Place, there: Place, count: int) -> float:
    """Microseconds that UCX's ucx_perftest takes for each put or get over TCP, kept busy with several at once.

    Raises:
        FileNotFoundError: the wheel with it isn't installed.
        RuntimeError: it failed.
    """
    spec = importlib.util.find_spec("libucx")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("libucx-cu12 isn't installed")
    root = Path(spec.submodule_search_locations[0])
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(root / "lib"),
        "UCX_TLS": "tcp,self",
        "UCX_WARN_UNUSED_ENV_VARS": "n",
    }
    port = next(_ports)
    command = [str(root / "bin" / "ucx_perftest"), "-t", test, "-s", str(nbytes), "-p", str(port), "-f", "-v"]
    command += ["-n", str(count), "-w", str(count // 5)]
    server = subprocess.Popen(
        [*there.prefix, *command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_until(there, ["cat", "/proc/net/tcp", "/proc/net/tcp6"], f":{port:04X} ")
        done = subprocess.run(
            [*here.prefix, *command, there.address],
            env=environment, capture_output=True, text=True, timeout=_PERFTEST_S, check=False,
        )  # fmt: skip
    finally:
        server.kill()
        server.wait()
    rows = [row for row in csv.reader(done.stdout.splitlines()) if len(row) >= 8]
    if done.returncode or not rows:
        raise RuntimeError(f"ucx_perftest: {(done.stderr or done.stdout).strip()[-200:]}")
    return float(rows[-1][3])  # of all, from beginning to end; [1] is the median


def _wait_until(place: Place, command: list[str], *texts: str) -> None:
    """Until what the command prints there holds these texts."""
    until = time.monotonic() + _READY_S
    while time.monotonic() < until:
        shown = subprocess.run([*place.prefix, *command], capture_output=True, text=True, check=False).stdout
        if all(text in shown for text in texts):
            return
        time.sleep(0.02)
    raise RuntimeError(f"{shlex.join(command)} never showed {texts}")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
