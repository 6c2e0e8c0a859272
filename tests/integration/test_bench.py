"""``penstock bench`` on real datasets."""

from __future__ import annotations

import json
import threading

import pytest
from packing import pack_thousands

import penstock
from penstock.cli.bench import measure
from penstock.cli.main import main


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_MANIFEST_STORE_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def packed(tmp_path) -> str:
    return pack_thousands(tmp_path, (f"{label}/{index}.bin" for label in "ab" for index in range(50)))


def bench(capsys, *arguments):
    code = main(["bench", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out)


def test_six_runs_with_rates_and_a_reason_each(packed, capsys):
    before = set(threading.enumerate())
    code, result = bench(capsys, packed, "--seconds", 0.1, "--batch-size", 10)
    assert code == 0
    runs = result["runs"]
    assert [(run["order"], run["prefetch_batches"]) for run in runs] == [
        (order, prefetch) for order in ("in order", "shuffled") for prefetch in (1, 2, 4)
    ]
    for run in runs:
        assert run["seconds"] >= 0.1
        assert run["bytes_per_s"] == pytest.approx(1000 * run["samples_per_s"])
        assert run["samples_per_s"] > 100 and run["reason"]
        assert run["decode_share"] == 0
    left = {thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("penstock-")}
    assert left <= {"penstock-store"}, "it stays for as long as the process"


def test_a_slow_training_step_makes_the_consumer_the_bottleneck(packed, capsys):
    _, result = bench(capsys, packed, "--seconds", 0.3, "--batch-size", 10, "--step-ms", 100)
    for run in result["runs"]:
        assert run["bottleneck"] == "consumer"
        assert run["samples_per_s"] < 10 / 0.100


def test_images_are_decoded(tmp_path, capsys):
    pytest.importorskip("torch")
    image = pytest.importorskip("PIL.Image")
    for index in range(12):
        path = tmp_path / "in" / f"class{index % 2}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.effect_noise((640, 480), 60).convert("RGB").save(path, quality=95)
    penstock.pack_dir(str(tmp_path / "in"), out=str(tmp_path / "packed"))
    _, result = bench(capsys, f"{tmp_path}/packed", "--images", "--seconds", 0.2, "--batch-size", 4, "--size", 32)
    for run in result["runs"]:
        assert run["decode_share"] > run["fetch_share"]
    assert result["runs"][0]["bottleneck"] == "decode"


def test_a_person_gets_a_table_and_the_reason(packed, capsys):
    assert main(["bench", packed, "--seconds", "0.05"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{packed}: 100 samples")
    assert lines[1].split()[:2] == ["order", "prefetch"]
    assert lines[-3].startswith("fastest: ")
    assert lines[-2].split(": ")[0] in {"storage", "consumer", "decode", "budget"}
    assert lines[-1].startswith("note: an epoch has only 1 of these batches")


def test_a_cap_that_no_batch_fits_is_the_loaders_own_error(packed, capsys):
    code, result = bench(capsys, packed, "--seconds", 0.05, "--max-inflight", "10KB", "--batch-size", 50)
    assert code == 1
    assert result["error"]["type"] == "UnitTooLarge"


def test_epochs_follow_one_another_until_the_time_is_up(packed):
    epochs = []

    def make(epoch):
        epochs.append(epoch)
        return penstock.load(packed, batch_size_samples=50)

    rates = measure(make, 0.2, 0.0)
    assert rates.seconds >= 0.2
    assert len(epochs) > 1 and epochs == list(range(len(epochs)))
    assert rates.samples_per_s * rates.seconds >= 100 * (len(epochs) - 1)
