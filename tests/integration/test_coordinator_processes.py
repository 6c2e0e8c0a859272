"""A coordinator and its nodes as real processes: kills, restarts, two coordinators of one job, the command line."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from tests.coordinators import JOB_ID, Node, Process, nodes
from tests.server_process import free_ports

from penstock import DistributedDataLoader
from penstock.cli.main import main
from penstock.coordinator.blocks import join_intervals
from penstock.coordinator.wire import coordinator_pb2 as wire

DEMO2 = ("--world-size=2", "--dev-total-samples=8000", "--dev-block-size=1000", "--heartbeat-interval-ms=200")


class Program:
    """A node's process (coordinator_node), and what it said."""

    def __init__(self, addr: str, node_id: str, mode: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.coordinator_node", addr, node_id, mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said: list[dict[str, object]] = []

    def until(self, event: str) -> None:
        while not self.said or self.said[-1]["event"] != event:
            line = self.process.stdout.readline()
            assert line, f"{self.process.args[-2]} ended: {self.said[-3:]}"
            self.said.append(json.loads(line))

    def go_on(self) -> None:
        self.said.append({"event": "told to go on"})
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def done(self) -> list[tuple[int, int]]:
        return [(step["start"], step["end"]) for step in self.said if step["event"] == "done"]

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "coordinator.log"


def test_a_killed_node_that_holds_a_lease_is_made_up_for(log):
    """MX8's demo2: kill -9, then range_requeued within 15 s and job_drained within 30 s."""
    with (
        Process(log, "--addr=127.0.0.1:0", "--journal=memory:", "--lease-ttl-ms=1000", *DEMO2) as coordinator,
        Program(coordinator.addr, "a") as a,
        Program(coordinator.addr, "b", "hold") as b,
    ):
        b.until("holding")
        b.process.kill()
        killed = time.monotonic()
        a.until("drained")
        assert time.monotonic() - killed < 15
        assert len(coordinator.events("range_requeued")) == 1
        assert len(coordinator.events("job_drained")) == 1
        assert len(coordinator.events("rank_released")) == 1
        assert coordinator.events("no_overlap_ok") and coordinator.events("live_leases")
        # Each committed sample once: join_intervals refuses an overlap.
        assert join_intervals([*a.done(), *b.done()]) == ((0, 8000),)


def test_a_coordinator_that_is_killed_goes_on_where_it_was(log, tmp_path):
    (port,) = free_ports(1)
    options = (f"--addr=127.0.0.1:{port}", f"--journal={tmp_path / 'journal'}", *DEMO2)
    with ExitStack() as stack:
        coordinator = stack.enter_context(Process(log, *options))
        a, b = (stack.enter_context(Program(coordinator.addr, name, "paced")) for name in "ab")
        for kills in range(2):
            a.until("holding")
            b.until("holding")
            coordinator.kill()
            coordinator = stack.enter_context(Process(log, *options))
            assert len(coordinator.events("leading")) == kills + 2
            a.go_on()
            b.go_on()
        a.process.stdin.close()
        b.process.stdin.close()
        a.until("drained")
        b.until("drained")
        assert coordinator.end() == 0
    assert join_intervals([*a.done(), *b.done()]) == ((0, 8000),)
    assert len(coordinator.events("lease_completed")) == 8, "what was granted before a kill is completed after it"
    assert not coordinator.events("lease_expired")


def test_it_takes_as_many_open_files_as_it_may_have_and_says_when_they_are_too_few_for_its_nodes(log):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard))
    try:
        options = ("--addr=127.0.0.1:0", "--journal=memory:", "--dev-total-samples=10", f"--world-size={hard}")
        with Process(log, *options) as coordinator:
            assert resource.prlimit(coordinator.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
            coordinator.until(f"may have {hard} files open, .* take {hard + 64}")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_sigterm_answers_what_was_asked_and_ends_with_0(log, tmp_path):
    journal = tmp_path / "journal"
    with Process(log, "--addr=127.0.0.1:0", f"--journal={journal}", "--dev-total-samples=100") as coordinator:
        (a,) = nodes(coordinator.addr, "a")
        call = a.stub.RequestLease.future(wire.RequestLeaseRequest(job_id=JOB_ID, node_id="a", want=1), timeout=10)
        lease = call.result().leases[0]
        coordinator.process.send_signal(signal.SIGTERM)
        assert coordinator.process.wait(10) == 0
    with Process(log, "--addr=127.0.0.1:0", f"--journal={journal}", "--dev-total-samples=100") as coordinator:
        with Node(coordinator.addr, "a") as a:
            a.report(lease, 100)
            assert a.request().job_drained
        assert coordinator.end() == 0


def test_a_second_coordinator_names_the_first_and_takes_over_from_it(log, tmp_path):
    options = ("--addr=127.0.0.1:0", f"--journal={tmp_path / 'journal'}", "--dev-total-samples=100")
    with Process(log, *options) as first, Process(tmp_path / "second.log", *options) as second:
        (a,) = nodes(first.addr, "a")
        lease = a.request().leases[0]
        with Node(second.addr, "a") as later:
            with pytest.raises(grpc.RpcError) as caught:
                later.heartbeat()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert dict(caught.value.trailing_metadata())["penstock-leader"] == first.addr
            first.kill()
            second.wait_for("leading")
            later.report(lease, 50)
            token = json.loads(later.stub.Checkpoint(wire.CheckpointRequest(job_id=JOB_ID)).token)
            assert token["done"] == [[0, 50]]


def test_a_dataset_link_is_resolved_and_its_manifest_handed_out(log, tmp_path):
    data, store = tmp_path / "data", tmp_path / "manifests"
    data.mkdir()
    for number in range(5):
        (data / f"{number}.txt").write_text(str(number))
    with (
        Process(
            log, "--addr=127.0.0.1:0", "--journal=memory:", f"--dataset-link={data}", f"--manifest-store-root={store}"
        ) as coordinator,
        Node(coordinator.addr, "a") as a,
    ):
        told = a.register()
        assert told.dataset_base == str(data.resolve())
        chunks = a.stub.GetManifestStream(
            wire.GetManifestRequest(job_id=JOB_ID, manifest_hash=told.manifest_hash), timeout=10
        )
        text = b"".join(chunk.data for chunk in chunks)
        assert (store / "by-hash" / told.manifest_hash).read_bytes() == text
        lease = a.request().leases[0]
        assert (lease.range.start_id, lease.range.end_id) == (0, 5)


def test_our_loaders_share_a_job_whose_coordinator_is_killed_in_the_middle(log, tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    for number in range(60):
        (data / f"{number:02}.txt").write_text(str(number))
    monkeypatch.setenv("PENSTOCK_MANIFEST_STORE_ROOT", str(tmp_path / "manifests"))
    monkeypatch.setenv("PENSTOCK_COORD_TOKEN", "secret")
    (port,) = free_ports(1)
    options = (f"--addr=127.0.0.1:{port}", f"--journal={tmp_path / 'journal'}", f"--dataset-link={data}")
    options = (*options, "--world-size=2", "--dev-block-size=6", "--shuffle")
    taken: dict[str, list[int]] = {"a": [], "b": []}
    middle, went_on = threading.Barrier(3, timeout=20), threading.Event()

    def work(node_id: str) -> None:
        with DistributedDataLoader(
            coord_url=f"http://127.0.0.1:{port}", job_id="job", node_id=node_id, batch_size_samples=2
        ) as loader:
            for step, batch in enumerate(loader):
                taken[node_id] += batch.sample_ids
                if step == 2:
                    middle.wait()
                    assert went_on.wait(20)

    with ExitStack() as stack:
        first = stack.enter_context(Process(log, *options))
        threads = stack.enter_context(ThreadPoolExecutor(2))
        working = [threads.submit(work, node_id) for node_id in taken]
        middle.wait()
        first.kill()
        second = stack.enter_context(Process(log, *options))
        went_on.set()
        for each in working:
            each.result(20)
        assert second.end() == 0
    assert taken["a"] and taken["b"]
    assert sorted(taken["a"] + taken["b"]) == list(range(60))
    assert len(second.events("job_drained")) == 1


def test_mx8s_environment_is_read_and_options_win(log, tmp_path):
    environment = {
        "MX8_COORD_BIND_ADDR": "127.0.0.1:0",
        "MX8_WORLD_SIZE": "1",
        "MX8_DEV_TOTAL_SAMPLES": "40",
        "MX8_DEV_BLOCK_SIZE": "10",
        "MX8_LEASE_TTL_MS": "3000",
        "MX8_SHUFFLE": "true",
        "MX8_SEED": "9",
        "MX8_EPOCH": "3",
        "XDG_STATE_HOME": str(tmp_path),
        "MX8_METRICS_SNAPSHOT_INTERVAL_MS": "50",
    }
    with Process(log, "--seed=8", environment=environment) as coordinator:
        (a,) = nodes(coordinator.addr, "a")
        lease = a.request().leases[0]
        assert (lease.range.seed, lease.range.epoch, lease.ttl_ms) == (8, 3, 3000)
        assert (tmp_path / "penstock" / "coordinator" / "local-job.journal").exists()
        coordinator.wait_for("metrics_snapshot")


def refused(capsys, words, *options):
    assert main(["coordinator", "--addr=127.0.0.1:0", "--journal=memory:", *options]) != 0
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said


def test_bad_options_are_refused_with_what_to_do(capsys, tmp_path, monkeypatch):
    some = "--dev-total-samples=10"
    refused(capsys, "give --dataset-link, or --dev-total-samples")
    refused(capsys, "can be reached from other machines", some, "--addr=0.0.0.0:0")
    refused(capsys, "isn't host:port", some, "--addr=50051")
    refused(capsys, "isn't host:port", f"--dataset-link={tmp_path / 'none'}", "--addr=50051")  # before it is looked for
    refused(capsys, "isn't host:port", some, "--addr=::1:50051")
    refused(capsys, "take --tls-cert", some, f"--tls-client-ca={tmp_path}")
    refused(capsys, "can't be read", some, f"--tls-cert={tmp_path / 'none.pem'}")
    refused(capsys, "make them larger", "--dev-total-samples=100000000", "--dev-block-size=1")
    refused(capsys, "block_samples is 10000000000000000000; it is from", some, "--dev-block-size=10000000000000000000")
    refused(capsys, "epochs is 2; it is from 1 to 1", some, "--epoch=4294967295", "--epochs=2")
    refused(capsys, "world-size", some, f"--world-size={2**32}")
    refused(capsys, "grpc-max-message-bytes", some, f"--grpc-max-message-bytes={2**31}")
    refused(capsys, "at most 256 characters", some, f"--job-id={'x' * 257}")
    refused(capsys, "announce 'garbage' isn't host:port", some, "--announce=garbage")
    refused(capsys, "--min-world-size=1 would never count", some, "--min-world-size=1", "--world-size=2")
    refused(capsys, "manifest not found", f"--manifest-hash={'0' * 64}", f"--manifest-store-root={tmp_path}")
    refused(capsys, "can't be read", some, f"--resume={tmp_path / 'none.json'}")
    token = tmp_path / "token.json"
    token.write_text(json.dumps({"format": 1, "manifest_hash": "x", "samples": 10, "shuffle": False, "seed": 0}))
    refused(capsys, f"{token}: the checkpoint is of manifest_hash 'x'", some, f"--resume={token}")
    refused(capsys, "there is no journal 'redis://x'", some, "--journal=redis://x")
    monkeypatch.setenv("MX8_SEED", str(2**64))
    refused(capsys, f"MX8_SEED={2**64}; give at most", some)


def test_nodes_for_whom_there_is_no_block_are_told_of(log):
    few = ("--addr=127.0.0.1:0", "--journal=memory:", "--dev-total-samples=10", "--world-size=3")
    with Process(log, *few) as coordinator:
        coordinator.until("1 block of at most 65,536 samples, so not all of 3 nodes get any.*--dev-block-size")


def test_a_shuffle_that_does_next_to_nothing_is_told_of(log):
    with Process(log, "--addr=127.0.0.1:0", "--journal=memory:", "--dev-total-samples=10", "--shuffle") as coordinator:
        coordinator.until("shuffle deals blocks in random order, and there are 1 of at most 65536 .*--dev-block-size")


def test_a_port_in_use_is_a_clear_error(capsys, log):
    with Process(log, "--addr=127.0.0.1:0", "--journal=memory:", "--dev-total-samples=10") as coordinator:
        refused(capsys, "it is in use", "--dev-total-samples=10", f"--addr={coordinator.addr}")


def test_a_journal_of_another_job_is_refused_and_a_drained_one_said(capsys, log, tmp_path):
    options = ("--addr=127.0.0.1:0", f"--journal={tmp_path / 'journal'}")
    with Process(log, *options, "--dev-total-samples=10") as coordinator:
        (a,) = nodes(coordinator.addr, "a")
        a.work()
        assert coordinator.end() == 0
    refused(
        capsys,
        "samples is 10, not 11. Give this one another job id or journal, or begin anew (--anew)",
        *options,
        "--dev-total-samples=11",
    )
    refused(capsys, "is the journal of job 'local-job'", *options, "--dev-total-samples=10", "--job-id=other")
    with Process(log, *options, "--dev-total-samples=10") as coordinator:
        coordinator.until("this job is drained.*--anew")
        with Node(coordinator.addr, "a") as a:
            assert a.request().job_drained
        assert coordinator.end() == 0
    with Process(log, *options, "--dev-total-samples=11", "--anew", "--log-json") as coordinator:
        (a,) = nodes(coordinator.addr, "b")
        assert a.work() == [(0, 11)]
        granted = [json.loads(line) for line in log.read_text().splitlines() if '"lease_granted"' in line]
        assert granted[-1]["fields"]["node"] == "b"
