"""Pictures that can't be decoded: left out or replaced, with their labels, in the same steps."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest

import penstock
from penstock.errors import ConfigError, DecodeError

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

COUNT = 12
BAD = {2, 5, 7, 8}


def encoded(index: int, fmt: str) -> bytes:
    out = io.BytesIO()
    ramp = np.linspace(0, 200, 32 * 24 * 3).reshape(24, 32, 3) + index * 4
    Image.fromarray(ramp.astype(np.uint8)).save(out, format=fmt)
    return out.getvalue()


def lying_png() -> bytes:
    """A PNG that is well formed and whose checksums are right, but whose pixels end in the middle of nowhere."""
    header = struct.pack(">IIBBBBB", 32, 24, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(range(97)))[:60]), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def huge_png() -> bytes:
    """A PNG that claims to be larger than any that is decoded."""
    data = bytearray(encoded(0, "PNG"))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Twelve pictures of which four are broken, each in a way of its own."""
    broken = {2: encoded(2, "JPEG")[:300], 5: lying_png(), 7: b"no picture at all", 8: huge_png()}
    for index in range(COUNT):
        path = tmp_path / "in" / ("cat" if index < 6 else "dog") / f"{index:03d}.img"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(broken.get(index) or encoded(index, "PNG" if index % 2 else "JPEG"))
    penstock.pack_dir(str(tmp_path / "in"), out=str(tmp_path / "out"), label_mode="imagefolder")
    loaders = []

    def make(**arguments):
        arguments = {"batch_size_samples": 4, "resize_hw": (24, 32), "to_float": False, **arguments}
        store = str(tmp_path / "store")
        loaders.append(penstock.vision.ImageFolderLoader(str(tmp_path / "out"), manifest_store_root=store, **arguments))
        return loaders[-1]

    make.shard = tmp_path / "out" / "shards" / "shard-00000.tar"
    yield make
    for loader in loaders:
        loader.close()


def pixels(index: int) -> np.ndarray:
    picture = Image.open(io.BytesIO(encoded(index, "PNG" if index % 2 else "JPEG"))).convert("RGB")
    return np.asarray(picture).transpose(2, 0, 1)


def which(image) -> int:
    """The sample that an image is of: the nearest."""
    distances = {i: np.abs(pixels(i).astype(int) - image.numpy()).mean() for i in range(COUNT) if i not in BAD}
    return min(distances, key=distances.get)


@pytest.mark.parametrize("backend", ["python", "native"])
@pytest.mark.parametrize("prefetch", [1, 3])
def test_broken_pictures_are_skipped_with_their_labels(load, monkeypatch, backend, prefetch):
    monkeypatch.setenv("PENSTOCK_DECODE_BACKEND", backend)
    loader = load(on_error="skip", prefetch_batches=prefetch)
    batches = list(loader)
    assert [[which(image) for image in images] for images, _ in batches] == [[0, 1, 3], [4, 6], [9, 10, 11]]
    assert [labels.tolist() for _, labels in batches] == [[0, 0, 0], [0, 1], [1, 1, 1]]
    assert all(images.is_contiguous() for images, _ in batches)
    stats = loader.stats()
    assert stats["faulty_samples_by_kind"] == {"DecodeError": 4}
    assert (stats["skipped_samples_total"], stats["delivered_samples_total"]) == (4, 8)


@pytest.mark.parametrize("backend", ["python", "native"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_broken_pictures_are_replaced_by_good_ones_of_the_batch(load, monkeypatch, backend, layout):
    monkeypatch.setenv("PENSTOCK_DECODE_BACKEND", backend)
    loader = load(on_error="replace", layout=layout)
    for number, (images, labels) in enumerate(loader):
        if layout == "NHWC":
            images = images.permute(0, 3, 1, 2)
        found = [which(image) for image in images]
        good = [i for i in range(4 * number, 4 * number + 4) if i not in BAD]
        expected = [i if i in good else good[i % len(good)] for i in range(4 * number, 4 * number + 4)]
        assert found == expected
        assert labels.tolist() == [int(i >= 6) for i in expected]
    assert loader.stats()["replaced_samples_total"] == 4


def test_without_a_size_of_their_own_the_good_ones_say_it(load):
    loader = load(on_error="skip", resize_hw=None, batch_size_samples=1)
    shapes = [tuple(images.shape) for images, _ in loader]
    assert len(shapes) == COUNT
    assert [shape[0] for shape in shapes] == [int(i not in BAD) for i in range(COUNT)]
    assert {shape[1:] for shape in shapes} == {(3, 24, 32)}


def test_a_batch_of_broken_pictures_alone_has_none(load):
    images, labels = list(load(on_error="replace", batch_size_samples=1))[7]
    assert tuple(images.shape) == (0, 3, 24, 32)
    assert labels.tolist() == []


def test_damage_of_the_shard_and_of_a_picture_in_one_batch(load):
    shard = bytearray(load.shard.read_bytes())
    where = shard.index(encoded(9, "PNG"))
    shard[where + 100] ^= 0xFF
    load.shard.write_bytes(shard)
    loader = load(on_error="skip")
    assert [[which(image) for image in images] for images, _ in loader] == [[0, 1, 3], [4, 6], [10, 11]]
    assert loader.stats()["faulty_samples_by_kind"] == {"DecodeError": 4, "ShardCorrupt": 1}


def test_the_error_of_a_picture_says_where_it_lies(load):
    seen = {}
    list(load(on_error=lambda error: seen.update({error.sample_id: error}) or "skip"))
    assert set(seen) == BAD
    for sample, error in seen.items():
        assert isinstance(error, DecodeError)
        assert error.location == str(load.shard) and error.offset > 0
        assert error.key == f"{sample:020d}.img"
        assert error.__traceback__ is None


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("on_error", ["skip", "replace"])
def test_ranks_end_on_the_same_step(load, world_size, on_error):
    counts, images_count = set(), 0
    for rank in range(world_size):
        batches = list(load(on_error=on_error, rank=rank, world_size=world_size, batch_size_samples=3))
        counts.add(len(batches))
        images_count += sum(len(images) for images, _ in batches)
    assert len(counts) == 1
    assert images_count == COUNT - 4 if on_error == "skip" else images_count > COUNT - 4


@pytest.mark.parametrize("on_error", ["skip", "replace"])
def test_charges_return_and_memory_stays_with_the_tensor(load, on_error):
    loader = load(on_error=on_error, prefetch_batches=2)
    kept = [images for images, _ in loader]
    assert loader.stats()["inflight_bytes"] == 3 * 4 * 3 * 24 * 32
    del kept
    assert loader.stats()["inflight_bytes"] == 0


def test_by_default_the_first_broken_picture_is_raised(load):
    with pytest.raises(DecodeError, match="sample 2 "):
        list(load())
    with pytest.raises(ConfigError, match="on_error"):
        load(on_error="drop")


@pytest.mark.parametrize("backend", ["python", "native"])
def test_the_first_broken_picture_is_named_whole_when_it_ends_the_pass(load, monkeypatch, backend):
    monkeypatch.setenv("PENSTOCK_DECODE_BACKEND", backend)
    with pytest.raises(DecodeError) as raised:
        list(load())
    error = raised.value
    assert error.sample_id == min(BAD)
    assert error.key is not None and error.key.startswith(f"{min(BAD):020d}.")
    assert (error.location, error.offset % 512) == (str(load.shard), 0)
    assert any(error.key in note and error.location in note for note in error.__notes__)
    assert "object at" not in str(error)
