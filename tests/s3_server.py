"""A real S3 server for the tests: SeaweedFS on free loopback ports, started once for a session.

`S3Server.start` returns when a signed PUT succeeded, and raises with the end of the server's log when
that takes longer than its deadline. Its files lie in the folder it was given; telemetry is off.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

from obstore.exceptions import BaseError
from obstore.store import S3Store

from server_process import free_ports, kill, launched, tail

START_DEADLINE_S = 60.0
ACCESS_KEY_ID = "penstock-test-key"
SECRET_ACCESS_KEY = "penstock-test-secret"
BUCKET = "penstock"
_GRPC_NAMES = ("master-grpc", "volume-grpc", "filer-grpc", "s3-grpc")


def find_weed() -> str | None:
    """The server's program: beside this interpreter, where the package puts it, else on PATH."""
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


@dataclass
class S3Server:
    """A running server; `environment` is what a client needs to reach it."""

    process: subprocess.Popen[bytes]
    endpoint: str
    filer: str
    log: Path
    sockets: list[Path]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
            "AWS_REGION": "us-east-1",
        }

    @classmethod
    def start(cls, folder: Path) -> S3Server:
        weed = find_weed()
        if weed is None:
            raise RuntimeError("no `weed` program; install the test extra: pip install 'penstock[test]'")
        (folder / "data").mkdir(parents=True)
        config = folder / "s3.json"
        config.write_text(json.dumps(_identities()))
        log = folder / "weed.log"
        ports = free_ports(8)
        process = launched([weed, *_arguments(folder, config, ports)], folder, log)
        # Each gRPC server leaves a socket in the one folder that it knows, named after itself and its port.
        sockets = [Path(f"/tmp/seaweedfs-{name}-{port}.sock") for name in _GRPC_NAMES for port in ports]
        server = cls(process, f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}", log, sockets)
        try:
            server._wait_until_ready()
        except BaseException:
            server.stop()
            raise
        return server

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        reason = "it never answered"
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"SeaweedFS ended with {self.process.returncode}:\n{tail(self.log)}")
            try:
                self.client().put("ready", b"yes")  # makes the bucket as well
                return
            except BaseError as error:
                reason = str(error)
            time.sleep(0.1)  # nothing of another program's start can be waited for but its port
        raise RuntimeError(f"SeaweedFS not ready after {START_DEADLINE_S:.0f} s ({reason}):\n{tail(self.log)}")

    def client(self, bucket: str = BUCKET) -> S3Store:
        """A bare client, for what a test does behind the back of the code under test."""
        return S3Store(
            bucket,
            endpoint=self.endpoint,
            access_key_id=ACCESS_KEY_ID,
            secret_access_key=SECRET_ACCESS_KEY,
            region="us-east-1",
            client_options={"allow_http": True, "timeout": "10s"},
            retry_config={"max_retries": 0},
        )

    def stop(self) -> None:
        kill(self.process)
        for left in self.sockets:
            left.unlink(missing_ok=True)


def _identities() -> dict[str, object]:
    keys = [{"accessKey": ACCESS_KEY_ID, "secretKey": SECRET_ACCESS_KEY}]
    return {"identities": [{"name": "tests", "credentials": keys, "actions": ["Admin", "Read", "Write", "List"]}]}


def _arguments(folder: Path, config: Path, ports: list[int]) -> list[str]:
    s3, filer, master, volume, s3_grpc, filer_grpc, master_grpc, volume_grpc = ports
    options: dict[str, object] = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.port": master,
        "master.port.grpc": master_grpc,
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 64,
        "volume.port": volume,
        "volume.port.grpc": volume_grpc,
        "volume.max": 200,
        "volume.preStopSeconds": 0,
        "filer": "true",
        "filer.port": filer,
        "filer.port.grpc": filer_grpc,
        "filer.localSocket": folder / "filer.sock",
        "s3": "true",
        "s3.port": s3,
        "s3.port.grpc": s3_grpc,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.localSocket": folder / "s3.sock",
        "s3.config": config,
    }
    return ["server", *(f"-{name}={value}" for name, value in options.items())]


if __name__ == "__main__":  # a server to play with: python tests/s3_server.py FOLDER
    running = S3Server.start(Path(sys.argv[1]))
    print("\n".join(f"export {name}={value}" for name, value in running.environment.items()), flush=True)
    try:
        running.process.wait()
    finally:
        running.stop()
