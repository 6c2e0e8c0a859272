"""Each knob of ``LoaderOptions`` acts: docs/options.md names the test that proves it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from packing import make_tree
from PIL import Image

import penstock
from penstock.errors import ConfigError, DeadlineExceeded
from penstock.loader import AsyncPool, DataLoader, LoaderOptions, RandomSampler, WeightedSampler
from penstock.loader.fetch import Fetcher
from penstock.order.order import Sequential
from penstock.store import open_store
from penstock.testing.fault_proxy import Fault

SAMPLES = 100
BIG_BYTES = 100_000


@pytest.fixture(scope="module", autouse=True)
def own_folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("knobs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENSTOCK_CACHE_DIR", str(root / "cache"))
        yield root


@pytest.fixture
def load(tmp_path):
    """A loader of one kind or another with a manifest store of the test's own; closes what it made."""
    loaders = []

    def make(link, options=None, *, kind=DataLoader, **arguments):
        loaders.append(kind(str(link), options, manifest_store_root=str(tmp_path / "store"), **arguments))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


@pytest.fixture(scope="module")
def files(own_folders):
    return make_tree(own_folders / "files", {f"{i:03d}.bin": i.to_bytes(2, "big") for i in range(SAMPLES)})


def ids(loader):
    return [list(batch.sample_ids) for batch in loader]


def flat(batches):
    return [sample for batch in batches for sample in batch]


def test_batch_size_is_how_many_samples_a_batch_has(load, files):
    assert [len(batch) for batch in ids(load(files, LoaderOptions(batch_size=30)))] == [30, 30, 30, 10]


def test_drop_last_leaves_out_what_fills_no_batch(load, files):
    assert [len(batch) for batch in ids(load(files, LoaderOptions(batch_size=30, drop_last=True)))] == [30, 30, 30]


def test_shuffle_seed_and_generator_seed_choose_the_permutation(load, files):
    plain = [LoaderOptions(), LoaderOptions(seed=1), LoaderOptions(generator_seed=1)]
    assert {tuple(flat(ids(load(files, options)))) for options in plain} == {tuple(range(SAMPLES))}
    chosen = [{}, {"seed": 1}, {"generator_seed": 1}, {"seed": 1, "generator_seed": 1}, {"generator_seed": 0}]
    orders = [flat(ids(load(files, LoaderOptions(shuffle=True, **seeds)))) for seeds in chosen]
    assert all(sorted(order) == list(range(SAMPLES)) for order in orders)
    assert len(set(map(tuple, orders))) == len(chosen)
    assert flat(ids(load(files, LoaderOptions(shuffle=True, seed=1)))) == orders[1]


def test_sampler_type_chooses_what_is_visited(load, files):
    permuted = flat(ids(load(files, LoaderOptions(sampler_type=RandomSampler()))))
    assert permuted == flat(ids(load(files, LoaderOptions(shuffle=True))))
    drawn = flat(ids(load(files, LoaderOptions(sampler_type=RandomSampler(replacement=True)))))
    assert len(drawn) == SAMPLES > len(set(drawn))
    weights = [1.0 if i in (3, 5) else 0.0 for i in range(SAMPLES)]
    assert set(flat(ids(load(files, LoaderOptions(sampler_type=WeightedSampler(weights)))))) == {3, 5}
    shares = [
        flat(ids(load(files, {"sampler_type": {"kind": "distributed", "rank": r, "world_size": 4}}))) for r in range(4)
    ]
    assert sorted(flat(shares)) == list(range(SAMPLES))
    assert [len(share) for share in shares] == [25] * 4


def test_shard_rank_and_world_size_share_the_samples(load, files):
    shares = [
        flat(ids(load(files, LoaderOptions(batch_size=8, shard_rank=rank, shard_world_size=3)))) for rank in range(3)
    ]
    assert sorted(flat(shares)) == list(range(SAMPLES))
    assert shares[1][:8] == list(range(8, 16))


def test_worker_id_and_num_workers_pytorch_share_a_ranks_steps(load, files):
    parts = [
        ids(load(files, LoaderOptions(batch_size=10, worker_id=worker, num_workers_pytorch=3))) for worker in range(3)
    ]
    whole = ids(load(files, LoaderOptions(batch_size=10)))
    assert parts == [whole[worker::3] for worker in range(3)]


class Watched(DataLoader):
    """Counts how many batches are built at once; a build waits until so many are, or for a moment."""

    wanted = 1

    def _work(self):
        work, build = super()._work(), super()._work().build
        lock, enough = threading.Lock(), threading.Event()
        self.most = now = 0

        def watched(unit, charge):
            nonlocal now
            with lock:
                now += 1
                self.most = max(self.most, now)
                if now == self.wanted:
                    enough.set()
            if unit.index > 0:  # the first is built alone
                enough.wait(5)
            try:
                return build(unit, charge)
            finally:
                with lock:
                    now -= 1

        work.build = watched
        return work


@pytest.mark.parametrize(
    ("knobs", "most"),
    [
        ({}, 1),
        ({"prefetch": 3}, 3),
        ({"loading_mode": AsyncPool(8, 2)}, 2),
        ({"loading_mode": AsyncPool(8, 2), "prefetch": 4}, 4),
    ],
)
def test_prefetch_and_loading_mode_say_how_many_batches_are_built_at_once(load, files, knobs, most):
    kind = type("Watched", (Watched,), {"wanted": most})
    loader = load(files, LoaderOptions(batch_size=5, **knobs), kind=kind)
    assert flat(ids(loader)) == list(range(SAMPLES))
    assert loader.most == most
    assert loader.stats()["prefetch_batches"] == most


def test_auto_tune_turns_knobs_and_says_so(load, files):
    assert "tune_decisions" not in load(files, LoaderOptions()).stats()
    assert load(files, LoaderOptions(auto_tune=True)).stats()["tune_decisions"] == []


def test_collate_buffer_size_is_how_many_samples_are_planned_together(load, files, monkeypatch):
    asked, at = [], Sequential.at

    def counted(order, positions):
        asked.append(len(positions))
        return at(order, positions)

    monkeypatch.setattr(Sequential, "at", counted)
    assert flat(ids(load(files, LoaderOptions(batch_size=10, collate_buffer_size=64)))) == list(range(SAMPLES))
    assert asked == [60, 40]
    asked.clear()
    assert flat(ids(load(files, LoaderOptions(batch_size=10)))) == list(range(SAMPLES))
    assert asked == [SAMPLES]


def test_num_workers_is_how_many_threads_read_a_batch_of_files(load, files, own_folders, monkeypatch):
    penstock.pack_dir(str(files), out=str(own_folders / "packed"))
    told, read_ranges = [], penstock._core.read_ranges

    def counted(*arguments, threads):
        told.append(threads)
        return read_ranges(*arguments, threads=threads)

    monkeypatch.setattr(penstock._core, "read_ranges", counted)
    for workers in (1, 3):
        assert flat(ids(load(own_folders / "packed", LoaderOptions(num_workers=workers)))) == list(range(SAMPLES))
        assert set(told) == {workers}
        told.clear()


@pytest.fixture(scope="module")
def pictures(own_folders):
    for number in range(6):
        path = own_folders / "pictures" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8), (number * 20, 100, 200)).save(path)
    penstock.pack_dir(str(own_folders / "pictures"), out=str(own_folders / "images"), label_mode="imagefolder")
    return own_folders / "images"


def test_num_workers_is_how_many_threads_decode_images(load, pictures):
    pytest.importorskip("torch")
    from penstock.vision import ImageFolderLoader

    loader = load(pictures, LoaderOptions(num_workers=3), kind=ImageFolderLoader, resize_hw=(4, 4))
    assert loader.stats()["decode_threads"] == 3


def test_memory_format_is_the_layout_of_pixels(load, pictures, files):
    pytest.importorskip("torch")
    from penstock.vision import ImageFolderLoader

    def pixels(memory_format):
        loader = load(pictures, LoaderOptions(memory_format=memory_format), kind=ImageFolderLoader)
        (images, _) = next(loader)
        return images.numpy()

    assert pixels("auto").shape == pixels("channels_first").shape == (6, 3, 8, 12)
    assert np.array_equal(pixels("channels_last"), pixels("channels_first").transpose(0, 2, 3, 1))
    with pytest.raises(ConfigError, match="memory_format is 'channels_last'"):
        load(files, LoaderOptions(memory_format="channels_last"))


# Object stores: what is asked for, as the server sees it


@pytest.fixture
def objects(s3_root, s3_proxy):
    """One object of 100,000 bytes and six of ten, and requests for them from here on."""
    store = open_store(f"{s3_root}/in")
    store.put("big.bin", bytes(BIG_BYTES))
    for number in range(6):
        store.put(f"small/{number}.bin", b"0123456789")
    s3_proxy.clear()
    return f"{s3_root}/in"


def gets(proxy, path_part):
    return [request.byte_range for request in proxy.requests if request.method == "GET" and path_part in request.path]


@pytest.mark.s3
def test_reader_mode_and_part_size_say_what_one_request_reads(load, objects, s3_proxy):
    def ranges(**knobs):
        s3_proxy.clear()
        assert [len(batch.payload) for batch in load(objects, LoaderOptions(**knobs))] == [BIG_BYTES + 60]
        return sorted(gets(s3_proxy, "/big.bin"))

    assert len(ranges()) == 1
    assert len(ranges(part_size=30_000)) == 1  # of parts, there are none in sequence
    parts = ranges(reader_mode="range", part_size=30_000)
    assert parts == ["bytes=0-29999", "bytes=30000-59999", "bytes=60000-89999", "bytes=90000-99999"]
    assert len(ranges(reader_mode="range", part_size="1MiB")) == 1


@pytest.mark.s3
@pytest.mark.parametrize(("at_once", "least", "most"), [(1, 1, 1), (4, 2, 4)])
def test_max_inflight_parts_says_how_many_parts_are_read_at_once(load, objects, s3_proxy, at_once, least, most):
    s3_proxy.add_rule(lambda request: Fault(bytes_per_s=400_000) if "/big.bin" in request.path else None)
    options = LoaderOptions(reader_mode="range", part_size=25_000, max_inflight_parts=at_once)
    loader = load(objects, options, start_id=0, end_id=1)
    assert [batch.payload_bytes for batch in loader] == [BIG_BYTES]
    assert len(gets(s3_proxy, "/big.bin")) == 4
    assert least <= s3_proxy.peak_count <= most


@pytest.mark.s3
@pytest.mark.parametrize(
    ("knobs", "least", "most"),
    [
        ({"num_workers": 1}, 1, 1),
        ({"num_workers": 2}, 2, 2),
        ({"loading_mode": AsyncPool(pool_size=1)}, 1, 1),
        ({"loading_mode": AsyncPool(pool_size=5)}, 3, 5),
    ],
)
def test_num_workers_and_pool_size_say_how_many_requests_are_made_at_once(
    load, objects, s3_proxy, tmp_path, knobs, least, most
):
    penstock.resolve_manifest_hash(objects, manifest_store_root=str(tmp_path / "store"))
    s3_proxy.clear()
    s3_proxy.add_rule(lambda request: Fault(bytes_per_s=100))
    loader = load(objects, LoaderOptions(**knobs), start_id=1, end_id=7)
    assert flat(ids(loader)) == [1, 2, 3, 4, 5, 6]
    assert least <= s3_proxy.peak_count <= most


@pytest.mark.s3
def test_timeout_seconds_is_how_long_next_waits(load, objects, s3_proxy):
    s3_proxy.fail_next(100, Fault(hang=True), method="GET", path_part="/big.bin")
    loader = load(objects, LoaderOptions(timeout_seconds=0.2))
    with pytest.raises(DeadlineExceeded, match=r"no batch within 0.2 s: .*; raise timeout_seconds"):
        next(loader)


def test_every_reader_knob_reaches_whoever_reads(load, files, monkeypatch):
    told, init = [], Fetcher.__init__

    def noted(fetcher, dataset, clock, reading):
        told.append(reading)
        init(fetcher, dataset, clock, reading)

    monkeypatch.setattr(Fetcher, "__init__", noted)
    load(files, LoaderOptions(num_workers=3, reader_mode="range", part_size="1MiB", max_inflight_parts=2))
    (reading,) = told
    assert (reading.threads, reading.requests, reading.part_bytes, reading.parts) == (3, 3, 1 << 20, 2)
