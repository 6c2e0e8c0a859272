"""Transforms of the user's, on threads and in processes: order, errors, budget, epochs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.integration import transforms_used as used

import penstock
from penstock.errors import ClosedError, ConfigError, TransformError, UnitTooLarge
from penstock.loader import RandomSampler

# From Python 3.12 on, fork() beside threads is a warning; who asks for it knows.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

WAYS = [
    {"workers": "threads"},
    {"workers": "processes", "multiprocessing_context": "fork"},
    {"workers": "processes"},
]
IDS = ["threads", "fork", "spawn"]


class Dataset(NamedTuple):
    link: str
    store: str
    contents: list[bytes]

    def __repr__(self) -> str:  # short, for Hypothesis
        return self.link


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Sixty labelled files of 1 to 3000 random bytes: link, store, contents."""
    root = tmp_path_factory.mktemp("transforms")
    random = np.random.default_rng(11)
    contents = []
    for label in ("cat", "dog"):
        (root / "in" / label).mkdir(parents=True)
        for index in range(30):
            contents.append(random.bytes(int(random.integers(1, 3000))))
            (root / "in" / label / f"{index:03d}.bin").write_bytes(contents[-1])
    penstock.pack_dir(str(root / "in"), out=str(root / "out"))
    return Dataset(str(root / "out"), str(root / "store"), contents)


@pytest.fixture
def load(dataset):
    loaders = []

    def make(**arguments):
        arguments = {"batch_size": 8, "num_workers": 2, "manifest_store_root": dataset.store, **arguments}
        loaders.append(penstock.load(dataset.link, **arguments))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


@pytest.mark.parametrize("way", WAYS, ids=IDS)
def test_everything_arrives_in_order(load, dataset, way):
    found = list(load(transform=used.describe, **way))
    assert [len(batch["id"]) for batch in found] == [8] * 7 + [4]
    assert np.concatenate([batch["id"] for batch in found]).tolist() == list(range(60))
    assert np.concatenate([batch["label"] for batch in found]).tolist() == [0] * 30 + [1] * 30
    assert b"".join(batch["bytes"].payload.tobytes() for batch in found) == b"".join(dataset.contents)
    heads = np.concatenate([batch["head"] for batch in found])
    assert heads.tolist() == [np.resize(np.frombuffer(each, np.uint8), 8).tolist() for each in dataset.contents]


def test_random_numbers_are_the_samples_own(load):
    def numbers(**arguments):
        found = {}
        for batch in load(transform=used.describe, **arguments):
            found |= dict(zip(batch["id"].tolist(), batch["random"].tolist(), strict=True))
        return found

    plain = numbers(workers="threads", num_workers=1)
    assert len(set(plain.values())) == 60
    assert plain == numbers(workers="processes", multiprocessing_context="fork", num_workers=3, batch_size=5)
    assert plain == numbers(transform_bytes=4000, prefetch_batches=3, shuffle=True)
    assert not set(plain.values()) & set(numbers(epoch=1).values())
    assert not set(plain.values()) & set(numbers(seed=1).values())


def _contents(batch) -> dict[int, bytes]:
    """What the samples of a batch hold, by id, however it was collated."""
    if isinstance(batch, list):
        return {number: data.tobytes() for number, data, _ in batch}
    if isinstance(batch, tuple):
        ids, data, sizes = batch
        return {i: row[:size].tobytes() for i, row, size in zip(ids.tolist(), data, sizes, strict=True)}
    payload, offsets = batch["bytes"]
    pieces = (payload[a:b].tobytes() for a, b in zip(offsets, offsets[1:], strict=False))
    return dict(zip(batch["id"].tolist(), pieces, strict=True))


@settings(max_examples=25)
@given(
    batch_size=st.integers(1, 20),
    num_workers=st.integers(1, 4),
    transform_bytes=st.sampled_from([None, 3100]),
    prefetch=st.integers(1, 3),
    shuffle=st.booleans(),
    cap=st.integers(400_000, 600_000),
    how=st.sampled_from([{}, {"collate": penstock.pad()}, {"collate": list}]),
)
def test_any_knobs_give_the_same_under_the_cap(
    dataset, batch_size, num_workers, transform_bytes, prefetch, shuffle, cap, how
):
    link, store, contents = dataset
    loader = penstock.load(
        link,
        manifest_store_root=store,
        transform=(lambda sample: (sample.id, sample.data, len(sample))) if how else used.describe,
        batch_size=batch_size,
        num_workers=num_workers,
        transform_bytes=transform_bytes,
        prefetch_batches=prefetch,
        shuffle=shuffle,
        max_inflight_bytes=cap,
        **how,
    )
    found = {}
    for batch in loader:
        found |= _contents(batch)
        assert loader.stats()["inflight_bytes"] <= cap
    assert [found[i] for i in range(60)] == contents
    assert loader.stats()["ram_high_water_bytes"] <= cap
    del batch
    assert loader.stats()["inflight_bytes"] == 0
    loader.close()


@pytest.mark.parametrize("way", WAYS[:2], ids=IDS[:2])
def test_a_batch_at_once(load, dataset, way):
    found = list(load(batch_transform=used.lengths, transform_bytes=100, **way))
    assert [number for batch in found for number in batch["ids"]] == list(range(60))
    assert np.concatenate([batch["lengths"] for batch in found]).tolist() == [len(each) for each in dataset.contents]
    assert len(list(load(batch_transform=used.lengths, **way))) == 8


@pytest.mark.parametrize("way", WAYS[:2], ids=IDS[:2])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_first_error_in_order_names_its_sample_and_shows_where(load, way, num_workers):
    loader = load(transform=used.thirteen_fails, num_workers=num_workers, **way)
    assert next(loader).tolist() == list(range(8))
    with pytest.raises(
        TransformError, match=r"sample 13 \(.*shard-00000.tar at offset \d+\): ValueError: 13 is bad"
    ) as r:
        next(loader)
    assert r.value.sample_id == 13 and "shard-00000.tar" in r.value.location
    assert "in thirteen_fails" in r.value.details
    with pytest.raises(StopIteration):
        next(loader)


@pytest.mark.parametrize("way", WAYS[:2], ids=IDS[:2])
@pytest.mark.parametrize("how", [{}, {"collate": list}, {"transform_bytes": 3100, "prefetch_batches": 2}])
def test_samples_that_fail_are_left_out_or_replaced(load, dataset, way, how):
    def found(on_error):
        batches = []
        loader = load(transform=used.every_third_fails, on_error=on_error, **way, **how)
        for batch in loader:
            if isinstance(batch, list):
                batches.append([(number, bytes(data)) for number, data in batch])
                continue
            ids, (payload, offsets) = batch
            pieces = [payload[a:b].tobytes() for a, b in zip(offsets, offsets[1:], strict=False)]
            batches.append(list(zip(ids.tolist(), pieces, strict=True)))
        assert loader.stats()["faulty_samples_total"] == 20
        return batches

    skipped = found("skip")
    assert [number for batch in skipped for number, _ in batch] == [i for i in range(60) if i % 3]
    assert all(data == dataset.contents[number] for batch in skipped for number, data in batch)
    replaced = found("replace")
    assert [len(batch) for batch in replaced] == [8] * 7 + [4]
    assert all(number % 3 and data == dataset.contents[number] for batch in replaced for number, data in batch)


@pytest.mark.parametrize("way", WAYS[:2], ids=IDS[:2])
def test_an_error_that_cannot_say_what_it_is_is_one_samples_all_the_same(load, way):
    with pytest.raises(TransformError, match="sample 5 .*Speechless"):
        next(load(transform=used.five_fails_without_words, **way))
    loader = load(transform=used.five_fails_without_words, on_error="skip", **way)
    assert np.concatenate(list(loader)).tolist() == [i for i in range(60) if i != 5]


def test_a_batch_may_come_to_nothing(load):
    loader = load(transform=used.every_third_fails, on_error="skip", batch_size=1)
    assert next(loader) == []  # nobody has seen a result yet
    assert next(loader)[0].tolist() == [1] and next(loader)[0].tolist() == [2]
    ids, (payload, offsets) = next(loader)
    assert (ids.shape, ids.dtype, payload.shape, offsets.tolist()) == ((0,), np.int64, (0,), [0])


@pytest.mark.parametrize("way", WAYS[:2], ids=IDS[:2])
def test_a_batch_transform_gets_the_sound_samples(load, dataset, tmp_path, way):
    shard = Path(dataset.link, "shards", "shard-00000.tar")
    packed = Path(shutil.copytree(dataset.link, tmp_path / "damaged"))
    data = bytearray(shard.read_bytes())
    data[data.index(dataset.contents[5])] ^= 255
    (packed / "shards" / shard.name).write_bytes(data)
    arguments = {"manifest_store_root": str(tmp_path / "store"), "batch_size": 8, "batch_transform": used.ids_of, **way}
    with penstock.load(f"{packed}@refresh", on_error="skip", **arguments) as loader:
        assert next(loader) == [0, 1, 2, 3, 4, 6, 7]


@pytest.mark.parametrize("way", WAYS[:2], ids=IDS[:2])
def test_a_result_that_cannot_be_moved_names_its_sample(load, way):
    with pytest.raises(TransformError, match="sample 7 .* builtins.object; return arrays") as raised:
        list(load(transform=used.object_at_7, **way))
    assert raised.value.sample_id == 7


@pytest.mark.parametrize("way", WAYS[:2], ids=IDS[:2])
def test_a_result_larger_than_was_said_is_an_error_with_both_numbers(load, way):
    with pytest.raises(TransformError, match="takes 200000 bytes, and 199999 bytes are what transform_bytes allows"):
        list(load(transform=used.large, transform_bytes=199_999, **way))


@pytest.mark.parametrize("way", WAYS[:2], ids=IDS[:2])
def test_results_are_charged_before_they_exist(load, way):
    loader = load(transform=used.large, transform_bytes=200_000, max_inflight_bytes="4MiB", **way)
    for batch in loader:
        assert batch.shape[1] == 200_000
        assert loader.stats()["inflight_bytes"] >= batch.nbytes
    assert loader.stats()["ram_high_water_bytes"] <= 4 << 20
    with pytest.raises(UnitTooLarge, match="needs 120"):
        list(load(transform=used.large, transform_bytes=200_000, max_inflight_bytes="1MiB", batch_size=80, **way))
    with pytest.raises(UnitTooLarge):
        list(load(transform=used.large, max_inflight_bytes="1MiB", batch_size=80, **way))


@pytest.mark.parametrize("way", WAYS[:2], ids=IDS[:2])
def test_what_was_handed_out_outlives_the_loader(load, way):
    loader = load(transform=used.large, **way)
    batch = next(loader)
    loader.close()
    assert (batch == np.arange(8, dtype=np.uint8)[:, None]).all()
    with pytest.raises(ClosedError):
        next(loader)


def test_workers_persist_when_asked_and_seed_themselves_anew(load):
    def pids(loader):
        return {pid for batch in loader for pid in batch[0].tolist()}

    kept = load(transform=used.pid_and_global_random, persistent_workers=True, **WAYS[1])
    first = pids(kept)
    assert os.getpid() not in first
    kept.set_epoch(1)
    assert pids(kept) <= first
    kept.close()
    fresh = load(transform=used.pid_and_global_random, **WAYS[1])
    assert not pids(fresh) & first
    numbers = [
        batch[which].tolist() for batch in load(transform=used.pid_and_global_random, **WAYS[1]) for which in (1, 2)
    ]
    assert len({number for each in numbers for number in each}) == 120


def test_samples_of_a_block_shuffle_are_transformed(load, dataset):
    sampler = penstock.loader.BlockSampler(block_bytes=4000, window_bytes=16_000)
    for known in ({"transform_bytes": 3200}, {}):
        found = list(load(transform=used.describe, sampler=sampler, max_inflight_bytes="1MiB", **known))
        ids = np.concatenate([batch["id"] for batch in found]).tolist()
        assert sorted(ids) == list(range(60)) != ids
        data = b"".join(batch["bytes"].payload.tobytes() for batch in found)
        assert data == b"".join(dataset.contents[i] for i in ids)
    with pytest.raises(ConfigError, match="leave one of them"):
        load(group_by_length=True, sampler=sampler)


def test_going_on_from_a_state_gives_the_rest(load):
    loader = load(transform=used.describe, shuffle=True)
    first = [next(loader)["id"].tolist() for _ in range(3)]
    rest = [batch["id"].tolist() for batch in load(transform=used.describe, shuffle=True, resume=loader.state_dict())]
    whole = [batch["id"].tolist() for batch in load(transform=used.describe, shuffle=True)]
    assert first + rest == whole


def test_stats_and_trace_show_the_stage(load, tmp_path):
    loader = load(transform=used.describe)
    loader.trace(tmp_path / "trace.json")
    list(loader)
    loader.close()
    assert loader.stats()["transform_s"] > 0
    assert loader.stats()["worker_restarts_total"] == 0
    assert '"transform"' in (tmp_path / "trace.json").read_text()


def test_a_collate_that_fails_names_the_batch(load):
    def collate(results):
        raise KeyError(len(results))

    with pytest.raises(TransformError, match=r"collate failed on batch 0 \(8 samples from id 0\): KeyError: 8"):
        next(load(transform=used.describe, collate=collate))


def test_transforms_of_a_batch_run_side_by_side(load):
    meeting = threading.Barrier(3)

    def transform(sample):
        if sample.id < 3:
            meeting.wait(20)
        return sample.id

    assert next(load(transform=transform, num_workers=3)).tolist() == list(range(8))


def test_close_ends_a_loader_that_is_transforming(load):
    entered, go_on = threading.Event(), threading.Event()

    def transform(sample):
        entered.set()
        go_on.wait(20)
        return sample.id

    loader = load(transform=transform, num_workers=2)
    entered.wait(20)
    closing = threading.Thread(target=loader.close)
    closing.start()
    with pytest.raises(ClosedError):
        while True:
            next(loader)
    go_on.set()
    closing.join(20)
    assert not closing.is_alive()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"collate": penstock.pad()}, "collate goes with a transform"),
        ({"transform": used.head, "batch_transform": used.lengths}, "exclude one another"),
        ({"transform": 5}, "give a function"),
        ({"transform": used.head, "collate": 5}, "give penstock.pad"),
        ({"batch_transform": used.lengths, "collate": list}, "makes the batch itself"),
        ({"transform": used.head, "transform_bytes": 0}, "transform_bytes"),
        ({"transform": used.head, "workers": "rockets"}, "threads, processes"),
        ({"transform": used.head, "on_worker_death": "weep"}, "replace, raise"),
        ({"transform": used.head, "multiprocessing_context": "fork"}, "there are no processes"),
        ({"transform": lambda sample: 1, "workers": "processes"}, "not a lambda or a local function"),
        ({"enable_transforms": True}, "no transform to enable"),
    ],
)
def test_what_cannot_work_is_refused(load, arguments, says):
    with pytest.raises(ConfigError, match=says):
        load(**arguments)


def test_enable_transforms_switches(load):
    assert next(load(transform=used.head, enable_transforms=True)).shape == (8, 64)
    assert isinstance(next(load(transform=used.head, enable_transforms=False)), penstock.Batch)


PROGRAM = """
import penstock
loader = penstock.load({link!r}, manifest_store_root={store!r}, transform=lambda sample: len(sample), batch_size=60)
print(next(loader).sum())
"""


def test_threads_work_in_an_interactive_session(dataset):
    text = PROGRAM.format(link=dataset.link, store=dataset.store)
    found = subprocess.run([sys.executable, "-i"], input=text, capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == str(sum(map(len, dataset.contents)))


SESSION = """
import penstock
def transform(sample):
    return 1

try:
    penstock.load({link!r}, manifest_store_root={store!r}, transform=transform, workers="processes")
except penstock.PenstockError as error:
    print(error)

"""


def test_processes_in_an_interactive_session_say_why_not(dataset):
    text = SESSION.format(link=dataset.link, store=dataset.store)
    found = subprocess.run([sys.executable, "-i"], input=text, capture_output=True, text=True, timeout=60, check=True)
    assert "transform transform is defined in an interactive session" in found.stdout


SCRIPT = """
import penstock
def transform(sample):
    return sample.id

loader = penstock.load({link!r}, manifest_store_root={store!r}, transform=transform, workers="processes", num_workers=1)
try:
    print(next(loader))
except penstock.PenstockError as error:
    print(error)
"""


def test_a_script_without_a_main_guard_is_told(dataset, tmp_path):
    path = Path(tmp_path / "script.py")
    path.write_text(SCRIPT.format(link=dataset.link, store=dataset.store))
    found = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=60, check=True)
    assert "before it was ready" in found.stdout and "__main__" in found.stdout
    path.write_text(SCRIPT.format(link=dataset.link, store=dataset.store).replace("processes", "threads"))
    found = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=60, check=True)
    assert "[ 0  1  2" in found.stdout


@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_a_sample_that_comes_again_draws_other_numbers_each_time(load, workers):
    how = {"transform": used.drawn, "workers": workers, "sampler": RandomSampler(replacement=True), "seed": 3}
    batches = [np.array(batch) for batch in load(**how)]
    pairs = [tuple(row) for batch in batches for row in batch.tolist()]  # sample id, number
    ids = [sample for sample, _ in pairs]
    assert len(set(ids)) < len(ids) == len(set(pairs)) == len({number for _, number in pairs})
    again = [tuple(row) for batch in load(**how, batch_size=3) for row in np.array(batch).tolist()]
    assert again == pairs
