"""The trace of an epoch: real loaders, the file parsed, what must hold of it checked."""

from __future__ import annotations

import json
import os
from collections import defaultdict

import pytest
from packing import pack_thousands

import penstock
from penstock.errors import ConfigError
from penstock.observe.trace import Trace

ON_A_THREAD = {"plan", "budget_wait", "fetch", "data_wait"}
BATCHES = 10


@pytest.fixture
def packed(tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("PENSTOCK_MANIFEST_STORE_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    return pack_thousands(tmp_path, (f"{index:03}.bin" for index in range(BATCHES * 4)))


def consume(loader) -> None:
    for batch in loader:
        batch.release()


def spans_of(events) -> dict[int, dict[str, tuple[float, float]]]:
    """Start and end in microseconds of each stage, by batch."""
    spans = defaultdict(dict)
    for event in events:
        if event["ph"] == "X":
            spans[event["args"]["batch"]][event["name"]] = (event["ts"], event["ts"] + event["dur"])
    begun = {event["id"]: event["ts"] for event in events if event["ph"] == "b"}
    for event in events:
        if event["ph"] == "e":
            spans[event["id"]][event["name"]] = (begun.pop(event["id"]), event["ts"])
    assert not begun, "every asynchronous span ends"
    return spans


@pytest.mark.parametrize("prefetch", [1, 3])
def test_every_batch_goes_through_every_stage_in_order(packed, tmp_path, monkeypatch, prefetch):
    monkeypatch.setenv("PENSTOCK_TRACE", str(tmp_path / "traces" / "of today"))
    cap = 9000 if prefetch == 1 else 20_000  # room for two batches, or for five
    with penstock.load(packed, batch_size_samples=4, prefetch_batches=prefetch, max_inflight_bytes=cap) as loader:
        consume(loader)
    (path,) = (tmp_path / "traces" / "of today").iterdir()
    events = json.loads(path.read_text())
    spans = spans_of(events)
    assert sorted(spans) == list(range(BATCHES))
    for stages in spans.values():
        assert set(stages) == ON_A_THREAD | {"queue_wait"}
        ordered = [stages[name] for name in ("plan", "budget_wait", "fetch", "queue_wait")]
        assert all(start <= end for start, end in ordered)
        for earlier, later in zip(ordered, ordered[1:], strict=False):
            assert earlier[1] <= later[0] + 0.01
        assert stages["queue_wait"][1] == pytest.approx(stages["data_wait"][1], abs=0.01), (
            "both end when next() returns"
        )


def test_spans_of_a_thread_do_not_overlap_and_threads_have_names(packed, tmp_path):
    with penstock.load(packed, batch_size_samples=4, prefetch_batches=2) as loader:
        loader.trace(tmp_path / "trace.json")
        consume(loader)
    events = json.loads((tmp_path / "trace.json").read_text())
    assert {event["pid"] for event in events} == {os.getpid()}
    (process,) = [event for event in events if event["name"] == "process_name"]
    assert process["args"]["name"] == f"{packed}@sha256:{loader.manifest_hash}"
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    by_thread = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            by_thread[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert set(names) == set(by_thread)
    assert any(name == "MainThread" for name in names.values())
    for spans in by_thread.values():
        spans.sort()
        assert all(a[1] <= b[0] + 0.01 for a, b in zip(spans, spans[1:], strict=False))


def test_the_seconds_of_the_trace_are_those_of_stats(packed, tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_TRACE", str(tmp_path / "traces"))
    with penstock.load(packed, batch_size_samples=4) as loader:
        consume(loader)
    stats = loader.stats()
    (path,) = (tmp_path / "traces").iterdir()
    spans = spans_of(json.loads(path.read_text()))
    for stage in (*ON_A_THREAD, "queue_wait"):
        traced_s = sum(end - start for start, end in (stages[stage] for stages in spans.values())) / 1e6
        assert stats[f"{stage}_s"] == pytest.approx(traced_s, abs=1e-6)


def test_images_have_a_decode_stage(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setenv("PENSTOCK_MANIFEST_STORE_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("PENSTOCK_TRACE", str(tmp_path / "traces"))
    for index in range(6):
        path = tmp_path / "in" / f"class{index % 2}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.new("RGB", (40, 30), (index, 0, 0)).save(path)
    penstock.pack_dir(str(tmp_path / "in"), out=str(tmp_path / "out"))
    with penstock.vision.ImageFolderLoader(str(tmp_path / "out"), batch_size_samples=2, resize_hw=(8, 8)) as loader:
        assert len(list(loader)) == 3
    assert loader.stats()["decode_s"] > 0
    (path,) = (tmp_path / "traces").iterdir()
    for stages in spans_of(json.loads(path.read_text())).values():
        assert stages["fetch"][1] <= stages["decode"][0] + 0.01
        assert stages["decode"][1] <= stages["queue_wait"][0] + 0.01


def test_without_a_trace_nothing_is_written(packed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    with penstock.load(packed, batch_size_samples=4) as loader:
        consume(loader)
    assert sorted(path for path in tmp_path.iterdir() if path.name not in {"store", "cache"}) == [
        path for path in before if path.name not in {"store", "cache"}
    ]


def test_what_a_killed_process_wrote_is_a_trace_without_its_bracket(tmp_path):
    trace = Trace(tmp_path / "t.json", "a dataset")
    trace.span("fetch", 3, 1.0, 1.5)
    cut = (tmp_path / "t.json").read_text()
    (fetch,) = [event for event in json.loads(cut + "]") if event["ph"] == "X"]
    assert (fetch["ts"], fetch["dur"], fetch["args"]) == (1e6, 5e5, {"batch": 3})
    trace.close()
    trace.close()
    trace.span("fetch", 4, 2.0, 2.5)
    assert len(json.loads((tmp_path / "t.json").read_text())) == 3


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")  # Python 3.12 and later
def test_a_forked_child_leaves_the_trace_alone(tmp_path):
    trace = Trace(tmp_path / "t.json", "a dataset")
    child = os.fork()
    if child == 0:
        trace.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    trace.span("plan", 0, 0.0, 1.0)
    trace.close()
    assert len(json.loads((tmp_path / "t.json").read_text())) == 3


def test_a_path_that_cannot_be_written_is_named(packed, tmp_path, monkeypatch):
    with penstock.load(packed) as loader, pytest.raises(ConfigError, match=r"nowhere/t\.json"):
        loader.trace(tmp_path / "nowhere" / "t.json")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PENSTOCK_TRACE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="PENSTOCK_TRACE is a folder"):
        penstock.load(packed)


def test_a_full_disk_ends_the_trace_and_not_the_loader(packed, caplog):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with penstock.load(packed, batch_size_samples=4) as loader:
        loader.trace("/dev/full")
        assert sum(len(batch) for batch in loader) == BATCHES * 4
    assert [record.message for record in caplog.records if "/dev/full" in record.message] == [
        "the trace /dev/full ends here: [Errno 28] No space left on device"
    ]
