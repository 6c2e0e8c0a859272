"""Faulty samples: real damage, all four ways of dealing with it, and ranks that still take the same steps."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import penstock
from penstock.dataset.resolve import resolve
from penstock.errors import (
    ConfigError,
    ObjectNotFound,
    SampleChanged,
    SampleError,
    SampleMissing,
    ShardCorrupt,
    StoreUnavailable,
    TooManyFaults,
)
from penstock.loader import RandomSampler
from penstock.store import open_store

COUNT = 40


class Damaged:
    """A packed dataset, and ways to damage its one shard."""

    def __init__(self, folder: Path) -> None:
        random = np.random.default_rng(11)
        for index in range(COUNT):
            path = folder / "in" / f"class{index // 20}" / f"{index:03d}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(random.bytes(100 + int(random.integers(0, 400))))
        self.files = sorted((folder / "in").rglob("*.bin"))
        self.contents = [path.read_bytes() for path in self.files]
        self.raw = str(folder / "in")
        self.packed = str(folder / "out")
        self.store = str(folder / "store")
        penstock.pack_dir(self.raw, out=self.packed, label_mode="imagefolder")
        self.shard = Path(self.packed, "shards", "shard-00000.tar")
        self.sound = self.shard.read_bytes()
        self.offsets = resolve(self.packed, manifest_store_root=self.store).manifest.offset.tolist()
        self.loaders: list[penstock.DataLoader] = []

    def flip(self, *samples: int) -> None:
        damaged = bytearray(self.sound)
        for sample in samples:
            damaged[self.offsets[sample] + 7] ^= 1
        self.shard.write_bytes(damaged)

    def load(self, link: str | None = None, **arguments) -> penstock.DataLoader:
        self.loaders.append(penstock.load(link or self.packed, manifest_store_root=self.store, **arguments))
        return self.loaders[-1]

    def close(self) -> None:
        for loader in self.loaders:
            loader.close()


@pytest.fixture
def damaged(tmp_path):
    dataset = Damaged(tmp_path)
    yield dataset
    dataset.close()


def delivered(loader) -> list[tuple[int, bytes]]:
    return [(i, bytes(sample)) for batch in loader for i, sample in zip(batch.sample_ids, batch, strict=True)]


@pytest.mark.parametrize("prefetch", [1, 3])
@pytest.mark.parametrize("bad", [(0,), (39,), (3, 4, 5, 17), tuple(range(8, 16))])
def test_skipped_samples_leave_batches_that_are_shorter(damaged, bad, prefetch):
    damaged.flip(*bad)
    loader = damaged.load(batch_size_samples=8, on_error="skip", prefetch_batches=prefetch)
    batches = list(loader)
    assert len(batches) == len(loader) == 5
    for number, batch in enumerate(batches):
        expected = [i for i in range(8 * number, 8 * number + 8) if i not in bad]
        assert batch.sample_ids == expected and len(batch) == len(expected)
        assert [bytes(sample) for sample in batch] == [damaged.contents[i] for i in expected]
        assert batch.payload == b"".join(damaged.contents[i] for i in expected)
        assert batch.label_ids == [i // 20 for i in expected]
        assert len(batch.array()) == len(batch.view) == batch.payload_bytes == batch.offsets[-1]
    stats = loader.stats()
    assert stats["delivered_samples_total"] == COUNT - len(bad)
    assert stats["delivered_bytes_total"] == sum(map(len, damaged.contents)) - sum(
        len(damaged.contents[i]) for i in bad
    )
    assert (stats["faulty_samples_total"], stats["skipped_samples_total"]) == (len(bad), len(bad))
    assert stats["replaced_samples_total"] == 0
    assert stats["faulty_samples_by_kind"] == {"ShardCorrupt": len(bad)}


@pytest.mark.parametrize("shuffle", [False, True])
def test_replaced_samples_are_good_ones_of_the_same_batch_whatever_prefetch_is(damaged, shuffle):
    bad = {3, 4, 5, 17}
    damaged.flip(*bad)
    runs = []
    for prefetch in (1, 3):
        loader = damaged.load(
            batch_size_samples=8, on_error="replace", prefetch_batches=prefetch, shuffle=shuffle, seed=2
        )
        runs.append([(batch.sample_ids, batch.payload, batch.label_ids) for batch in loader])
    assert runs[0] == runs[1]
    planned = np.arange(COUNT) if not shuffle else None
    skipped = 0
    for number, (ids, payload, labels) in enumerate(runs[0]):
        assert not bad & set(ids)
        assert payload == b"".join(damaged.contents[i] for i in ids)
        assert labels == [i // 20 for i in ids]
        skipped += 8 - len(ids)
        if planned is not None:
            assert set(ids) <= set(planned[8 * number : 8 * number + 8].tolist())
    stats = loader.stats()
    assert (stats["faulty_samples_total"], stats["skipped_samples_total"]) == (4, skipped)
    assert stats["replaced_samples_total"] == 4 - skipped


def test_a_batch_without_a_good_sample_is_delivered_empty(damaged):
    damaged.flip(*range(8, 16))
    for on_error in ("skip", "replace"):
        batches = list(damaged.load(batch_size_samples=8, on_error=on_error))
        assert [len(batch) for batch in batches] == [8, 0, 8, 8, 8]
        empty = batches[1]
        assert (empty.sample_ids, empty.offsets, empty.label_ids, empty.payload) == ([], [0], [], b"")
        assert list(empty) == [] and empty.array().shape == (0,)


def test_an_empty_batch_becomes_empty_tensors(damaged):
    pytest.importorskip("torch")
    damaged.flip(*range(8))
    tensors = next(damaged.load(batch_size_samples=8, on_error="skip")).to_torch_with_labels()
    assert [list(tensor.shape) for tensor in tensors] == [[0], [1], [0], [0]]


def test_raising_is_the_default(damaged):
    damaged.flip(12)
    with pytest.raises(ShardCorrupt, match="sample 12 ") as raised:
        list(damaged.load(batch_size_samples=8))
    assert raised.value.sample_id == 12


def test_a_function_sees_the_whole_error_and_decides(damaged):
    damaged.flip(3, 12, 30)
    seen = []

    def decide(error):
        seen.append((type(error), error.sample_id, error.location, error.offset, error.key))
        return "raise" if error.sample_id == 30 else "skip"

    loader = damaged.load(batch_size_samples=8, on_error=decide)
    assert [len(next(loader)) for _ in range(3)] == [7, 7, 8]
    with pytest.raises(ShardCorrupt, match="sample 30 "):
        next(loader)
    with pytest.raises(StopIteration):
        next(loader)
    shard = str(damaged.shard)
    assert seen == [(ShardCorrupt, i, shard, damaged.offsets[i], f"{i:020d}.bin") for i in (3, 12, 30)]


def test_what_a_function_answers_wrongly_is_an_error_of_the_batch(damaged):
    damaged.flip(3)
    with pytest.raises(ConfigError, match="on_error returned None"):
        next(damaged.load(on_error=print))


def test_a_truncated_shard_loses_what_lay_behind_the_cut(damaged):
    os.truncate(damaged.shard, damaged.offsets[25] + 3)
    loader = damaged.load(batch_size_samples=8, on_error="skip")
    batches = list(loader)
    assert [batch.sample_ids for batch in batches] == [
        list(range(8)),
        list(range(8, 16)),
        list(range(16, 24)),
        [24],
        [],
    ]
    assert delivered(batches) == list(enumerate(damaged.contents[:25]))
    assert loader.stats()["faulty_samples_by_kind"] == {"SampleChanged": 15}


def test_a_whole_file_that_is_gone_is_faulty(damaged):
    damaged.load(damaged.raw).close()  # a plain link means this listing from now on
    damaged.files[5].unlink()
    damaged.files[9].write_bytes(b"other")
    loader = damaged.load(damaged.raw, batch_size_samples=8, on_error="skip")
    assert [i for i, _ in delivered(loader)] == [i for i in range(COUNT) if i != 5]
    assert loader.stats()["faulty_samples_by_kind"] == {"SampleMissing": 1}
    with pytest.raises(SampleMissing, match="sample 5 ") as raised:
        list(damaged.load(damaged.raw))
    assert isinstance(raised.value, ObjectNotFound) and raised.value.location == str(damaged.files[5])


def test_a_missing_file_has_its_path_as_its_key(damaged):
    damaged.load(damaged.raw).close()
    damaged.files[5].unlink()
    keys = []
    loader = damaged.load(damaged.raw, on_error=lambda error: keys.append((error.key, error.offset)) or "skip")
    list(loader)
    assert keys == [("class0/005.bin", -1)]


def test_faults_of_a_mixture_are_named_by_their_own_source(damaged):
    damaged.load(damaged.raw).close()
    damaged.files[5].unlink()
    damaged.flip(7)
    errors = []
    mixture = penstock.mix({"shards": damaged.packed, "files": damaged.raw}, labels="none")
    loader = damaged.load(mixture, batch_size_samples=8, on_error=lambda error: errors.append(error) or "skip")
    found = delivered(loader)
    assert sorted(i for i, _ in found) == [i for i in range(2 * COUNT) if i not in (7, COUNT + 5)]
    assert all(data == damaged.contents[i % COUNT] for i, data in found)
    named = sorted((error.sample_id, error.key, error.location) for error in errors)
    assert named[0] == (7, f"{7:020d}.bin", str(damaged.shard))
    assert named[1] == (COUNT + 5, "class0/005.bin", str(damaged.files[5]))


def test_every_fault_is_logged_once_with_all_that_names_it(damaged, caplog):
    damaged.flip(3, 12)
    loader = damaged.load(batch_size_samples=8, on_error="skip", prefetch_batches=2)
    with caplog.at_level(logging.WARNING, "penstock"):
        list(loader)
    lines = [record.getMessage() for record in caplog.records if "faulty" in record.getMessage()]
    assert len(lines) == 2
    for line, sample in zip(lines, (3, 12), strict=True):
        for part in (
            f"faulty sample {sample} skipped: ShardCorrupt",
            f"'{sample:020d}.bin'",
            f"offset {damaged.offsets[sample]}, in {damaged.shard}",
            loader.manifest_hash,
            "crc32c",
        ):
            assert part in line


@pytest.mark.parametrize("prefetch", [1, 3])
def test_more_faults_than_allowed_end_the_pass_at_the_same_batch(damaged, prefetch):
    damaged.flip(0, 1, 9, 10, 30)
    loader = damaged.load(batch_size_samples=8, on_error="skip", max_errors=3, prefetch_batches=prefetch)
    assert len(next(loader)) == 6
    with pytest.raises(TooManyFaults, match="4 samples were faulty, and max_errors allows 3.*sample 10 ") as raised:
        next(loader)
    assert raised.value.count == 4
    with pytest.raises(StopIteration):
        next(loader)
    stats = loader.stats()
    assert (stats["faulty_samples_total"], stats["delivered_batches_total"]) == (2, 1)


def test_as_many_faults_as_allowed_are_no_error(damaged):
    damaged.flip(0, 1, 9)
    assert len(delivered(damaged.load(on_error="skip", max_errors=3))) == COUNT - 3
    with pytest.raises(TooManyFaults):
        next(damaged.load(on_error="replace", max_errors=0))


def test_an_outage_is_no_faulty_sample(damaged):
    damaged.shard.unlink()
    with pytest.raises(ObjectNotFound) as raised:
        next(damaged.load(on_error="skip"))
    assert not isinstance(raised.value, SampleError)


def test_a_dataset_that_is_gone_as_a_whole_is_no_faulty_sample(damaged):
    damaged.load(damaged.raw).close()
    shutil.rmtree(damaged.raw)
    with pytest.raises(StoreUnavailable, match="isn't there any more"):
        next(damaged.load(damaged.raw, on_error="skip"))


@pytest.mark.parametrize("argument", [{"on_error": "warn"}, {"max_errors": 3}, {"on_error": "skip", "max_errors": -1}])
def test_what_can_not_work_is_refused(damaged, argument):
    with pytest.raises(ConfigError, match=next(reversed(argument))):
        damaged.load(**argument)


@pytest.mark.parametrize("on_error", ["skip", "replace"])
def test_charges_return_and_the_cap_holds(damaged, on_error):
    damaged.flip(*range(0, COUNT, 3))
    cap = 2 * max(sum(map(len, damaged.contents[start : start + 8])) for start in range(0, COUNT, 8))
    loader = damaged.load(batch_size_samples=8, on_error=on_error, max_inflight_bytes=cap, prefetch_batches=2)
    for batch in loader:
        assert len(batch)
        del batch
    stats = loader.stats()
    assert stats["ram_high_water_bytes"] <= cap
    assert stats["inflight_bytes"] == 0


def test_batches_cut_by_bytes_resume_exactly_after_skips(damaged):
    bad = {0, 3, 4, 21}
    damaged.flip(*bad)
    arguments = {"target_batch_bytes": 1500, "on_error": "skip"}
    loader = damaged.load(**arguments)
    first = delivered([next(loader) for _ in range(3)])
    rest = delivered(damaged.load(**arguments, resume=json.loads(json.dumps(loader.state_dict()))))
    assert first + rest == [(i, data) for i, data in enumerate(damaged.contents) if i not in bad]


def test_another_epoch_counts_anew(damaged):
    damaged.flip(3, 12)
    loader = damaged.load(on_error="skip", max_errors=2, persistent_workers=True)
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        assert len(delivered(loader)) == COUNT - 2
        assert loader.stats()["faulty_samples_total"] == 2


def test_after_too_many_faults_another_epoch_can_begin(damaged):
    damaged.flip(0)
    loader = damaged.load(batch_size_samples=8, on_error="skip", max_errors=0)
    with pytest.raises(TooManyFaults):
        next(loader)
    damaged.flip()
    loader.set_epoch(1)
    assert delivered(loader) == list(enumerate(damaged.contents))


def test_a_sample_that_is_drawn_often_is_faulty_each_time(damaged):
    sampler = RandomSampler(replacement=True)
    planned = [i for i, _ in delivered(damaged.load(sampler=sampler, seed=4))]
    often = max(planned, key=planned.count)
    assert planned.count(often) > 1
    damaged.flip(often)
    loader = damaged.load(sampler=sampler, seed=4, on_error="skip")
    assert delivered(loader) == [(i, damaged.contents[i]) for i in planned if i != often]
    assert loader.stats()["faulty_samples_total"] == planned.count(often)


def test_workers_of_a_rank_deliver_its_steps_in_turn(damaged):
    bad = {0, 1, 2, 3, 17}
    damaged.flip(*bad)
    arguments = {"batch_size_samples": 4, "on_error": "skip"}
    whole = [batch.sample_ids for batch in damaged.load(**arguments)]
    shares = [
        [batch.sample_ids for batch in damaged.load(**arguments, worker_id=worker, num_workers_pytorch=3)]
        for worker in range(3)
    ]
    assert whole[0] == []
    assert [shares[step % 3][step // 3] for step in range(len(whole))] == whole


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One dataset for many examples; each damages it anew."""
    dataset = Damaged(tmp_path_factory.mktemp("shared"))
    yield dataset
    dataset.close()


@settings(max_examples=40)
@given(
    bad=st.sets(st.integers(0, COUNT - 1)),
    batch=st.integers(2, 12),
    world_sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    steps=st.integers(0, 6),
    on_error=st.sampled_from(["skip", "replace"]),
    shuffle=st.booleans(),
    prefetch=st.integers(1, 3),
)
def test_ranks_and_resumes_deliver_what_is_sound_in_equal_steps(
    shared, bad, batch, world_sizes, steps, on_error, shuffle, prefetch
):
    """Whatever is damaged, however many ranks, wherever they stop: all that is sound, once, in the planned steps."""
    shared.flip(*bad)
    arguments = {"batch_size_samples": batch, "shuffle": shuffle, "seed": 5, "prefetch_batches": prefetch}

    def run(world_size, limit, resume):
        """Take up to so many steps on every rank: their batches, what they say of faults, and one's state."""
        taken, faulty = [], 0
        for rank in range(world_size):
            loader = shared.load(on_error=on_error, rank=rank, world_size=world_size, resume=resume, **arguments)
            planned = len(loader)
            batches = [next(loader) for _ in range(min(limit, planned))]
            if limit >= planned:
                with pytest.raises(StopIteration):
                    next(loader)
            state, stats = json.loads(json.dumps(loader.state_dict())), loader.stats()
            found = [(i, bytes(sample)) for each in batches for i, sample in zip(each.sample_ids, each, strict=True)]
            taken.append((len(batches), found))
            faulty += stats["faulty_samples_total"]
            assert stats["skipped_samples_total"] + stats["replaced_samples_total"] == stats["faulty_samples_total"]
            assert stats["delivered_samples_total"] == len(found)
            loader.close()
        assert len({count for count, _ in taken}) == 1, "all ranks take the same number of steps"
        return [pair for _, found in taken for pair in found], faulty, state

    first, faults_before, state = run(world_sizes[0], steps, None)
    try:
        rest, faults_after, _ = run(world_sizes[1], COUNT, state)
    except ConfigError:
        return  # so few are left that the ranks can't share them, which has nothing to do with faults
    assert faults_before + faults_after == len(bad)
    found = first + rest
    assert all(data == shared.contents[i] for i, data in found)
    ids = [i for i, _ in found]
    assert set(ids) == set(range(COUNT)) - bad
    if on_error == "skip":
        assert len(ids) == len(set(ids))


@pytest.mark.s3
def test_faults_in_objects(damaged, s3_root):
    remote = open_store(f"{s3_root}/packed")
    for path in Path(damaged.packed).rglob("*"):
        if path.is_file():
            remote.put(path.relative_to(damaged.packed).as_posix(), path.read_bytes())
    keys = []

    def skip(error):
        keys.append((error.sample_id, error.key, type(error)))
        return "skip"

    broken = bytearray(damaged.sound[: damaged.offsets[30] + 3])
    broken[damaged.offsets[4]] ^= 1
    remote.put("shards/shard-00000.tar", bytes(broken))
    found = delivered(damaged.load(f"{s3_root}/packed@refresh", batch_size_samples=COUNT, on_error=skip))
    assert found == [(i, data) for i, data in enumerate(damaged.contents[:30]) if i != 4]
    named = {4: f"{4:020d}.bin", 30: f"{30:020d}.bin"}  # the headers of the others were cut off with them
    assert keys == [(i, named.get(i), ShardCorrupt if i == 4 else SampleChanged) for i in (4, *range(30, COUNT))]


@pytest.mark.s3
def test_whole_objects_that_are_gone_or_other(damaged, s3_root):
    remote = open_store(f"{s3_root}/raw")
    names = [f"class{i // 20}/{i:03d}.bin" for i in range(COUNT)]
    for name, data in zip(names, damaged.contents, strict=True):
        remote.put(name, data)
    link = f"{s3_root}/raw"
    damaged.load(f"{link}@refresh").close()
    remote.delete(names[7])
    keys = []
    loader = damaged.load(link, batch_size_samples=8, on_error=lambda error: keys.append(error.key) or "replace")
    found = delivered(loader)
    assert keys == [names[7]]
    assert {i for i, _ in found} == set(range(COUNT)) - {7}
    assert loader.stats()["faulty_samples_by_kind"] == {"SampleMissing": 1}
    with pytest.raises(SampleMissing):
        next(damaged.load(link))
