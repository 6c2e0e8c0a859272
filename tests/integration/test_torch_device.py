"""DeviceLoader: nothing on a CPU, copies ahead on a GPU; and tensors for those who don't use torch."""

from __future__ import annotations

import collections

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("PIL")
import torch
from PIL import Image

import penstock
from penstock.errors import BudgetHeld, ConfigError, DataError, ResumeError
from penstock.torch import DeviceLoader, EpochLoader
from penstock.torch.device import Ahead
from penstock.torch.tensors import map_tensors, require_pinning, tensors_of
from penstock.vision import ImageFolderLoader

IMAGES, BATCH, STEPS = 30, 4, 8

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device: torch.cuda.is_available()"),
]


def on_gpu(test):
    for mark in gpu:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Pictures of one colour each, its red the number of the picture."""
    root = tmp_path_factory.mktemp("device")
    for number in range(IMAGES):
        path = root / "in" / f"class {number % 2}" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    penstock.pack_dir(root / "in", out=str(root / "packed"), label_mode="imagefolder")
    return root


@pytest.fixture
def images(packed):
    made = []

    def make(**arguments):
        how = {"batch_size_samples": BATCH, "shuffle": True, "resize_hw": (8, 8), "dtype": "uint8"} | arguments
        link, store = str(packed / "packed"), str(packed / "store")
        made.append(EpochLoader(ImageFolderLoader, link, manifest_store_root=store, **how))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def reds(loader, batches: int | None = None) -> list[list[int]]:
    found = []
    for pictures, labels in loader:
        found.append(pictures[:, 0, 0, 0].tolist())
        assert len(labels) == len(pictures)
        if len(found) == batches:
            break
    return found


# On a CPU


def test_on_a_cpu_batches_pass_as_they_are(images):
    plain, through = images(), DeviceLoader(images(), "cpu")
    assert len(through) == STEPS
    for epoch in range(2):
        assert through.epoch == epoch
        assert reds(through) == reds(plain)
    pictures, _ = next(iter(through))
    assert through.state_dict()["batches"] == 1
    inflight = through._loader.loader.stats()["inflight_bytes"]
    assert inflight >= pictures.numel()  # the tensor is the budget's own memory, not a copy


def test_on_a_cpu_the_state_is_the_loaders(images):
    first = DeviceLoader(images(), "cpu")
    begun = reds(first, 3)
    second = DeviceLoader(images(), "cpu")
    second.load_state_dict(first.state_dict())
    assert begun + reds(second) == reds(images())
    second.set_epoch(0)
    assert reds(second) == reds(images())


def test_raw_bytes_become_tensors_on_any_device(packed):
    raw = EpochLoader(penstock.load, str(packed / "packed"), manifest_store_root=str(packed / "store"))
    with raw:
        ((payload, offsets, sample_ids, labels),) = DeviceLoader(raw, "cpu")
    assert offsets[-1] == len(payload)
    assert sample_ids.tolist() == list(range(IMAGES))
    assert sorted(set(labels.tolist())) == [0, 1]


def first_bytes(sample):
    return {"head": np.array(sample.data[:4]), "name": str(sample.id)}


def test_what_a_transform_gives_becomes_tensors_without_a_copy(packed):
    how = {"manifest_store_root": str(packed / "store"), "batch_size_samples": BATCH, "transform": first_bytes}
    with EpochLoader(penstock.load, str(packed / "packed"), **how) as plain:
        (batch, *_), (tensors, *_) = plain, DeviceLoader(plain, "cpu")
    assert torch.equal(tensors["head"], torch.from_numpy(batch["head"]))
    assert tensors["name"] == batch["name"] == ["0", "1", "2", "3"]
    array = np.zeros(3, dtype=np.float32)
    assert tensors_of([array])[0].data_ptr() == array.ctypes.data
    array.flags.writeable = False
    assert tensors_of([array, np.array(["text"])])[0].tolist() == [0, 0, 0]


@no_gpu
def test_what_would_have_nothing_to_act_on_is_refused(images):
    assert DeviceLoader(images()).device.type == "cpu"
    with pytest.raises(ConfigError, match="pin_memory is True, and this build of torch has no CUDA"):
        DeviceLoader(images(), pin_memory=True)
    with pytest.raises(ConfigError, match="non_blocking is True, and batches stay on cpu"):
        DeviceLoader(images(), non_blocking=True)
    with pytest.raises(ConfigError, match="there are 0 CUDA devices"):
        DeviceLoader(images(), "cuda:1")
    with pytest.raises(ConfigError, match="pin_memory is True"):
        require_pinning()
    with pytest.raises(ConfigError, match="ahead is 0"):
        DeviceLoader(images(), ahead=0)


def test_a_loader_without_a_state_says_so():
    loader = DeviceLoader([(torch.zeros(2),)], "cpu")
    assert len(list(loader)) == 1
    with pytest.raises(ResumeError, match=r"list has no state_dict\(\)"):
        loader.state_dict()


def test_tensors_are_found_in_tuples_lists_and_dicts():
    pair = collections.namedtuple("pair", "a b")
    batch = {"x": pair(torch.ones(2), "text"), "y": [torch.ones(1), (torch.ones(3), None)], "z": 3}
    doubled = map_tensors(batch, lambda tensor: tensor * 2)
    assert doubled["x"].a.tolist() == [2, 2]
    assert (doubled["x"].b, doubled["z"], doubled["y"][1][1]) == ("text", 3, None)
    assert [doubled["y"][0].tolist(), doubled["y"][1][0].tolist()] == [[2], [2, 2, 2]]


# Copying ahead: the order of things, which needs no GPU


class Counting:
    """Numbers up to ``count``, then an error where there is one; its state is how many it gave."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.given, self._count, self._error = 0, count, error

    def __iter__(self):
        return self

    def __next__(self) -> int:
        if self.given == self._count:
            raise self._error or StopIteration
        self.given += 1
        return self.given


def ahead_of(source: Counting, ahead: int, log: list) -> Ahead:
    return Ahead(
        source,
        start=lambda item: log.append(f"start {item}") or item,
        finish=lambda item: log.append(f"finish {item}") or item,
        ahead=ahead,
        snapshot=lambda: source.given,
        let_go=lambda: log.append("let go"),
    )


@pytest.mark.parametrize("ahead", [1, 2, 10])
def test_items_are_started_ahead_and_the_state_is_that_of_what_was_handed_out(ahead):
    log: list[str] = []
    items = ahead_of(Counting(5), ahead, log)
    assert items.state == 0
    for number in range(1, 6):
        assert next(items) == number
        assert items.state == number
        assert log.count("finish 1") == 1
        assert sum(line.startswith("start") for line in log) == min(5, number + ahead)
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(items)


def test_an_error_comes_in_its_turn():
    items = ahead_of(Counting(3, DataError("broken")), 2, [])
    assert [next(items), next(items), next(items)] == [1, 2, 3]
    with pytest.raises(DataError, match="broken"):
        next(items)
    with pytest.raises(StopIteration):
        next(items)


def test_what_is_read_still_is_let_go_of_when_the_budget_is_full():
    class Full(Counting):
        refused = False

        def __next__(self) -> int:
            if self.given == 1 and not self.refused:
                self.refused = True
                raise BudgetHeld("full", held_bytes=1, needed_bytes=1, total_bytes=1)
            return super().__next__()

    log: list[str] = []
    items = ahead_of(Full(2), 1, log)
    assert list(items) == [1, 2]
    assert log == ["start 1", "let go", "start 2", "finish 1", "finish 2", "let go"]


# On a GPU


@pytest.mark.parametrize("how", [{}, {"pin_memory": False}, {"non_blocking": False}, {"ahead": 3}])
class TestOnGpu:
    pytestmark = gpu

    def test_batches_arrive_whole_and_in_order(self, images, how):
        loader = DeviceLoader(images(max_inflight_bytes="64KiB"), **how)
        assert loader.device.type == "cuda"
        for _ in range(3):
            expected = reds(images(epoch=loader.epoch))
            found = []
            for pictures, labels in loader:
                assert pictures.is_cuda and labels.is_cuda
                found.append((pictures * 1)[:, 0, 0, 0])  # on the stream of the training step
            assert [each.tolist() for each in found] == expected

    def test_the_state_counts_what_was_handed_out(self, images, how):
        first = DeviceLoader(images(), **how)
        begun = reds(first, 3)
        second = DeviceLoader(images(), **how)
        second.load_state_dict(first.state_dict())
        assert begun + reds(second) == reds(images())

    def test_the_budget_has_everything_back_at_the_end(self, images, how):
        inner = images()
        for _ in DeviceLoader(inner, **how):
            pass
        torch.cuda.synchronize()
        assert inner.loader.stats()["inflight_bytes"] <= BATCH * 3 * 8 * 8 + 4096  # the loop's last batch, at most


@on_gpu
def test_pin_memory_gives_pinned_tensors(images):
    pictures, labels = next(iter(images(pin_memory=True)))
    assert pictures.is_pinned() and labels.is_pinned()


@on_gpu
def test_a_loader_may_ask_for_copies_beside_the_computation(images):
    asked = DeviceLoader(images(pin_memory=True, non_blocking=True))
    assert asked.non_blocking
    assert not DeviceLoader(images(), non_blocking=False).non_blocking
    assert reds(asked) == reds(images())


# Without torch


def test_dlpack_shows_images_and_bytes_without_a_copy(images, packed):
    with images().loader as loader:
        pictures, _ = next(loader)
        array = np.from_dlpack(pictures)
        assert array.shape == tuple(pictures.shape)
        assert array.ctypes.data == pictures.data_ptr()
        del pictures
        assert loader.stats()["inflight_bytes"] >= array.nbytes  # the array holds the charge
    with penstock.load(str(packed / "packed"), manifest_store_root=str(packed / "store")) as loader:
        batch = next(loader)
        assert np.from_dlpack(batch).tobytes() == batch.payload
