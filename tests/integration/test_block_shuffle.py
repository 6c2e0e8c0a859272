"""Block shuffles of real shards: what is read, what is held, and what happens when something goes wrong."""

from __future__ import annotations

import gc
import io
import threading

import numpy as np
import pytest

import penstock
from penstock.compat.s3dlio import PyAsyncDataLoader, PyVecDataset
from penstock.errors import BudgetHeld, ClosedError, ConfigError, ResumeError, ShardCorrupt
from penstock.loader import BlockSampler
from waiting import wait_until

SAMPLES, BYTES = 400, 1000
TEN_BLOCKS = BlockSampler(block_bytes=10 * BYTES, window_bytes=100 * BYTES)  # windows of 100 samples


@pytest.fixture(scope="module")
def contents():
    random = np.random.default_rng(5)
    return [random.bytes(BYTES) for _ in range(SAMPLES)]


@pytest.fixture
def packed(tmp_path, contents):
    (tmp_path / "in").mkdir()
    for index, data in enumerate(contents):
        (tmp_path / "in" / f"{index:04d}.bin").write_bytes(data)
    penstock.pack_dir(tmp_path / "in", out=str(tmp_path / "out"), shard_mb=1, label_mode="none")
    return tmp_path / "out"


@pytest.fixture
def load(packed, tmp_path):
    loaders = []

    def make(**arguments):
        arguments = {"sampler": TEN_BLOCKS, "batch_size_samples": 16, "max_inflight_bytes": "1MB"} | arguments
        loaders.append(penstock.load(str(packed), manifest_store_root=str(tmp_path / "store"), **arguments))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


def ids(loader):
    return [sample for batch in loader for sample in batch.sample_ids]


@pytest.mark.parametrize("prefetch", [1, 3])
@pytest.mark.parametrize("batch", [1, 16, 100, 130, 400])
def test_every_sample_comes_once_and_whole(load, contents, prefetch, batch):
    cap = "1MB" if batch < 400 else "2MB"  # one of 400 takes from all four windows
    loader, found = load(prefetch_batches=prefetch, batch_size_samples=batch, max_inflight_bytes=cap), {}
    for delivered in loader:
        found |= {i: bytes(sample) for i, sample in zip(delivered.sample_ids, delivered, strict=True)}
    assert [found[i] for i in range(SAMPLES)] == contents


def test_the_order_depends_on_seed_and_epoch_and_not_on_how_it_is_read(load):
    expected = ids(load())
    for arguments in ({"prefetch_batches": 3}, {"batch_size_samples": 7}, {"max_inflight_bytes": "9MB"}):
        assert ids(load(**arguments)) == expected
    for arguments in ({"seed": 1}, {"epoch": 1}, {"sampler": BlockSampler(20 * BYTES, 100 * BYTES)}):
        assert ids(load(**arguments)) != expected
    by_bytes = load(target_batch_bytes=5 * BYTES)
    assert ids(by_bytes) == expected


def test_the_next_epoch_of_the_same_loader(load):
    loader = load()
    first = ids(loader)
    loader.set_epoch(1)
    assert ids(loader) == ids(load(epoch=1)) != first


def test_samplers_come_as_dicts_as_well(load):
    assert ids(load(sampler={"kind": "block", "block_bytes": "10KB", "window_bytes": "100KB"})) == ids(load())


def test_two_windows_are_held_and_nothing_of_them_at_the_end(load):
    loader = load(max_queue_batches=1)
    batch = next(loader)
    assert loader.stats()["inflight_bytes"] >= 2 * 100 * BYTES + batch.payload_bytes
    for batch in loader:
        stats = loader.stats()
        assert stats["inflight_bytes"] <= 2 * 100 * BYTES + 4 * 16 * BYTES
        assert stats["windows_bytes"] in (0, 100 * BYTES, 2 * 100 * BYTES)
    del batch
    assert loader.stats()["inflight_bytes"] == 0


def test_a_rank_holds_its_own_part_of_a_window(load):
    found = []
    for rank in range(4):
        loader = load(rank=rank, world_size=4, batch_size_samples=5)
        found.append([batch.sample_ids for batch in loader])
        assert loader.stats()["ram_high_water_bytes"] <= 2 * 35 * BYTES + SAMPLES // 4 * BYTES
    steps = [sample for step in zip(*found, strict=True) for batch in step for sample in batch]
    assert steps == ids(load())


@pytest.mark.parametrize(("batch", "held", "needed"), [(16, 96, 16), (20, 100, 120)])
def test_keeping_batches_is_an_error_with_the_numbers_of_what_is_kept(load, batch, held, needed):
    # Two windows and 100 samples fit. A batch of 16 takes from both windows; one of 20 begins the third.
    loader = load(batch_size_samples=batch, max_inflight_bytes=300 * BYTES)
    kept = []
    with pytest.raises(BudgetHeld, match=r"windows of its shuffle") as raised:
        for _ in range(SAMPLES):
            kept.append(next(loader))
    assert raised.value.held_bytes == sum(each.payload_bytes for each in kept) == held * BYTES
    assert raised.value.needed_bytes == needed * BYTES
    seen = [sample for each in kept for sample in each.sample_ids]
    kept.clear()
    assert seen + ids(loader) == ids(load()), "let go, and it goes on"


def test_a_state_names_the_blocks(load):
    loader = load()
    next(loader)
    with pytest.raises(ResumeError, match="order was 'block 10000 100000' and is 'block 10000 200000' now"):
        load(resume=loader.state_dict(), sampler=BlockSampler(10 * BYTES, 200 * BYTES))
    with pytest.raises(ResumeError, match="order was 'block 10000 100000' and is 'random' now"):
        load(resume=loader.state_dict(), sampler="random")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sampler": BlockSampler("1MB", "2MB")}, "two windows .* 4000000 bytes .* max_inflight_bytes 1000000"),
        ({"sampler": {"kind": "block", "block_bytes": 0.5}}, "block_bytes is 0.5"),
        ({"sampler": {"kind": "block", "block_bytes": 10, "window_bytes": 19}}, "less than two blocks"),
        ({"sampler": {"kind": "block", "blocks": 3}}, "'block' takes block_bytes, window_bytes"),
    ],
)
def test_what_cannot_work_is_refused(load, arguments, says):
    with pytest.raises(ConfigError, match=says):
        load(**arguments)


def test_a_folder_that_was_not_packed_is_refused(tmp_path, packed):
    with pytest.raises(ConfigError, match="how large samples are"):
        penstock.load(str(tmp_path / "in"), manifest_store_root=str(tmp_path / "store"), sampler=TEN_BLOCKS)


def test_a_loader_says_how_random_its_order_is(load):
    random, ascending = load(sampler="random").shuffle_quality(), load(sampler="sequential").shuffle_quality()
    blocks = load().shuffle_quality()
    assert random.value > 0.9 and ascending.value == 0
    assert 0.1 < blocks.value < random.value
    ranks = load(rank=1, world_size=2, batch_size_samples=8).shuffle_quality()
    assert ranks == blocks, "what a step of all ranks holds is what counts"
    assert load(start_id=100, end_id=300, sampler="random").shuffle_quality().value > 0.9
    with pytest.raises(ConfigError, match="labels"):
        load().shuffle_quality(by_label=True)
    with pytest.raises(ConfigError, match="order is 'replacement'"):
        load(sampler={"kind": "random", "replacement": True}).shuffle_quality()


def test_a_mixture_is_not_read_in_windows(packed, tmp_path):
    mixture = penstock.mix({"a": str(packed), "b": f"{packed}@refresh"})
    with pytest.raises(ConfigError, match="BlockSampler"):
        penstock.load(mixture, sampler=TEN_BLOCKS, manifest_store_root=str(tmp_path / "store"))


def test_what_is_no_dataset_has_no_blocks():
    with pytest.raises(ConfigError, match="take RandomSampler"):
        PyAsyncDataLoader(PyVecDataset([1, 2, 3]), {"sampler_type": {"kind": "block"}})


def test_tuning_moves_builders_and_loses_nothing(load, contents):
    loader = load(tune=True, batch_size_samples=3)
    assert sorted(ids(loader)) == list(range(SAMPLES))
    assert loader.stats()["ram_high_water_bytes"] <= loader.stats()["max_inflight_bytes"]


@pytest.mark.parametrize("arguments", [{}, {"transform_bytes": 4 * BYTES, "prefetch_batches": 3}])
def test_a_batch_that_is_made_again_finds_its_window(load, contents, arguments):
    def grow(sample):  # results outgrow what was charged for the first ones
        data = sample.data
        size = 10 + int(data[0]) * 15
        return np.full(size, data[1], dtype=np.uint8)

    expected = ids(load())
    loader = load(transform=grow, collate=list, batch_size_samples=10, max_inflight_bytes="4MB", **arguments)
    found = [(len(result), int(result[0])) for batch in loader for result in batch]
    assert found == [(10 + contents[i][0] * 15, contents[i][1]) for i in expected]


def damage(packed, contents, *samples):
    path = packed / "shards" / "shard-00000.tar"
    data = bytearray(path.read_bytes())
    for sample in samples:
        data[data.index(contents[sample]) + 10] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("prefetch", [1, 3])
def test_damage_is_an_error_of_the_batch_that_it_is_in(load, packed, contents, prefetch):
    expected = ids(load())
    damage(packed, contents, expected[250])
    loader, found = load(prefetch_batches=prefetch, batch_size_samples=20), []
    with pytest.raises(ShardCorrupt, match=f"sample {expected[250]} "):
        for batch in loader:
            found += batch.sample_ids
    assert found == expected[:240], "batches before come whole, those of the same window as well"
    assert next(loader, None) is None
    del batch
    gc.collect()  # the error's frames
    wait_until(lambda: not loader.stats()["inflight_bytes"], "who builds later batches notices by and by")


@pytest.mark.parametrize("prefetch", [1, 3])
def test_damaged_samples_are_left_out_where_that_is_borne(load, packed, contents, prefetch):
    expected = ids(load())
    bad = [expected[place] for place in (3, 104, 105, 399)]
    damage(packed, contents, *bad)
    loader, found = load(prefetch_batches=prefetch, on_error="skip"), {}
    for batch in loader:
        found |= {i: bytes(sample) for i, sample in zip(batch.sample_ids, batch, strict=True)}
    assert list(found) == [sample for sample in expected if sample not in bad]
    assert all(contents[i] == sample for i, sample in found.items())
    assert loader.stats()["faulty_samples_total"] == 4
    assert len(ids(load(prefetch_batches=prefetch, on_error="replace"))) == SAMPLES


@pytest.mark.parametrize("prefetch", [1, 3])
@pytest.mark.parametrize("taken", [0, 1, 6, 7])
def test_closing_anywhere_leaves_no_thread_and_no_charge(load, prefetch, taken):
    before = set(threading.enumerate())
    loader = load(prefetch_batches=prefetch)
    for _ in range(taken):
        next(loader)
    loader.close()
    with pytest.raises(ClosedError):
        next(loader)
    assert set(threading.enumerate()) <= before
    gc.collect()
    assert loader.stats()["inflight_bytes"] == 0


def test_closing_while_a_window_is_read_wakes_whoever_waits_for_it(load, monkeypatch):
    reading, go_on = threading.Event(), threading.Event()

    def stuck(fetcher, unit, dest, faults):
        reading.set()
        go_on.wait(30)

    monkeypatch.setattr(penstock.loader.fetch.Fetcher, "fetch", stuck)
    loader = load(prefetch_batches=3)
    assert reading.wait(10)
    outcome = []

    def consume():
        with pytest.raises(ClosedError):
            next(loader)
        outcome.append("woken")

    consumer = threading.Thread(target=consume)
    consumer.start()
    closer = threading.Thread(target=loader.close)
    closer.start()
    consumer.join(10)
    go_on.set()
    closer.join(10)
    assert outcome == ["woken"] and not closer.is_alive()


def test_a_dropped_loader_stops_its_threads(load, packed, tmp_path):
    before = set(threading.enumerate())
    loader = penstock.load(
        str(packed), manifest_store_root=str(tmp_path / "store"), sampler=TEN_BLOCKS, batch_size_samples=16
    )
    next(loader)
    del loader
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive(), thread.name


@pytest.fixture
def photographs(tmp_path):
    """60 pictures, each with a label of its own to know it by; 7 and 31 can't be decoded."""
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("torch")
    random = np.random.default_rng(2)
    for index in range(60):
        picture = image.fromarray(random.integers(0, 255, (24, 20, 3), dtype=np.uint8))
        out = io.BytesIO()
        picture.save(out, format="PNG" if index % 5 == 0 else "JPEG")
        folder = tmp_path / "in" / f"{index:03d}"
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(bytes(900) if index in (7, 31) else out.getvalue())
    penstock.pack_dir(tmp_path / "in", out=str(tmp_path / "out"), label_mode="imagefolder")

    def pixels(**arguments):
        arguments = {"dtype": "uint8", "on_error": "skip", "manifest_store_root": str(tmp_path / "store")} | arguments
        with penstock.vision.ImageFolderLoader(str(tmp_path / "out"), **arguments) as loader:
            pairs = [pair for images, labels in loader for pair in zip(labels.tolist(), images.numpy(), strict=True)]
            stats = loader.stats()
        assert stats["ram_high_water_bytes"] <= stats["max_inflight_bytes"]
        return [(label, pixels.tobytes()) for label, pixels in pairs]

    return pixels


@pytest.mark.parametrize("prefetch", [1, 3])
@pytest.mark.parametrize("arguments", [{"resize_hw": (12, 10)}, {}])
def test_images_are_decoded_out_of_windows(photographs, arguments, prefetch):
    expected = dict(photographs(**arguments))
    assert len(expected) == 58
    found = photographs(
        sampler=BlockSampler("3KB", "15KB"), batch_size_samples=7, prefetch_batches=prefetch, **arguments
    )
    assert [label for label, _ in found] != sorted(label for label, _ in found)
    assert len(found) == 58 and dict(found) == expected
