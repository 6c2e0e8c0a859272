"""``penstock top --coord``: a shared job in a terminal, over the page or over gRPC."""

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from job_on_show import HASH, MIB, JobOnShow
from penstock.cli.main import main
from penstock.coordinator.ask import ask_for_snapshot
from penstock.coordinator.credentials import Credentials
from penstock.coordinator.snapshot import snapshot_of
from penstock.coordinator.state import Job
from penstock.coordinator.wire import coordinator_pb2 as wire
from penstock.coordinator.wire.coordinator_pb2_grpc import CoordinatorServicer, add_CoordinatorServicer_to_server
from penstock.errors import ConfigError, CoordinatorRefused, CoordinatorUnreachable

WAIT_S = 30.0


@pytest.fixture
def show():
    with JobOnShow(Job(HASH, 1000, 100, world_size=2, epochs=2)) as show:
        show.register("a", "b", cap_bytes=512 * MIB)
        (lease,) = show.lease("a")
        show.lease("b")
        show.run(show.watch.read())
        show.advance(2)
        show.report(lease, 50, 1_000_000)
        show.beat("a", 128 * MIB)
        show.run(show.watch.read())
        yield show


def test_once(show, capsys):
    assert main(["top", "--coord", show.url, "--once"]) == 0
    headline, bar, header, *rows = capsys.readouterr().out.splitlines()
    assert headline == (
        "running, 2.5 %, 50 of 2,000 samples, epoch 1 of 2, 1 min 18 s left, 25 samples/s, 25.0 MB/s, 2 of 2 nodes"
    )
    assert bar == "#" * 4 + "=" * 10 + "." * 58
    assert header.split() == "rank node state samples/s MB/s memory of cap leases queued heard".split()  # noqa: SIM905
    assert rows[0].split() == "0 a live 25 25.0 128.0 MiB 512.0 MiB 1 4 blocks now".split()  # noqa: SIM905
    assert rows[1].split() == "1 b live 0 0.0 0 B 512.0 MiB 1 4 blocks 2 s ago".split()  # noqa: SIM905
    assert rows[-1].split()[:4] == ["2", "s", "ago", "lease_granted"]


def test_no_time_is_left_where_nobody_works(show, capsys):
    show.advance(600)
    show.run(show.watch.read())
    assert main(["top", "--coord", show.url, "--once"]) == 0
    assert "nobody works on it" in capsys.readouterr().out.splitlines()[0]


def test_json_is_the_snapshot(show, capsys):
    assert main(["top", "--coord", show.url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["done"], told["leased"], told["phase"]) == (50, 150, "running")


def test_live_in_a_terminal_through_a_lost_connection(show):
    screen, terminal = pty.openpty()
    command = [sys.executable, "-m", "penstock", "top", "--coord", show.url, "--interval", "0.1"]
    environment = {**os.environ, "COLUMNS": "100", "LINES": "40", "TERM": "xterm-256color", "PYTHONUTF8": "1"}
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment) as top:
        os.close(terminal)
        try:
            seen = b""
            for wanted, then in (
                (b"50 of 2,000", lambda: show.report(show.held["a"][0], 90)),
                (b"90 of 2,000", show.stop),
                (b"connection lost", show.serve),
                (b"90 of 2,000", lambda: None),
            ):
                seen = b""
                deadline = time.monotonic() + WAIT_S
                while wanted not in seen:
                    assert time.monotonic() < deadline, seen[-2000:]
                    if select.select([screen], [], [], 0.5)[0]:
                        seen += os.read(screen, 65536)
                then()
            top.send_signal(signal.SIGINT)
            with contextlib.suppress(OSError):  # EIO: it ended
                while os.read(screen, 65536):
                    pass
            assert top.wait(WAIT_S) == 0
        finally:
            top.kill()
            os.close(screen)


def test_a_coordinator_that_stands_by(show, capsys):
    show.seat.state = None
    assert main(["top", "--coord", show.url, "--once"]) == 0
    assert capsys.readouterr().out == "standing by: 10.0.0.7:50051 leads the job\n"


def test_the_token_comes_from_the_environment(capsys, monkeypatch):
    with JobOnShow(token="a long enough secret") as show:
        assert main(["top", "--coord", show.url, "--once"]) == 1
        assert "wants the coordinator's token" in capsys.readouterr().err
        monkeypatch.setenv("PENSTOCK_COORD_TOKEN", "a long enough secret")
        assert main(["top", "--coord", show.url, "--once"]) == 0
        assert capsys.readouterr().out.startswith("gathering, 0.0 %, 0 of 1,000 samples, 0 of 2 nodes")


@pytest.mark.parametrize(
    "url", ["nonsense", "ftp://a:1", "http://a", "http://a:99999", "http://[::1", "", "http://a..b:1"]
)
def test_what_is_no_url(url):
    with pytest.raises(ConfigError, match=r"give http://host:port"):
        ask_for_snapshot(url)


def test_nobody_there_and_somebody_else():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(CoordinatorUnreachable):
            ask_for_snapshot(url, timeout_s=0.3)  # it says nothing
    with pytest.raises(CoordinatorUnreachable, match="is it running there"):
        ask_for_snapshot(url, timeout_s=5)


def test_a_process_and_a_job_are_two_things(capsys):
    assert main(["top", "123", "--coord", "127.0.0.1:1"]) == 1
    assert "give one of them" in capsys.readouterr().err


class Spoken(CoordinatorServicer):
    """A coordinator's Snapshot call."""

    def __init__(self, seat, leader=None):
        self.seat, self.leader = seat, leader

    def Snapshot(self, request, context):
        if self.leader is not None:
            context.set_trailing_metadata((("penstock-leader", self.leader),))
            context.abort(grpc.StatusCode.UNAVAILABLE, "this coordinator doesn't lead the job")
        if ("authorization", "Bearer s") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token was given")
        return wire.SnapshotResponse(snapshot=json.dumps(snapshot_of(self.seat.state, self.seat.now())))


@contextlib.contextmanager
def spoken(seat, leader=None):
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        add_CoordinatorServicer_to_server(Spoken(seat, leader), server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield address
        finally:
            server.stop(None).wait()


def test_the_nodes_own_address_will_do(show):
    with spoken(show.seat) as leading, spoken(show.seat, leading) as following:
        for address in (leading, f"http://{leading}", following):
            assert ask_for_snapshot(address, credentials=Credentials("s"))["done"] == 50
        with pytest.raises(CoordinatorRefused, match="no token was given") as refusal:
            ask_for_snapshot(leading)
        assert refusal.value.code == "UNAUTHENTICATED"
