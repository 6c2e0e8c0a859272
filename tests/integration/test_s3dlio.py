"""s3dlio's datasets and loaders over ours: items, order, errors, and an event loop that never waits."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading

import numpy as np
import pytest
from packing import make_tree

from penstock.compat import s3dlio
from penstock.compat.s3dlio.prefix import _with_known_scheme
from penstock.errors import (
    ClosedError,
    ConfigError,
    LinkError,
    NoSuchSample,
    ObjectNotFound,
    PenstockError,
)
from penstock.loader import LoaderOptions
from penstock.store import open_store


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_MANIFEST_STORE_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def items():
    """A hundred files in three folders, one of them empty, in the order of their paths."""
    names = [f"{i:03d}.bin" if i < 50 else f"part{i // 75}/{i:03d}.bin" for i in range(100)]
    return {name: name.encode() * (i % 7) for i, name in enumerate(names)}


@pytest.fixture
def uri(tmp_path, items):
    return f"file://{make_tree(tmp_path / 'in', items)}"


@pytest.fixture
def s3_uri(s3_root, items):
    store = open_store(f"{s3_root}/in")
    for name, data in items.items():
        store.put(name, data)
    return f"{s3_root}/in"


def batches_of(loader):
    async def collect():
        return [batch async for batch in loader]

    return asyncio.run(collect())


def flat(batches):
    return [item for batch in batches for item in batch]


def vec(count):
    return s3dlio.PyVecDataset(range(count))


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [32, 32, 32, 4]), (True, [32, 32, 32])])
def test_e2_77_a_hundred_items_in_batches_of_32(uri, items, drop_last, sizes):
    opts = {"batch_size": 32, "drop_last": drop_last}
    numbers = batches_of(s3dlio.PyAsyncDataLoader(vec(100), opts))
    assert [len(batch) for batch in numbers] == sizes
    assert flat(numbers) == list(range(sum(sizes)))
    found = batches_of(s3dlio.create_async_loader(uri, opts))
    assert [len(batch) for batch in found] == sizes
    assert flat(found) == list(items.values())[: sum(sizes)]


def test_numbers_come_as_s3dlio_gives_them():
    dataset = s3dlio.PyVecDataset([10, 20, 30, 40, 50])
    assert batches_of(s3dlio.PyAsyncDataLoader(dataset, {"batch_size": 2})) == [[10, 20], [30, 40], [50]]
    assert batches_of(s3dlio.PyAsyncDataLoader(s3dlio.PyVecDataset([]))) == []
    assert (len(dataset), dataset[4]) == (5, 50)
    for outside in (5, -1):
        with pytest.raises(RuntimeError, match="index out of range"):
            dataset[outside]
    with pytest.raises(OverflowError, match="32 bits"):
        s3dlio.PyVecDataset([1 << 31])
    with pytest.raises(TypeError):
        s3dlio.PyVecDataset(["1"])
    with pytest.raises(TypeError, match="give a PyVecDataset"):
        s3dlio.PyAsyncDataLoader([1, 2])


@pytest.mark.parametrize("count", [10, 50])
def test_e2_78_one_seed_is_one_permutation(count):
    def order(**opts):
        return flat(batches_of(s3dlio.PyAsyncDataLoader(vec(count), opts)))

    first = order(shuffle=True, seed=42, batch_size=3)
    assert first == order(shuffle=True, seed=42, batch_size=7)
    assert first != list(range(count))
    assert sorted(first) == list(range(count))
    assert first != order(shuffle=True, seed=43)
    assert order(shuffle=False, seed=42) == list(range(count))


def test_e2_78_objects_are_shuffled_as_well(uri, items):
    first = flat(batches_of(s3dlio.create_async_loader(uri, {"shuffle": True, "seed": 42, "batch_size": 8})))
    opts = s3dlio.PyLoaderOptions().shuffle(True, 42).with_batch_size(5)
    again = flat(batches_of(s3dlio.create_async_loader(uri, opts)))
    assert first == again != list(items.values())
    assert sorted(first) == sorted(items.values())


@pytest.mark.parametrize("shuffle", [False, True])
def test_e2_79_prefetch_and_workers_change_nothing(uri, shuffle):
    plain = {"batch_size": 9, "shuffle": shuffle, "seed": 1}
    expected = batches_of(s3dlio.create_async_loader(uri, plain))
    assert batches_of(s3dlio.create_async_loader(uri, {**plain, "num_workers": 4, "prefetch": 16})) == expected
    assert batches_of(s3dlio.create_async_loader(uri, {**plain, "auto_tune": True})) == expected


def shares(make, world_size, workers):
    return [
        flat(batches_of(make({"shard_rank": r, "shard_world_size": world_size, "worker_id": w, **rest})))
        for rest in [{"num_workers_pytorch": workers, "batch_size": 4, "shuffle": True}]
        for r in range(world_size)
        for w in range(workers)
    ]


@pytest.mark.parametrize(("world_size", "workers"), [(1, 3), (3, 1), (2, 3)])
def test_e2_80_shares_are_everything_and_nothing_twice(uri, items, world_size, workers):
    by_number = shares(lambda opts: s3dlio.PyAsyncDataLoader(vec(101), opts), world_size, workers)
    assert sorted(flat(by_number)) == list(range(101))
    by_uri = shares(lambda opts: s3dlio.create_async_loader(uri, opts), world_size, workers)
    assert sorted(flat(by_uri)) == sorted(items.values())


def test_e2_76_loaders_take_a_record_or_a_dict_with_equal_effect(uri):
    record = s3dlio.PyLoaderOptions().with_batch_size(7).shuffle(True, 3).drop_last(True).num_workers(2)
    values = {"batch_size": 7, "shuffle": True, "seed": 3, "drop_last": True, "num_workers": 2}
    expected = batches_of(s3dlio.create_async_loader(uri, values))
    for given in (record, record.to_options(), record.to_dict()):
        assert batches_of(s3dlio.create_async_loader(uri, given)) == expected
        assert batches_of(s3dlio.PyBytesAsyncDataLoader(s3dlio.PyDataset(uri), given)) == expected
        assert batches_of(s3dlio.PyBytesAsyncDataLoader(s3dlio.PyDataset(uri, given))) == expected
    with pytest.raises(TypeError, match="give PyLoaderOptions"):
        s3dlio.create_async_loader(uri, 7)
    with pytest.raises(TypeError, match="give a PyDataset"):
        s3dlio.PyBytesAsyncDataLoader(uri)


def test_e2_82_a_folder_is_listed_recursively_and_sorted(uri, items):
    dataset = s3dlio.create_dataset(uri)
    assert len(dataset) == 100
    assert dataset.keys() == list(items)
    assert asyncio.run(dataset.get_item(99)) == items["part1/099.bin"]


def test_e2_82_what_is_new_is_seen_by_the_next_dataset(uri, tmp_path):
    first = s3dlio.create_dataset(uri)
    (tmp_path / "in" / "zzz.bin").write_bytes(b"new")
    assert (len(first), len(s3dlio.create_dataset(uri))) == (100, 101)
    pinned = s3dlio.create_dataset(first.prefix.link)
    assert (len(pinned), pinned.prefix) == (100, first.prefix)


def test_e2_82_a_single_file_is_a_dataset_of_one(uri, items):
    dataset = s3dlio.create_dataset(f"{uri}/part0/060.bin")
    assert (len(dataset), dataset.keys()) == (1, ["060.bin"])
    assert asyncio.run(dataset.get_item(0)) == items["part0/060.bin"]
    assert batches_of(s3dlio.create_async_loader(f"{uri}/part0/060.bin")) == [[items["part0/060.bin"]]]


def test_e2_82_what_can_not_be_listed(uri):
    with pytest.raises(ObjectNotFound, match="Path does not exist"):
        s3dlio.create_dataset(f"{uri}/nowhere")
    with pytest.raises(RuntimeError, match="has no scheme that can be loaded from"):
        s3dlio.create_dataset("ftp://host/path")
    with pytest.raises(RuntimeError, match="give one of file://, s3://"):
        s3dlio.create_dataset("/a/bare/path")
    with pytest.raises(RuntimeError, match="direct://.*give file:// instead"):
        s3dlio.create_dataset("direct:///data")
    with pytest.raises(LinkError):
        s3dlio.create_dataset("file:///data@sha256:")


def test_e2_82_stores_that_s3dlio_only_promises_are_taken():
    assert _with_known_scheme("gs://bucket/a") == _with_known_scheme("gcs://bucket/a") == "gs://bucket/a"
    assert _with_known_scheme("az://container/a") == "az://container/a"
    assert _with_known_scheme("S3://bucket/a") == "s3://bucket/a"


@pytest.mark.s3
def test_e2_82_s3(s3_uri, items):
    dataset = s3dlio.create_dataset(s3_uri)
    prefix = s3_uri.split("/", 3)[3]
    assert dataset.keys() == [f"{prefix}/{name}" for name in sorted(items)]
    assert asyncio.run(dataset.get_item(3)) == items["003.bin"]
    with pytest.raises(RuntimeError, match="index out of range: 100"):
        asyncio.run(dataset.get_item(100))
    opts = {"batch_size": 32, "shuffle": True, "reader_mode": "range", "num_workers": 4}
    assert sorted(flat(batches_of(s3dlio.create_async_loader(s3_uri, opts)))) == sorted(items.values())


@pytest.mark.s3
def test_deprecated_names_warn_and_take_s3_alone(s3_uri, uri):
    with pytest.warns(DeprecationWarning, match="use PyDataset"):
        assert len(s3dlio.PyS3Dataset(s3_uri)) == 100
    with pytest.warns(DeprecationWarning, match="use create_async_loader"):
        assert len(batches_of(s3dlio.PyS3AsyncDataLoader(s3_uri, {"batch_size": 50}))) == 2
    for deprecated in (s3dlio.PyS3Dataset, s3dlio.PyS3AsyncDataLoader):
        with pytest.warns(DeprecationWarning), pytest.raises(ConfigError, match="isn't s3://"):
            deprecated(uri)


def test_an_item_that_is_not_there(uri):
    dataset = s3dlio.create_dataset(uri)
    for outside in (100, -1):
        with pytest.raises(RuntimeError, match=f"Index {outside} out of bounds") as caught:
            asyncio.run(dataset.get_item(outside))
        assert isinstance(caught.value, NoSuchSample | IndexError)


def test_items_are_read_side_by_side(uri, items):
    dataset = s3dlio.create_dataset(uri, {"num_workers": 2})

    async def every():
        return await asyncio.gather(*map(dataset.get_item, range(100)))

    assert asyncio.run(every()) == list(items.values())


def test_e2_83_batches_are_lists_of_the_size_that_was_asked_for(uri, items):
    sizes = {}
    for name, opts in {
        "32": {"batch_size": 32},
        "1": {"batch_size": 1},
        "none": None,
        "other": {"prefetch": 2},
    }.items():
        batches = batches_of(s3dlio.create_async_loader(uri, opts))
        assert all(type(batch) is list and type(item) is bytes for batch in batches for item in batch)
        sizes[name] = [len(batch) for batch in batches]
    assert sizes == {"32": [32, 32, 32, 4], "1": [1] * 100, "none": [1] * 100, "other": [1] * 100}
    assert len(batches_of(s3dlio.create_async_loader(uri, s3dlio.PyLoaderOptions()))) == 4
    assert len(batches_of(s3dlio.create_async_loader(uri, {"batch_size": 99}))[1]) == 1


def test_each_loop_is_a_pass_of_its_own(uri, items):
    loader = s3dlio.create_async_loader(uri, {"batch_size": 30})

    async def interleaved():
        first, second = aiter(loader), aiter(loader)
        head = await anext(first)
        whole = [batch async for batch in second]
        return [head, *[batch async for batch in first]], whole

    first, second = asyncio.run(interleaved())
    assert flat(first) == flat(second) == list(items.values())


def test_e2_84_an_error_in_the_middle_reaches_the_loop_and_ends_it(uri, items, tmp_path):
    loader = s3dlio.create_async_loader(uri, {"batch_size": 10})
    (tmp_path / "in" / "042.bin").unlink()

    async def go_on():
        batches, found = aiter(loader), []
        with pytest.raises(RuntimeError, match="042.bin"):
            async for batch in batches:
                found.append(batch)
        assert [batch async for batch in batches] == []
        return found

    assert flat(asyncio.run(go_on())) == list(items.values())[:40]


def test_tasks_share_a_pass_and_get_each_batch_once(uri, items):
    async def share():
        batches = aiter(s3dlio.create_async_loader(uri, {"batch_size": 3}))

        async def take():
            return [batch async for batch in batches]

        return await asyncio.gather(take(), take(), take())

    assert sorted(flat(flat(asyncio.run(share())))) == sorted(items.values())


def gate(proxy, path_part):
    """Hold up reads of some objects until the event is set; tells when the first one came."""
    reached, opened = threading.Event(), threading.Event()

    def rule(request):
        if request.method == "GET" and path_part in request.path:
            reached.set()
            opened.wait(30)

    proxy.add_rule(rule)
    return reached, opened


@pytest.mark.s3
def test_the_event_loop_goes_on_while_a_batch_is_waited_for_and_a_cancelled_wait_loses_none(s3_proxy, s3_uri, items):
    loader = s3dlio.create_async_loader(s3_uri, {"batch_size": 40})
    reached, opened = gate(s3_proxy, "/005.bin")

    async def cancel_and_go_on():
        batches = aiter(loader)
        waiting = asyncio.ensure_future(anext(batches))
        while not reached.is_set():
            await asyncio.sleep(0.01)  # this runs: the loop is free
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        opened.set()
        return [batch async for batch in batches]

    assert flat(asyncio.run(cancel_and_go_on())) == [items[name] for name in sorted(items)]


@pytest.mark.s3
def test_a_wait_that_ends_with_its_event_loop_goes_on_in_another(s3_proxy, s3_uri, items, caplog):
    reached, opened = gate(s3_proxy, "/005.bin")
    batches = aiter(s3dlio.create_async_loader(s3_uri, {"batch_size": 40}))

    async def give_up():
        waiting = asyncio.ensure_future(anext(batches))
        while not reached.is_set():
            await asyncio.sleep(0.01)
        return waiting.done()

    async def go_on():
        return [batch async for batch in batches]

    assert asyncio.run(give_up()) is False
    opened.set()
    assert flat(asyncio.run(go_on())) == [items[name] for name in sorted(items)]
    assert not [record for record in caplog.records if record.name.startswith(("asyncio", "concurrent"))]


@pytest.mark.s3
def test_closing_a_pass_wakes_whoever_waits(s3_proxy, s3_uri):
    loader = s3dlio.create_async_loader(s3_uri, {"batch_size": 40})
    reached, opened = gate(s3_proxy, "/005.bin")

    async def close():
        batches = aiter(loader)
        waiting = asyncio.ensure_future(anext(batches))
        while not reached.is_set():
            await asyncio.sleep(0.01)
        await batches.aclose()
        with pytest.raises(ClosedError):
            await waiting
        assert [batch async for batch in batches] == []

    try:
        asyncio.run(close())
    finally:
        opened.set()


def test_a_pass_that_is_given_up_leaves_no_threads(uri):
    async def give_up():
        async for _ in s3dlio.create_async_loader(uri, {"batch_size": 1}):
            break

    before = set(threading.enumerate())
    asyncio.run(give_up())
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive(), thread.name


def test_e2_86_what_can_not_be_honoured_is_said_where_the_loader_is_made(uri):
    with pytest.raises(ConfigError, match="non_blocking is True and pin_memory False"):
        s3dlio.create_async_loader(uri, s3dlio.PyLoaderOptions().non_blocking(True))
    with pytest.raises(ConfigError, match="rank is 8"):
        s3dlio.create_async_loader(uri, s3dlio.PyLoaderOptions().distributed_sampling(8, 8))
    with pytest.raises(ConfigError, match="memory_format is 'channels_last'.*bytes"):
        s3dlio.create_async_loader(uri, s3dlio.PyLoaderOptions().channels_last())
    with pytest.raises(ConfigError, match="these numbers aren't read"):
        s3dlio.PyAsyncDataLoader(vec(3), {"sampler_type": "block"})
    with pytest.raises(ConfigError, match="memory_format is 'channels_last'.*numbers"):
        s3dlio.PyAsyncDataLoader(vec(3), s3dlio.PyLoaderOptions().channels_last())


def test_jax_iterable_gives_arrays(uri, items):
    arrays = list(s3dlio.JaxIterable.from_prefix(uri, shuffle=False))
    assert [array.tobytes() for array in arrays] == list(items.values())
    assert {array.dtype for array in arrays} == {np.dtype(np.uint8)}
    assert not arrays[1].flags.writeable
    (first, *_) = s3dlio.JaxIterable.from_prefix(uri, writable=True, batch_size=10)
    assert first.flags.writeable
    assert list(s3dlio.JaxIterable.from_prefix(uri, transform=len)) == [len(data) for data in items.values()]
    with pytest.raises(ConfigError, match="did you mean prefetch"):
        s3dlio.JaxIterable.from_prefix(uri, prefetched=3)
    with pytest.warns(DeprecationWarning):
        assert len(list(s3dlio.S3JaxIterable.from_prefix(uri))) == 100


def test_a_tensorflow_dataset_names_what_is_missing(uri, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
    with pytest.raises(PenstockError, match="tensorflow isn't installed"):
        s3dlio.make_tf_dataset(uri)


def test_samples_go_through_pickle(uri, items):
    from penstock.compat.s3dlio.dataset import Samples

    samples = Samples(s3dlio.create_dataset(uri).prefix, LoaderOptions(num_workers=2))
    samples.read(1)
    again = pickle.loads(pickle.dumps(samples))
    assert again.options == samples.options
    assert [again.read(index) for index in range(len(again))] == list(items.values())


def test_a_file_that_grew_is_an_error(tmp_path, uri):
    dataset = s3dlio.create_dataset(uri)
    (tmp_path / "in" / "003.bin").unlink()
    with pytest.raises(ObjectNotFound, match="003.bin"):
        asyncio.run(dataset.get_item(3))


def test_there_is_no_other_name():
    with pytest.raises(AttributeError, match="no attribute 'PyThing'"):
        _ = s3dlio.PyThing
    assert {name for name in s3dlio.__all__ if not hasattr(s3dlio, name)} == set()
