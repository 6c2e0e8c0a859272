"""Output of a shared job with real processes: killed between writing and saying so, two nodes, run again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.coordinators import Process
from tests.server_process import free_ports

import penstock
from penstock.distributed.job import SUCCESS
from penstock.distributed.parts import read_part
from penstock.store import open_store

SAMPLES = 400


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "in").mkdir()
    for index in range(SAMPLES):
        (folder / "in" / f"{index:05d}").write_bytes(b"%d" % index)
    penstock.pack_dir(folder / "in", out=str(folder / "packed"), label_mode="none")
    return folder / "packed"


def coordinator(packed: Path, folder: Path, *options: str) -> Process:
    return Process(
        folder / "coordinator.log",
        *("--addr=127.0.0.1:0", "--journal=memory:", f"--dataset-link={packed}", "--dev-block-size=50"),
        *(f"--manifest-store-root={folder / 'store'}", "--lease-ttl-ms=1500", "--heartbeat-interval-ms=200", *options),
    )


def start(addr: str, node: str, folder: Path, out: str, *rest: str) -> subprocess.Popen[str]:
    program = Path(__file__).with_name("job_node.py")
    arguments = [sys.executable, str(program), f"http://{addr}", node, str(folder / "store"), out, *rest]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, int]:
    told, complaints = process.communicate(timeout=60)
    assert process.returncode == 0, complaints
    figures: dict[str, int] = json.loads(told)
    return figures


def kill(process: subprocess.Popen[str]) -> None:
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, complaints


def read_output(out: str) -> list[Any]:
    """What the listed parts hold."""
    store = open_store(out)
    listed = json.loads(store.read(SUCCESS))
    texts = [store.read(part["name"]).decode() for part in listed["parts"]]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def parts_of(out: str) -> set[str]:
    return {info.key for info in open_store(out).list() if read_part(info.key)}


EXPECTED = [[index, str(index)] for index in range(SAMPLES)]


def test_a_node_that_is_killed_between_writing_and_saying_so_loses_and_repeats_nothing(packed, tmp_path):
    out = str(tmp_path / "out")
    with coordinator(packed, tmp_path) as job:
        kill(start(job.addr, "a", tmp_path, out, "30"))
        kill(start(job.addr, "a", tmp_path, out, "20"))
        before = parts_of(out)
        figures = finish(start(job.addr, "a", tmp_path, out))
        assert job.events("lease_expired")
    assert read_output(out) == EXPECTED
    after = parts_of(out)
    assert before - after, "what was written and never counted is removed"
    assert before & after, "what was counted stays"
    assert figures["parts"] == len(after) > figures["written"]


def test_of_two_nodes_one_dies_and_the_other_does_the_rest(packed, tmp_path):
    out = str(tmp_path / "out")
    with coordinator(packed, tmp_path, "--world-size=2") as job:
        other = start(job.addr, "b", tmp_path, out)
        kill(start(job.addr, "a", tmp_path, out, "2"))
        finish(other)
    assert read_output(out) == EXPECTED


def test_two_nodes_share_the_work_into_an_object_store(packed, tmp_path, s3_root):
    out = f"{s3_root}/output"
    with coordinator(packed, tmp_path, "--world-size=2", "--shuffle", "--seed=3") as job:
        nodes = [start(job.addr, node, tmp_path, out) for node in "ab"]
        figures = [finish(node) for node in nodes]
    assert all(figure["written"] for figure in figures)
    assert len(parts_of(out)) == figures[0]["parts"] == figures[1]["parts"]
    assert read_output(out) == EXPECTED


def test_the_coordinator_is_killed_and_goes_on_with_its_journal(packed, tmp_path):
    out = str(tmp_path / "out")
    (port,) = free_ports(1)
    options = (f"--addr=127.0.0.1:{port}", f"--journal={tmp_path / 'journal'}")
    with coordinator(packed, tmp_path, *options) as job:
        kill(start(job.addr, "a", tmp_path, out, "30"))
        job.kill()
    node = start(f"127.0.0.1:{port}", "a", tmp_path, out)  # before there is a coordinator again
    with coordinator(packed, tmp_path, *options):
        figures = finish(node)
    assert read_output(out) == EXPECTED
    assert len(parts_of(out)) == figures["parts"] > figures["written"]


def test_a_job_that_is_run_again_replaces_its_output(packed, tmp_path):
    out = str(tmp_path / "out")
    found = []
    for _ in range(2):
        with coordinator(packed, tmp_path) as job:
            figures = finish(start(job.addr, "a", tmp_path, out))
        assert read_output(out) == EXPECTED
        found.append(parts_of(out))
        assert len(found[-1]) == figures["parts"] == figures["written"]
    assert not found[0] & found[1]


def test_what_counts_by_hand_counts_by_nothing_else(packed, tmp_path):
    with coordinator(packed, tmp_path) as job:
        how = {"coord_url": f"http://{job.addr}", "job_id": "job", "manifest_store_root": tmp_path / "store"}
        how |= {"batch_size_samples": 10, "max_inflight_bytes": 1 << 20}
        with penstock.DistributedDataLoader(node_id="a", **how) as loader:
            loader.count_by_hand()
            assert loader.sample_count == SAMPLES
            next(loader)
            loader.done()
            next(loader)
            assert loader.state_dict()["done"] == [[0, 10]]
        with penstock.DistributedDataLoader(node_id="a", **how) as loader:
            assert loader.state_dict()["done"] == [[0, 10]]
