"""Images of a shared job: the pixels that an ordinary loader would give, whoever gets them."""

from __future__ import annotations

import io
import random

import pytest
from packing import make_tree
from PIL import Image

import penstock
from penstock.vision import ImageFolderLoader
from small_coordinator import SmallCoordinator

IMAGES = 24


def picture(seed: int) -> bytes:
    source, out = random.Random(seed), io.BytesIO()
    Image.frombytes("RGB", (6, 4), source.randbytes(72)).resize((48, 36)).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    make_tree(root / "in", {f"class {index % 2}/{index:02d}.jpg": picture(index) for index in range(IMAGES)})
    penstock.pack_dir(root / "in", out=str(root / "packed"), label_mode="imagefolder")
    return root / "packed"


def by_pixels(loader) -> list[tuple[bytes, int]]:
    return sorted(
        (image.numpy().tobytes(), int(label))
        for images, labels in loader
        for image, label in zip(images, labels, strict=True)
    )


HOW = {"random_resized_crop_hw": (16, 16), "horizontal_flip": 0.5, "to_float": False, "batch_size_samples": 5}


def test_pixels_and_labels_are_those_of_an_ordinary_loader(packed, tmp_path):
    how = {**HOW, "manifest_store_root": str(tmp_path / "own")}
    with ImageFolderLoader(str(packed), seed=6, **how) as plain:
        expected = by_pixels(plain)
    with (
        SmallCoordinator(packed, tmp_path / "root", block_samples=7, shuffle=True, seed=6) as shared,
        penstock.DistributedLoader(coord_url=shared.url, job_id="j", node_id="n", want=2, **how) as loader,
    ):
        assert loader.classes == ["class 0", "class 1"]
        assert by_pixels(loader) == expected


def test_each_epoch_is_cropped_anew_and_a_default_batch_has_32(packed, tmp_path):
    how = {**HOW, "manifest_store_root": str(tmp_path / "own")}
    del how["batch_size_samples"]
    with (
        SmallCoordinator(packed, tmp_path / "root", block_samples=IMAGES, epochs=2) as shared,
        penstock.DistributedLoader(coord_url=shared.url, job_id="j", node_id="n", **how) as loader,
    ):
        batches = [images.clone() for images, _ in loader]
    assert [len(images) for images in batches] == [IMAGES, IMAGES]
    assert not batches[0].equal(batches[1])


def test_a_transform_is_refused(packed, tmp_path):
    with SmallCoordinator(packed, tmp_path / "root") as shared, pytest.raises(penstock.errors.ConfigError):
        penstock.DistributedLoader(
            coord_url=shared.url, job_id="j", node_id="n", transform=len, manifest_store_root=str(tmp_path / "own")
        )
    assert not shared.calls
