"""s3dlio's datasets inside of torch's DataLoader."""

from __future__ import annotations

import sys
import types

import pytest
from packing import make_tree

from penstock.compat import s3dlio
from penstock.errors import ConfigError, NoSuchSample, ObjectNotFound, PenstockError
from penstock.store import open_store

torch = pytest.importorskip("torch")

ITEMS = {f"{'ab'[i % 2]}/{i:03d}.bin": bytes([i]) * (1 + i % 5) for i in range(41)}
IN_ORDER = [ITEMS[name] for name in sorted(ITEMS)]


pytestmark = pytest.mark.usefixtures("ended_data_loaders")


@pytest.fixture
def uri(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_MANIFEST_STORE_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))
    return f"file://{make_tree(tmp_path / 'in', ITEMS)}"


def iterable(uri, **arguments):
    return s3dlio.ObjectStoreIterableDataset.from_prefix(uri, return_type="bytes", **arguments)


def raw(tensors):
    return [tensor.numpy().tobytes() for tensor in tensors]


@pytest.mark.parametrize("make", [s3dlio.ObjectStoreIterableDataset, s3dlio.ObjectStoreMapDataset])
def test_e2_85_return_types(uri, make):
    tensors = [tensor for tensor, _ in zip(make.from_prefix(uri), range(41), strict=False)]
    assert {(tensor.dtype, tensor.dim()) for tensor in tensors} == {(torch.uint8, 1)}
    assert raw(tensors) == IN_ORDER
    assert list(map(bytes, make.from_prefix(uri, return_type="bytes"))) == IN_ORDER
    readers = list(make.from_prefix(uri, return_type="READER"))
    assert [len(reader) for reader in readers] == [len(data) for data in IN_ORDER]
    assert [reader.readall() for reader in readers[:5]] == IN_ORDER[:5]
    with pytest.raises(ValueError, match="return_type is 'pixels'; choose one of tensor, bytes, reader"):
        make.from_prefix(uri, return_type="pixels")


def test_e2_85_readers_close(uri):
    (reader, *_) = s3dlio.ObjectStoreIterableDataset.from_prefix(uri, return_type="reader", batch_size=8)
    with reader:
        assert reader.read(1) + reader.read_all() == IN_ORDER[0]
    with pytest.raises(ValueError, match="closed"):
        reader.read()


@pytest.mark.parametrize("make", [s3dlio.ObjectStoreIterableDataset, s3dlio.ObjectStoreMapDataset])
def test_e2_85_writable_tensors_have_memory_of_their_own(uri, make):
    dataset = make.from_prefix(uri, writable=True)
    tensor = next(iter(dataset))
    tensor += 1
    assert raw([next(iter(dataset))]) == IN_ORDER[:1]


def test_e2_85_torch_warns_of_memory_that_is_not_writable_where_it_may(uri):
    torch.set_warn_always(True)  # not only once in a process
    try:
        next(iter(s3dlio.ObjectStoreIterableDataset.from_prefix(uri)))
        loud = {"suppress_nonwritable_warning": False}
        next(iter(s3dlio.ObjectStoreIterableDataset.from_prefix(uri, writable=True, **loud)))
        with pytest.warns(UserWarning, match="not writable"):
            next(iter(s3dlio.ObjectStoreIterableDataset.from_prefix(uri, **loud)))
    finally:
        torch.set_warn_always(False)


def test_an_empty_sample_is_an_empty_tensor(uri, tmp_path):
    (tmp_path / "in" / "0.bin").touch()
    tensor = next(iter(s3dlio.ObjectStoreIterableDataset.from_prefix(uri)))
    assert (tensor.dtype, tuple(tensor.shape)) == (torch.uint8, (0,))


def test_batches_are_only_how_it_is_read(uri):
    for batch_size in (1, 7, 100):
        assert list(iterable(uri, batch_size=batch_size)) == IN_ORDER
    assert list(iterable(uri, batch_size=7, drop_last=True)) == IN_ORDER[:35]
    shuffled = list(iterable(uri, shuffle=True, seed=5))
    assert shuffled != IN_ORDER
    assert sorted(shuffled) == sorted(IN_ORDER)
    opts = s3dlio.PyLoaderOptions().shuffle(True, 5).with_batch_size(3)
    assert list(s3dlio.ObjectStoreIterableDataset(uri, loader_opts=opts, return_type="bytes")) == shuffled
    with pytest.raises(ConfigError, match="did you mean batch_size"):
        iterable(uri, batchsize=7)


def test_each_loop_is_a_pass_of_its_own(uri):
    dataset = iterable(uri)
    assert list(dataset) == list(dataset) == IN_ORDER


@pytest.fixture
def joined():
    """Makes this process a rank of a group, with no other processes: nothing is sent."""
    from torch import distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def leave():
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def join(rank, world_size):
        leave()
        distributed.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())

    yield join
    leave()


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_e2_80_sharding_gives_everything_once(uri, joined, workers, world_size, batch_size):
    dataset = iterable(uri, enable_sharding=True, shuffle=True, batch_size=batch_size)
    found = []
    for rank in range(world_size):
        joined(rank, world_size)
        found += torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers)
    assert sorted(found) == sorted(IN_ORDER)


def test_without_sharding_each_worker_has_everything(uri):
    found = list(torch.utils.data.DataLoader(iterable(uri), batch_size=None, num_workers=2))
    assert sorted(found) == sorted(IN_ORDER * 2)


def test_what_sharding_finds_out_can_not_be_given_as_well(uri):
    with pytest.raises(ConfigError, match="give one"):
        iterable(uri, enable_sharding=True, shard_rank=1, shard_world_size=2)
    assert len(list(iterable(uri, shard_rank=1, shard_world_size=2, batch_size=2))) == 20


def test_e2_84_errors_are_raised_where_the_next_sample_is_asked_for(uri, tmp_path):
    dataset = iterable(uri)
    (tmp_path / "in" / "a" / "004.bin").unlink()
    found = []
    with pytest.raises(ObjectNotFound, match="004.bin"):
        for sample in dataset:
            found.append(sample)
    assert found == IN_ORDER[:2]
    with pytest.raises((ObjectNotFound, RuntimeError), match="004.bin"):
        list(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1))


def test_map_style_goes_by_numbers(uri):
    dataset = s3dlio.ObjectStoreMapDataset(uri, return_type="bytes", reader_mode="range", part_size=2)
    assert len(dataset) == 41
    assert [dataset[index] for index in (40, 0, 7)] == [IN_ORDER[index] for index in (40, 0, 7)]
    for outside in (41, -1):
        with pytest.raises(IndexError) as caught:
            dataset[outside]
        assert isinstance(caught.value, NoSuchSample)
    with pytest.raises(TypeError, match="shuffle"):
        s3dlio.ObjectStoreMapDataset(uri, shuffle=True)


def test_map_style_in_workers(uri):
    dataset = s3dlio.ObjectStoreMapDataset(uri, return_type="bytes")
    assert dataset[0] == IN_ORDER[0]  # what this process opened stays here
    order = torch.randperm(41, generator=torch.Generator().manual_seed(1)).tolist()
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, sampler=order, num_workers=2, collate_fn=list)
    assert [sample for batch in loader for sample in batch] == [IN_ORDER[index] for index in order]


def test_deprecated_names_warn(uri):
    with pytest.warns(DeprecationWarning, match="use ObjectStoreIterableDataset"):
        assert len(list(s3dlio.S3IterableDataset.from_prefix(uri))) == 41
    with pytest.warns(DeprecationWarning, match="use ObjectStoreMapDataset"):
        assert len(s3dlio.S3MapDataset(uri)) == 41


def test_without_torch_the_others_are_there_and_an_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "penstock.compat.s3dlio.torch")
    with pytest.raises(PenstockError, match="torch isn't installed"):
        _ = s3dlio.ObjectStoreIterableDataset


def test_a_tensorflow_dataset_is_made_of_the_same_samples(uri, monkeypatch):
    """With what stands for tensorflow: it isn't installed where these tests run."""

    class Made:
        def __init__(self, samples, output_signature):
            self.samples, self.signature = list(samples()), output_signature

        def map(self, function, num_parallel_calls):
            self.samples = list(map(function, self.samples))
            return self

    stand_in = types.SimpleNamespace(
        data=types.SimpleNamespace(Dataset=types.SimpleNamespace(from_generator=Made), AUTOTUNE=-1),
        TensorSpec=lambda shape, dtype: (shape, dtype),
        uint8="uint8",
    )
    monkeypatch.setitem(sys.modules, "tensorflow", stand_in)
    made = s3dlio.make_tf_dataset(uri, shuffle=False, map_fn=lambda array: array.tobytes())
    assert made.samples == IN_ORDER
    assert made.signature == ((None,), "uint8")


@pytest.mark.s3
def test_workers_that_are_forks_of_a_process_that_used_an_object_store_say_what_to_do(s3_root, uri):
    open_store(f"{s3_root}/in").put("a.bin", b"a")
    loader = torch.utils.data.DataLoader(iterable(f"{s3_root}/in"), batch_size=None, num_workers=1)
    with pytest.raises(RuntimeError, match='start workers with "spawn" or "forkserver"'):
        list(loader)
