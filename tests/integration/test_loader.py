"""Loading from real shards and files: contracts A8-A11, behaviours 34-49."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import penstock
import penstock.loader.loader as loader_module
from penstock.errors import (
    BudgetHeld,
    ClosedError,
    ConfigError,
    ObjectNotFound,
    PenstockError,
    RssExceeded,
    SampleChanged,
    ShardCorrupt,
    UnitTooLarge,
)

STATS_OF_THE_SEED = {
    "delivered_batches_total",
    "delivered_samples_total",
    "inflight_bytes",
    "process_rss_bytes",
    "ram_high_water_bytes",
}


@pytest.fixture
def contents(tmp_path) -> dict[str, bytes]:
    """Sixty labelled files of 1 to 3000 random bytes, by relative path in packing order."""
    random = np.random.default_rng(11)
    names = sorted(f"{label}/{index:03d}.bin" for label in ("cat", "dog") for index in range(30))
    files = {name: random.bytes(int(random.integers(1, 3000))) for name in names}
    for name, data in files.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return files


@pytest.fixture
def packed(tmp_path, contents) -> str:
    penstock.pack_dir(str(tmp_path / "in"), out=str(tmp_path / "packed"), shard_mb=1)
    return str(tmp_path / "packed")


@pytest.fixture
def load(tmp_path):
    """``penstock.load`` with a manifest store of the test's own; closes what it made."""
    loaders = []

    def make(link, **arguments):
        loader = penstock.load(link, manifest_store_root=str(tmp_path / "store"), **arguments)
        loaders.append(loader)
        return loader

    yield make
    for loader in loaders:
        loader.close()


def samples_of(loader) -> list[bytes]:
    samples = []
    for batch in loader:
        payload, offsets = batch.payload, batch.offsets
        samples += [payload[a:b] for a, b in zip(offsets, offsets[1:], strict=False)]
    return samples


def test_every_byte_arrives_in_order(load, packed, contents):
    assert samples_of(load(packed, batch_size_samples=7)) == list(contents.values())


def test_an_unpacked_folder_loads_too(load, tmp_path, contents):
    loader = load(str(tmp_path / "in"), batch_size_samples=7)
    assert samples_of(loader) == list(contents.values())


def test_e2_31_unlabelled_packed_output_loads_again(load, tmp_path, contents):
    penstock.pack_dir(str(tmp_path / "in"), out=str(tmp_path / "plain"), label_mode="none", manifest_version=0)
    loader = load(str(tmp_path / "plain"))
    batch = next(loader)
    assert batch.label_ids is None
    assert batch.payload == b"".join(contents.values())


def test_e2_34_offsets(load, packed):
    for batch in load(packed, batch_size_samples=7):
        assert isinstance(batch.payload, bytes)
        assert len(batch.offsets) == len(batch.sample_ids) + 1 == len(batch) + 1
        assert batch.offsets[0] == 0
        assert batch.offsets[-1] == len(batch.payload)
        assert batch.offsets == sorted(batch.offsets)


def test_e2_35_order_with_prefetch_and_a_short_last_batch(load, packed, contents):
    loader = load(packed, batch_size_samples=7, prefetch_batches=8)
    sizes = []
    ids = []
    for batch in loader:
        sizes.append(len(batch))
        ids += batch.sample_ids
    assert ids == list(range(60))
    assert sizes == [7] * 8 + [4]
    assert len(loader) == 9


def test_e2_36_tensors_and_their_types(load, packed):
    torch = pytest.importorskip("torch")
    batch = next(load(packed, batch_size_samples=7))
    payload, offsets, sample_ids, labels = batch.to_torch_with_labels()
    assert (payload.dtype, offsets.dtype, sample_ids.dtype, labels.dtype) == (torch.uint8, *[torch.int64] * 3)
    assert bytes(payload.numpy()) == batch.payload
    assert offsets.tolist() == batch.offsets
    assert sample_ids.tolist() == batch.sample_ids
    assert labels.tolist() == batch.label_ids == [0] * 7
    payload[0] ^= 255
    assert payload.numpy()[0] != batch.payload[0], "the payload is private"


def test_e2_36_no_labels_is_a_value_error(load, tmp_path, contents):
    pytest.importorskip("torch")
    batch = next(load(str(tmp_path / "in")))
    with pytest.raises(ValueError, match="no labels"):
        batch.to_torch_with_labels()


def test_an_empty_payload_becomes_an_empty_tensor(load, tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "nothing.bin").touch()
    payload, offsets, ids = next(load(str(tmp_path / "empty"))).to_torch()
    assert (payload.numel(), offsets.tolist(), ids.tolist()) == (0, [0, 0], [0])


def test_torch_missing_is_named(load, packed, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    batch = next(load(packed))
    with pytest.raises(RuntimeError, match="torch"):
        batch.to_torch()


def test_e2_37_mixed_labels_raise_while_iterating(load, tmp_path):
    data = tmp_path / "data.bin"
    data.write_bytes(b"abcdef")
    table = tmp_path / "dev.tsv"
    table.write_text(f"0\t{data}\t0\t3\tmx8:vision:imagefolder;label_id=0\n1\t{data}\t3\t3\n")
    loader = load("anything", dev_manifest_path=str(table))
    with pytest.raises(RuntimeError, match="mixed labeled/unlabeled"):
        next(loader)


@pytest.mark.parametrize(
    ("start", "end", "text"),
    [
        (1, None, "start_id and end_id must be set together"),
        (None, 1, "start_id and end_id must be set together"),
        (3, 1, r"invalid range \(start_id > end_id\)"),
        (61, 62, "start_id out of range"),
        (0, 61, "end_id out of range"),
        (-1, 5, "start_id out of range"),
    ],
)
def test_e2_38_bad_ranges(load, packed, start, end, text):
    with pytest.raises(ValueError, match=text):
        load(packed, start_id=start, end_id=end)


def test_e2_38_an_empty_range_is_empty(load, packed):
    assert list(load(packed, start_id=5, end_id=5)) == []


def test_e2_39_a_sub_range(load, packed, contents):
    loader = load(packed, start_id=1, end_id=3)
    batch = next(loader)
    assert batch.sample_ids == [1, 2]
    assert batch.payload == b"".join(list(contents.values())[1:3])


def test_e2_40_single_pass(load, packed):
    loader = load(packed, batch_size_samples=30)
    assert iter(loader) is loader
    assert [len(batch) for batch in loader] == [30, 30]
    assert list(loader) == []
    for _ in range(3):
        with pytest.raises(StopIteration):
            next(loader)


def test_a_second_loop_over_one_loader_is_empty_and_says_why(load, packed, caplog):
    loader = load(packed)
    assert sum(1 for _ in loader) == 1
    assert caplog.text == ""
    assert sum(1 for _ in loader) == 0
    assert "call set_epoch(n)" in caplog.text


def test_a_loader_that_gives_every_launched_process_everything_says_so(load, packed, caplog, monkeypatch):
    told = "this loader gives every one of these processes all samples"
    for world_size, warned in (("1", False), ("2", True)):
        monkeypatch.setenv("WORLD_SIZE", world_size)
        monkeypatch.setenv("RANK", "0")
        loader_module._warn_of_ranks.cache_clear()  # it is said once in a process
        load(packed, rank=0, world_size=2)
        load(packed, rank=0, world_size=1)
        load(packed, sampler={"kind": "distributed", "rank": 0, "world_size": 2})
        assert caplog.text == ""
        assert sum(map(len, load(packed))) == 60
        assert (told in caplog.text) == warned
    load(packed)
    assert caplog.text.count(told) == 1


def test_a_pinned_link_of_a_dataset_that_was_just_packed_works_everywhere(load, tmp_path, packed, contents):
    packed_hash = penstock.pack_dir(str(tmp_path / "in"), out=str(tmp_path / "again"))["manifest_hash"]
    assert samples_of(load(f"{tmp_path}/again@sha256:{packed_hash}")) == list(contents.values())
    with pytest.raises(RuntimeError, match="manifest not found"):
        load(f"{packed}@sha256:{'0' * 64}")
    with pytest.raises(RuntimeError, match="manifest not found"):
        penstock.load(f"/nowhere@sha256:{packed_hash}", manifest_store_root=str(tmp_path / "other"))


def test_e2_41_a_slow_consumer_never_sees_more_than_the_cap(load, packed):
    cap = 16 << 10
    loader = load(packed, batch_size_samples=3, max_inflight_bytes=cap, prefetch_batches=4)
    worst = 0
    for _ in loader:
        threading.Event().wait(0.005)
        worst = max(worst, loader.stats()["inflight_bytes"])
    assert 0 < worst <= cap
    assert loader.stats()["ram_high_water_bytes"] <= cap


def test_e2_42_kept_batches_stop_production_and_dropping_one_resumes(load, packed):
    loader = load(packed, batch_size_samples=3, max_inflight_bytes="24KiB")
    kept = []
    with pytest.raises(BudgetHeld, match="Let go of them"):
        for batch in loader:
            kept.append(batch)
    del batch
    count = len(kept)
    kept.pop(0)
    kept.append(next(loader))
    assert kept[-1].sample_ids == list(range(count * 3, count * 3 + 3)), "nothing was lost"


def test_e2_43_a_batch_bigger_than_the_cap_names_both_numbers(load, packed):
    loader = load(packed, batch_size_samples=60, max_inflight_bytes=1000)
    with pytest.raises(RuntimeError, match=r"batch payload bytes \d+ exceeds max_inflight_bytes 1000") as raised:
        next(loader)
    assert isinstance(raised.value, UnitTooLarge)
    with pytest.raises(StopIteration):
        next(loader)


def test_e2_44_zeros_mean_one_but_a_queue_of_none_is_refused(load, packed):
    loader = load(packed, prefetch_batches=0, batch_size_samples=0)
    assert len(next(loader)) == 1
    with pytest.raises(ValueError, match="max_queue_batches is 0"):
        load(packed, max_queue_batches=0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"prefetch_batches": -1},
        {"batch_size_samples": -1},
        {"max_inflight_bytes": 0},
        {"max_inflight_bytes": "lots"},
        {"max_inflight_bytes": 1000, "max_batch_bytes": 1001},
        {"target_batch_bytes": 0},
        {"batch_size_samples": 1.5},
        {"batch_size_samples": "4"},
        {"prefetch_batches": 2.5},
        {"max_queue_batches": 0},
        {"profile": "fast"},
        {"tune": "yes"},
        {"max_inflight_bytes": "100TiB"},
        {"max_inflight_bytes": 1 << 70},
        {"shuffle": True, "seed": "a"},
        {"start_id": 0, "end_id": 2**70},
        {"start_id": 0, "end_id": 0.5},
    ],
)
def test_bad_arguments_are_value_errors_that_name_the_argument(load, packed, arguments):
    with pytest.raises(ValueError, match=list(arguments)[-1]):
        load(packed, **arguments)


def test_e2_45_batches_cut_by_bytes(load, tmp_path):
    for index, size in enumerate([600, 600, 200]):
        (tmp_path / "sized").mkdir(exist_ok=True)
        (tmp_path / "sized" / f"{index}.bin").write_bytes(b"x" * size)
    penstock.pack_dir(str(tmp_path / "sized"), out=str(tmp_path / "out"))
    loader = load(str(tmp_path / "out"), target_batch_bytes=700, max_batch_bytes=1024)
    assert [batch.payload_bytes for batch in loader] == [600, 800]
    with pytest.raises(TypeError):
        len(loader)


def test_e2_45_unknown_lengths_and_oversize_samples(load, tmp_path, packed):
    unsized = load(str(tmp_path / "in"), target_batch_bytes=700)
    with pytest.raises(RuntimeError, match="byte-aware batching requires byte_length"):
        next(unsized)
    small = load(packed, max_batch_bytes=100)
    with pytest.raises(RuntimeError, match="more than max_batch_bytes 100"):
        next(small)


def test_e2_46_stats_count_what_was_consumed(load, packed):
    loader = load(packed, batch_size_samples=25)
    assert set(loader.stats()) >= STATS_OF_THE_SEED
    assert loader.stats()["delivered_batches_total"] == 0
    batch = next(loader)
    stats = loader.stats()
    assert (stats["delivered_batches_total"], stats["delivered_samples_total"]) == (1, 25)
    assert stats["delivered_bytes_total"] == batch.payload_bytes
    del batch
    for _ in loader:
        pass
    del _
    stats = loader.stats()
    assert (stats["delivered_batches_total"], stats["delivered_samples_total"]) == (3, 60)
    assert stats["inflight_bytes"] == 0
    assert stats["process_rss_bytes"] > 1 << 20


def test_e2_47_high_water_stays_within_the_cap(load, packed):
    loader = load(packed, batch_size_samples=2, max_inflight_bytes="64KiB", max_queue_batches=64)
    for _ in loader:
        pass
    assert 0 < loader.stats()["ram_high_water_bytes"] <= 64 << 10


def test_e2_48_the_rss_guard(load, packed, monkeypatch):
    monkeypatch.setenv("MX8_MAX_PROCESS_RSS_BYTES", "1")
    with pytest.raises(RssExceeded, match=r"process rss \d+ exceeds max_process_rss_bytes 1\b"):
        next(load(packed))
    monkeypatch.setenv("MX8_MAX_PROCESS_RSS_BYTES", "5MiB")
    with pytest.raises(RssExceeded, match="max_process_rss_bytes 5242880"):
        next(load(packed))
    for off in ("", "garbage", "-5"):
        monkeypatch.setenv("MX8_MAX_PROCESS_RSS_BYTES", off)
        assert len(next(load(packed))) == 60


def test_a_guard_that_is_no_size_is_off_and_says_so(load, packed, monkeypatch, caplog):
    monkeypatch.setenv("PENSTOCK_MAX_PROCESS_RSS_BYTES", "lots")
    next(load(packed))
    assert "PENSTOCK_MAX_PROCESS_RSS_BYTES is 'lots'" in caplog.text


def test_e2_48_the_rss_guard_looks_again_by_batch_16(load, packed, monkeypatch):
    monkeypatch.setenv("PENSTOCK_MAX_PROCESS_RSS_BYTES", str(1 << 40))
    loader = load(packed, batch_size_samples=1)
    next(loader)
    loader._rss.limit_bytes = 1
    with pytest.raises(RssExceeded):
        for number in range(16):
            next(loader)
    assert number == 15


def test_e2_49_a_truncated_shard_raises(load, packed):
    shard = Path(packed, "shards", "shard-00000.tar")
    os.truncate(shard, 20_000)
    with pytest.raises(SampleChanged, match="short read.*shard-00000.tar"):
        for _ in load(packed, batch_size_samples=1):
            pass


@pytest.mark.parametrize(("change", "text"), [(b"more", "grew after sizing"), (None, "short read")])
def test_e2_49_a_file_that_changes_size_between_sizing_and_reading(load, tmp_path, contents, monkeypatch, change, text):
    from penstock.loader.fetch import Fetcher

    victim = tmp_path / "in" / "dog" / "005.bin"
    fetch = Fetcher.fetch

    def change_then_fetch(self, *arguments):
        if change:
            victim.write_bytes(victim.read_bytes() + change)
        else:
            os.truncate(victim, 0)
        return fetch(self, *arguments)

    monkeypatch.setattr(Fetcher, "fetch", change_then_fetch)
    with pytest.raises(RuntimeError, match=f"{text}.*dog/005.bin"):
        next(load(str(tmp_path / "in")))


def test_a_flipped_bit_is_found_and_named(load, packed):
    shard = Path(packed, "shards", "shard-00000.tar")
    data = bytearray(shard.read_bytes())
    data[512] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ShardCorrupt, match="sample 0 in .*shard-00000.tar at offset 512") as raised:
        next(load(packed))
    assert raised.value.sample_id == 0


def test_a_missing_shard_is_named(load, packed):
    Path(packed, "shards", "shard-00000.tar").unlink()
    with pytest.raises(ObjectNotFound, match="shard-00000.tar") as raised:
        next(load(packed))
    assert isinstance(raised.value, RuntimeError)


def test_a_packed_dataset_can_be_moved(load, packed, tmp_path, contents):
    moved = tmp_path / "moved"
    Path(packed).rename(moved)
    assert samples_of(load(str(moved))) == list(contents.values())


def test_shuffled_epochs_hold_every_sample_once_and_differ(load, packed, contents):
    orders = []
    for epoch in (0, 0, 1):
        ids, samples = [], {}
        for batch in load(packed, batch_size_samples=7, shuffle=True, seed=5, epoch=epoch, prefetch_batches=3):
            ids += batch.sample_ids
            samples |= {i: bytes(sample) for i, sample in zip(batch.sample_ids, batch, strict=True)}
        assert sorted(ids) == list(range(60))
        assert [samples[i] for i in range(60)] == list(contents.values())
        orders.append(ids)
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])


def test_a_batch_may_come_from_more_files_than_are_kept_open(load, tmp_path, monkeypatch):
    monkeypatch.setattr("penstock.loader.fetch._OPEN_FILES", 3)
    files = [np.random.default_rng(number).bytes(1000) for number in range(10)]
    rows, wanted = [], []
    for number in range(40):  # each file in turn: its later bytes before its first ones, then the whole of it
        path, (start, size) = (
            tmp_path / f"{number % 10}.bin",
            [(600, 300), (100, 500), (950, 50), (0, 1000)][number // 10],
        )
        path.write_bytes(files[number % 10])
        rows.append(f"{number}\t{path}" + ("" if size == 1000 else f"\t{start}\t{size}"))
        wanted.append(files[number % 10][start : start + size])
    table = tmp_path / "dev.tsv"
    table.write_text("\n".join(rows))
    (batch,) = load("anything", dev_manifest_path=str(table))
    assert [bytes(sample) for sample in batch] == wanted


def test_views_hold_the_charge_until_the_last_one_dies(load, packed):
    loader = load(packed, batch_size_samples=60)
    batch = next(loader)
    size = batch.payload_bytes
    view, array, sample = batch.view, batch.array(), batch.sample(3)
    expected = batch.payload
    loader.close()
    del batch, view
    assert loader.stats()["inflight_bytes"] == size
    assert array.tobytes() == expected, "valid after close()"
    del array
    assert loader.stats()["inflight_bytes"] == size
    del sample
    assert loader.stats()["inflight_bytes"] == 0


def test_dlpack_and_zero_copy_tensors_share_memory_and_hold_the_charge(load, packed):
    torch = pytest.importorskip("torch")
    loader = load(packed, batch_size_samples=60)
    batch = next(loader)
    tensor, shared = torch.from_dlpack(batch), batch.to_torch(copy=False)[0]
    batch.view[0] = 77
    assert tensor[0] == shared[0] == 77
    assert np.asarray(batch)[0] == 77
    del batch, shared
    assert loader.stats()["inflight_bytes"] == tensor.numel()
    del tensor
    assert loader.stats()["inflight_bytes"] == 0


def test_a_released_batch_refuses_views_and_returns_its_charge(load, packed):
    loader = load(packed, batch_size_samples=60)
    with next(loader) as batch:
        assert loader.stats()["inflight_bytes"] == batch.payload_bytes
    assert loader.stats()["inflight_bytes"] == 0
    with pytest.raises(ClosedError, match="released"):
        _ = batch.view


def test_close_is_safe_twice_and_ends_iteration(load, packed):
    with load(packed, batch_size_samples=1) as loader:
        next(loader)
    loader.close()
    with pytest.raises(ClosedError):
        next(loader)


def test_a_dropped_loader_stops_its_threads(tmp_path, packed):
    loader = penstock.load(packed, batch_size_samples=1, manifest_store_root=str(tmp_path / "store"))
    producer = loader._pipeline._producer
    next(loader)
    del loader
    producer.join(10)
    assert not producer.is_alive()


def run_python(code: str, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "faulthandler", "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def test_a_program_that_ends_with_a_half_read_loader_exits_cleanly(packed, tmp_path):
    code = (
        "import sys, penstock\n"
        "link, store = sys.argv[1:]\n"
        "loader = penstock.load(link, batch_size_samples=1, prefetch_batches=4, manifest_store_root=store)\n"
        "batch = next(loader)\n"
        "view = batch.view\n"
        "print(len(batch))\n"
    )
    done = run_python(code, packed, str(tmp_path / "store"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_a_loader_that_is_dropped_just_before_the_end_does_not_crash_it(packed, tmp_path):
    code = (
        "import sys, penstock\n"
        "link, store = sys.argv[1:]\n"
        "loader = penstock.load(link, batch_size_samples=1, prefetch_batches=4, manifest_store_root=store)\n"
        "next(loader)\n"
        "del loader\n"
    )
    runs = [run_python(code, packed, str(tmp_path / "store")) for _ in range(8)]
    assert [(done.returncode, done.stderr) for done in runs] == [(0, "")] * 8


def test_collecting_dropped_loaders_in_any_thread_blocks_nobody(packed, tmp_path):
    code = (
        "import sys, penstock\n"
        "class Holder: pass\n"
        "for number in range(150):\n"
        "    loader = penstock.load(sys.argv[1], batch_size_samples=1, max_inflight_bytes=100000, prefetch_batches=2,\n"
        "                           manifest_store_root=sys.argv[2])\n"
        "    holder = Holder()\n"
        "    holder.loader, holder.me = loader, holder  # only the collector finds it, whoever's thread it runs in\n"
        "    for _ in zip(range(20), loader): pass\n"
        "    del loader, holder\n"
        "print('done')\n"
    )
    done = run_python(code, packed, str(tmp_path / "store"))
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # open() itself may be interrupted
def test_ctrl_c_at_any_moment_of_next_loses_no_batch_and_repeats_none(load, packed):
    """Signals come at random moments; one that finds next() at work interrupts it, and the loop goes on after it."""
    random = np.random.default_rng(3)
    interrupts = 0

    def interrupt(_, frame):
        nonlocal interrupts
        if frame.f_code.co_filename == threading.__file__:
            return  # Python's own Condition isn't safe against signals everywhere; that is no matter of ours
        while frame is not None:
            if frame.f_code is penstock.DataLoader.__next__.__code__:
                interrupts += 1
                raise KeyboardInterrupt
            frame = frame.f_back

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        for epoch in range(60):
            loader = load(packed, batch_size_samples=1, prefetch_batches=1 + epoch % 3)
            ids = []
            while True:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(5e-6, 3e-4))
                try:
                    batch = next(loader)
                except KeyboardInterrupt:
                    continue
                except StopIteration:
                    break
                ids += batch.sample_ids
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert ids == list(range(60))
            assert loader.stats()["delivered_samples_total"] == 60
            if interrupts > 100:
                break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert interrupts > 0


@pytest.mark.parametrize("prefetch", [1, 2])
@pytest.mark.parametrize("row", ["0\t{path}\t0\t10\n", "0\t{path}\n"])
def test_a_named_pipe_in_a_manifest_is_an_error_and_no_hang(load, tmp_path, row, prefetch):
    os.mkfifo(tmp_path / "pipe")
    table = tmp_path / "dev.tsv"
    table.write_text(row.format(path=tmp_path / "pipe"))
    loader = load("anything", dev_manifest_path=str(table), prefetch_batches=prefetch)
    with pytest.raises(PenstockError, match="pipe"):
        next(loader)


def test_thousands_of_tiny_batches_kept_stay_within_the_cap(load, tmp_path):
    (tmp_path / "data").write_bytes(b"x" * 5000)
    table = tmp_path / "dev.tsv"
    table.write_text("".join(f"{i}\t{tmp_path}/data\t{i}\t1\n" for i in range(5000)))
    loader = load("anything", dev_manifest_path=str(table), batch_size_samples=1, max_inflight_bytes="64KiB")
    kept = []
    with pytest.raises(BudgetHeld):
        for batch in loader:
            kept.append(batch)
    assert len(kept) == 1024
    assert loader.stats()["arena_resident_bytes"] <= 64 << 10


@pytest.mark.parametrize("index", [60, 61, -61, 10**9])
def test_a_sample_that_is_not_there_is_an_index_error(load, packed, index):
    batch = next(load(packed))
    with pytest.raises(IndexError, match="batch of 60"):
        batch.sample(index)
    assert batch.sample(-1) == batch.sample(59)


def test_a_batch_says_that_it_can_not_be_pickled(load, packed):
    import pickle

    with pytest.raises(TypeError, match=r"batch\.payload"):
        pickle.dumps(next(load(packed)))


def test_ctrl_c_while_waiting_for_a_batch_is_a_keyboard_interrupt(packed, tmp_path):
    code = (
        "import os, signal, sys, threading, penstock\n"
        "from penstock.loader.fetch import Fetcher\n"
        "asking, hang = threading.Event(), threading.Event()\n"
        "def fetch(self, *arguments):\n"
        "    asking.wait(50)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    hang.wait(50)\n"
        "Fetcher.fetch = fetch\n"
        "loader = penstock.load(sys.argv[1], manifest_store_root=sys.argv[2])\n"
        "try:\n"
        "    asking.set()\n"
        "    next(loader)\n"
        "except KeyboardInterrupt:\n"
        "    hang.set()\n"
        "    loader.close()\n"
        "    print('interrupted')\n"
    )
    done = run_python(code, packed, str(tmp_path / "store"))
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_a_loader_says_that_it_does_not_survive_fork(packed, tmp_path):
    code = (
        "import os, sys, penstock\n"
        "loader = penstock.load(sys.argv[1], batch_size_samples=1, manifest_store_root=sys.argv[2])\n"
        "next(loader)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n"
        "        next(loader)\n"
        "    except penstock.errors.ClosedError as error:\n"
        "        os._exit(7 if 'fork' in str(error) else 8)\n"
        "    os._exit(9)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(list(loader)))\n"
    )
    done = run_python(code, packed, str(tmp_path / "store"))
    assert (done.returncode, done.stdout) == (0, "7 59\n"), done.stderr


def test_importing_penstock_loads_no_optional_library():
    code = (
        "import sys, penstock\n"
        "penstock.load, penstock.pack_dir\n"
        "print([name for name in ('torch', 'PIL', 'grpc', 'ucp', 'ray') if name in sys.modules])\n"
    )
    assert run_python(code).stdout == "[]\n"


def test_a_store_that_keeps_the_loader_waiting_is_a_config_error_not_a_hang(load, packed, monkeypatch):
    monkeypatch.setenv("PENSTOCK_STALL_TIMEOUT_S", "0")
    with pytest.raises(ConfigError, match="PENSTOCK_STALL_TIMEOUT_S"):
        load(packed)


def test_errors_of_the_loader_are_runtime_errors(load):
    with pytest.raises(ValueError, match="empty dataset link"):
        load("  ")
    assert issubclass(PenstockError, RuntimeError)
