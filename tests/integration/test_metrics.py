"""Real scrapes over loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from packing import pack_thousands

import penstock
from penstock.errors import ConfigError, PenstockError
from penstock.observe import live, metrics

pytest.importorskip("prometheus_client")
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture(autouse=True)
def fresh_totals(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_MANIFEST_STORE_ROOT", str(tmp_path / "store"))
    monkeypatch.setattr(live, "_live", set())
    monkeypatch.setattr(live, "_done", {})
    yield
    metrics.stop()


@pytest.fixture
def packed(tmp_path) -> str:
    return pack_thousands(tmp_path, (f"{index:03}.bin" for index in range(40)))


def scrape(port: int) -> dict[tuple[str, str], float]:
    """Values by metric and stage, or dataset where there is no stage."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    return {
        (sample.name, sample.labels.get("stage") or sample.labels.get("dataset", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_scrape_says_what_stats_say(packed):
    with metrics.serve(port=0) as server, penstock.load(packed, batch_size_samples=10) as loader:
        held = next(loader)
        found, stats = scrape(server.port), loader.stats()
        assert found["penstock_delivered_samples_total", packed] == 10
        assert found["penstock_delivered_bytes_total", packed] == 10_000
        assert found["penstock_max_inflight_bytes", packed] == stats["max_inflight_bytes"] == 128 << 20
        assert 10_000 <= found["penstock_inflight_bytes", packed] <= 40_000
        assert found["penstock_loaders", packed] == 1
        assert found["penstock_prefetch_batches", packed] == stats["prefetch_batches"] == 1
        assert found["penstock_tune_decisions_total", packed] == 0
        assert 0 < found["penstock_stage_seconds_total", "fetch"] <= stats["fetch_s"]
        assert found["penstock_stage_seconds_total", "data_wait"] == pytest.approx(stats["data_wait_s"])
        assert found["process_resident_memory_bytes", ""] > 1 << 20
        del held


def test_counters_go_on_over_epochs_and_gauges_end(packed):
    with metrics.serve(port=0) as server:
        for epoch in (1, 2, 3):
            with penstock.load(packed, batch_size_samples=10) as loader:
                for batch in loader:
                    batch.release()
                assert scrape(server.port)["penstock_delivered_samples_total", packed] == 40 * epoch
            found = scrape(server.port)
            assert found["penstock_delivered_samples_total", packed] == 40 * epoch
            assert found["penstock_loaders", packed] == 0
            assert found["penstock_max_inflight_bytes", packed] == 0


def test_names_end_in_base_units():
    with metrics.serve(port=0) as server:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{server.port}/metrics", timeout=20) as answer:
            lines = answer.read().decode().splitlines()
    types = dict(line.split()[2:4] for line in lines if line.startswith("# TYPE penstock_"))
    assert len(types) >= 9
    for name, kind in types.items():
        if kind == "counter":
            assert name.endswith("_total")
        else:
            assert name.endswith(("_bytes", "_batches", "_threads", "_loaders"))


def test_only_loopback_listens(packed):
    with metrics.serve(port=0) as server:
        assert server._server.socket.getsockname()[0] == "127.0.0.1"


def test_the_variable_serves_once_and_a_taken_port_is_a_warning(packed, monkeypatch, caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("PENSTOCK_METRICS_PORT", str(taken.getsockname()[1]))
        with penstock.load(packed) as loader:
            assert sum(len(batch) for batch in loader) == 40
        (warning,) = [record.message for record in caplog.records if "PENSTOCK_METRICS_PORT" in record.message]
        assert str(taken.getsockname()[1]) in warning
        free = taken.getsockname()[1]
    monkeypatch.setenv("PENSTOCK_METRICS_PORT", str(free))
    with penstock.load(packed) as first, penstock.load(packed):
        next(first).release()
        assert scrape(free)["penstock_loaders", packed] == 2


def test_explicit_ports_that_cannot_work_are_errors():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            metrics.serve(port)
    with pytest.raises(ConfigError, match="99999"):
        metrics.serve(99999)


def test_a_missing_package_is_named(packed, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(PenstockError, match="pip install prometheus-client"):
        penstock.metrics.serve()
    monkeypatch.setenv("PENSTOCK_METRICS_PORT", "9464")
    with pytest.raises(PenstockError, match="pip install prometheus-client"):
        penstock.load(packed)


def test_nothing_imports_it_unasked():
    code = (
        "import sys, penstock.loader, penstock.vision\n"
        "from penstock.cli.main import main\n"
        "penstock.metrics, main(['--help'])\n"
        "assert 'prometheus_client' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False, env={**os.environ})
    assert done.returncode == 0


def test_faulty_samples_are_counted(packed):
    shard = Path(packed, "shards", "shard-00000.tar")
    damaged = bytearray(shard.read_bytes())
    damaged[512] ^= 1  # the first sample's first byte
    shard.write_bytes(damaged)
    with metrics.serve(port=0) as server, penstock.load(packed, batch_size_samples=10, on_error="skip") as loader:
        next(loader)
        found = scrape(server.port)
    counted = [found[f"penstock_{which}_samples_total", packed] for which in ("faulty", "skipped", "replaced")]
    assert counted == [1, 1, 0]
