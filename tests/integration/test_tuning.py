"""Tuning a running loader: what it changes, what it never changes, and how it shows."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import penstock
from penstock.errors import ConfigError
from penstock.loader import tuner
from penstock.loader.data_loader import DataLoader
from penstock.loader.profiles import PROFILES
from penstock.loader.tune import Decision, Knobs, State
from penstock.observe.live import totals
from penstock.vision import ImageFolderLoader

SAMPLES, SAMPLE_BYTES = 2400, 1000
TEN = {"batch_size_samples": 10}  # 240 batches of 10,000 bytes


@pytest.fixture(scope="module", autouse=True)
def own_folders(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("tuning")
        patch.setenv("PENSTOCK_MANIFEST_STORE_ROOT", str(root / "store"))
        patch.setenv("PENSTOCK_CACHE_DIR", str(root / "cache"))
        yield root


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch):
    monkeypatch.setattr(tuner, "_LEAST_S", 0.02)
    monkeypatch.setattr(tuner, "_kept", {})


@pytest.fixture(scope="module")
def packed(own_folders) -> str:
    folder = own_folders / "in"
    folder.mkdir()
    for index in range(SAMPLES):
        (folder / f"{index:04}.bin").write_bytes(index.to_bytes(4, "big") * (SAMPLE_BYTES // 4))
    penstock.pack_dir(str(folder), out=str(own_folders / "packed"))
    return str(own_folders / "packed")


@pytest.fixture(scope="module")
def pictures(own_folders) -> str:
    random = np.random.default_rng(1)
    for index in range(60):
        place = own_folders / "pictures" / str(index % 3)
        place.mkdir(parents=True, exist_ok=True)
        shape = (int(random.integers(20, 60)), int(random.integers(20, 60)), 3)
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(place / f"{index}.jpg", quality=90)
    penstock.pack_dir(str(own_folders / "pictures"), out=str(own_folders / "images"), label_mode="imagefolder")
    return str(own_folders / "images")


class SlowSource(DataLoader):
    """Each batch takes its time, on whoever builds it."""

    def _work(self):
        work, build = super()._work(), super()._work().build

        def slowly(unit, charge):
            threading.Event().wait(0.01)
            return build(unit, charge)

        work.build = slowly
        return work


def drain(loader, step_s=0.0) -> None:
    for batch in loader:
        batch.release()
        if step_s:
            time.sleep(step_s)


def test_a_hungry_loop_gets_more_builders_and_never_more_than_the_cap(packed):
    cap = 64 << 10
    with SlowSource(
        packed, max_inflight_bytes=cap, tune=True, profile="throughput", prefetch_batches=None, **TEN
    ) as it:
        assert it.stats()["prefetch_batches"] == PROFILES["throughput"].prefetch
        drain(it)
        stats = it.stats()
    assert stats["delivered_samples_total"] == SAMPLES
    assert stats["ram_high_water_bytes"] <= cap
    raised = [made for made in stats["tune_decisions"] if made["knob"] == "prefetch"]
    assert (raised[0]["from"], raised[0]["to"]) == (4, 5), "five and the one in hand are what the cap has room for"
    assert set(raised[0]) == {"batch", "knob", "from", "to", "reason"}
    assert "waited" in raised[0]["reason"] and raised[0]["batch"] >= 4
    assert max(made["to"] for made in raised) <= 5


def test_more_builders_make_a_slow_source_faster(packed):
    with SlowSource(packed, tune=True, **TEN) as loader:
        drain(loader)
        stats = loader.stats()
    raised = max(made["to"] for made in stats["tune_decisions"] if made["knob"] == "prefetch")
    assert 2 < raised <= PROFILES["balanced"].most_prefetch
    assert stats["tune_decisions_total"] == len(stats["tune_decisions"])


def test_a_loop_that_never_waits_gets_no_more_and_gives_back(packed, monkeypatch):
    monkeypatch.setattr(tuner, "_LEAST_S", 0.1)  # a moment in which the machine had other work is no hunger
    with penstock.load(packed, tune=True, **TEN) as loader:
        drain(loader, step_s=0.01)
        stats = loader.stats()
    assert stats["max_queue_batches"] < PROFILES["balanced"].queue
    assert stats["prefetch_batches"] <= PROFILES["balanced"].prefetch


def test_what_was_given_explicitly_is_the_most(packed):
    with SlowSource(packed, tune=True, profile="throughput", prefetch_batches=3, max_queue_batches=2, **TEN) as loader:
        drain(loader)
        stats = loader.stats()
    assert stats["prefetch_batches"] <= 3 and stats["max_queue_batches"] <= 2
    assert all(made["to"] <= 3 for made in stats["tune_decisions"])


def test_the_next_epoch_starts_where_this_one_ended(packed, monkeypatch):
    knobs = Knobs(prefetch=5, threads=0, queue=7)
    monkeypatch.setattr(tuner, "decide", lambda *_: (State(knobs), Decision("prefetch", 2, 5, "it is five here")))
    with SlowSource(packed, tune=True, epoch=0, shuffle=True, **TEN) as loader:
        drain(loader)
    with SlowSource(packed, tune=True, epoch=1, shuffle=True, **TEN) as loader:
        stats = loader.stats()
        assert (stats["prefetch_batches"], stats["max_queue_batches"]) == (5, 7)
    with SlowSource(packed, tune=True, max_inflight_bytes="1MiB", shuffle=True, **TEN) as loader:
        assert loader.stats()["prefetch_batches"] == PROFILES["balanced"].prefetch, "another cap is another matter"


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_alone_sets_the_start_and_changes_nothing_later(packed, name):
    with SlowSource(packed, profile=name, end_id=600, start_id=0, **TEN) as loader:
        drain(loader)
        stats = loader.stats()
    assert (stats["prefetch_batches"], stats["max_queue_batches"]) == (PROFILES[name].prefetch, PROFILES[name].queue)
    assert stats["tune_decisions_total"] == 0 and "tune_decisions" not in stats


def test_the_defaults_are_as_they_were(packed):
    with penstock.load(packed) as loader:
        stats = loader.stats()
        assert (stats["prefetch_batches"], stats["max_queue_batches"], stats["decode_threads"]) == (1, 64, 0)


def test_an_unknown_profile_lists_the_choices(packed):
    with pytest.raises(ConfigError, match="safe, balanced, throughput"):
        penstock.load(packed, profile="fast")
    with pytest.raises(ConfigError, match="tune is 1"):
        penstock.load(packed, tune=1)


def test_metrics_and_top_get_numbers_alone(packed):
    with SlowSource(packed, tune=True, **TEN) as loader:
        drain(loader)
        (total,) = [each for each in totals() if each.dataset == loader._dataset.base]
        assert total.gauges["prefetch_batches"] == loader.stats()["prefetch_batches"]
        assert total.counters["tune_decisions_total"] >= loader.stats()["tune_decisions_total"] > 0
        assert "tune_decisions" not in total.gauges


def test_threads_start_as_the_profile_says_and_those_chosen_stay(pictures, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(6))
    with ImageFolderLoader(pictures, resize_hw=(8, 8), profile="safe") as loader:
        assert loader.stats()["decode_threads"] == 3 == loader._decoder._pool.thread_count
    monkeypatch.setenv("PENSTOCK_DECODE_THREADS", "5")
    with ImageFolderLoader(pictures, resize_hw=(8, 8), profile="safe") as loader:
        assert loader.stats()["decode_threads"] == 5


def test_images_of_unknown_size_are_built_one_after_another_whatever_is_tuned(pictures):
    with ImageFolderLoader(pictures, batch_size_samples=1, tune=True, profile="throughput") as loader:
        assert sum(len(labels) for _, labels in loader) == 60
        assert loader.stats()["prefetch_batches"] == 1


@settings(max_examples=15, deadline=None)
@given(turns=st.lists(st.tuples(*[st.integers(1, 6)] * 3), min_size=1, max_size=12))
def test_pixels_and_order_do_not_depend_on_what_tuning_does(pictures, turns):
    arguments = {"resize_hw": (16, 16), "to_float": False, "shuffle": True, "seed": 3, "batch_size_samples": 4}
    with ImageFolderLoader(pictures, horizontal_flip=0.5, **arguments) as plain:
        expected = [(images.numpy().copy(), labels.tolist()) for images, labels in plain]
    left = iter(turns * 60)

    def anything(seen, state, limits):
        """Turn all knobs as Hypothesis says; the rules themselves are tested elsewhere."""
        prefetch, threads, queue = next(left)
        knobs = type(state.knobs)(prefetch, threads, queue)
        return type(state)(knobs), Decision("prefetch", state.knobs.prefetch, prefetch, "Hypothesis wants it")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuner, "decide", anything)
        patch.setattr(tuner, "_LEAST_S", 0.0)
        patch.setattr(tuner, "_LEAST_BATCHES", 1)
        with ImageFolderLoader(pictures, horizontal_flip=0.5, tune=True, **arguments) as tuned:
            found = [(images.numpy().copy(), labels.tolist()) for images, labels in tuned]
            assert tuned.stats()["tune_decisions_total"] > 0
    assert [labels for _, labels in found] == [labels for _, labels in expected]
    assert all(np.array_equal(one, other) for (one, _), (other, _) in zip(found, expected, strict=True))
