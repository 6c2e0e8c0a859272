"""ImageFolderLoader on real JPEG and PNG files: contracts A12, behaviours 51 and 52."""

from __future__ import annotations

import io

import numpy as np
import pytest

import penstock
from penstock.errors import BudgetHeld, ConfigError, DecodeError, UnitTooLarge

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

CLASSES = ["cat", "dog"]


def image_bytes(seed: int, size: tuple[int, int], fmt: str = "JPEG", mode: str = "RGB") -> bytes:
    """A picture with smooth colours and some noise, (width, height) = ``size``."""
    random = np.random.default_rng(seed)
    width, height = size
    ramp = np.linspace(0, 200, width)[None, :, None] + np.linspace(0, 50, height)[:, None, None]
    pixels = ramp * random.uniform(0.5, 1, 3) + random.normal(0, 4, (height, width, 3))
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).convert(mode)
    out = io.BytesIO()
    picture.save(out, format=fmt)
    return out.getvalue()


@pytest.fixture
def make(tmp_path):
    """Pack pictures and load them; closes what it made."""
    loaders = []

    def pack_and_load(pictures: dict[str, bytes], *, label_mode: str = "imagefolder", **arguments):
        for name, data in pictures.items():
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        penstock.pack_dir(str(tmp_path / "in"), out=str(tmp_path / "out"), label_mode=label_mode)
        return load(**arguments)

    def load(**arguments):
        loader = penstock.vision.ImageFolderLoader(
            str(tmp_path / "out"), manifest_store_root=str(tmp_path / "store"), **arguments
        )
        loaders.append(loader)
        return loader

    pack_and_load.load = load
    yield pack_and_load
    for loader in loaders:
        loader.close()


def pictures(count: int = 6, size: tuple[int, int] = (40, 30), **options) -> dict[str, bytes]:
    return {f"{CLASSES[i % 2]}/{i:03d}.jpg": image_bytes(i, size, **options) for i in range(count)}


def reference(data: bytes, resize_hw: tuple[int, int] | None) -> np.ndarray:
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    if resize_hw:
        picture = picture.resize((resize_hw[1], resize_hw[0]))
    return np.asarray(picture).transpose(2, 0, 1)


@pytest.fixture
def pillow_backend(monkeypatch):
    """The exact path: what Pillow alone would give."""
    monkeypatch.setenv("MX8_DECODE_BACKEND", "python")


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    error = ((first.astype(np.float64) - second) ** 2).mean()
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def test_e2_51_float_images_in_unit_range_and_labels(make, pillow_backend):
    source = pictures()
    loader = make(source, batch_size_samples=4, resize_hw=(16, 24))
    assert loader.classes == CLASSES
    batches = list(loader)
    assert [images.shape for images, _ in batches] == [(4, 3, 16, 24), (2, 3, 16, 24)]
    images = torch.cat([images for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    assert images.dtype == torch.float32 and images.is_contiguous()
    assert labels.dtype == torch.int64 and labels.tolist() == [0, 0, 0, 1, 1, 1]
    ordered = [source[name] for name in sorted(source)]
    for image, data in zip(images, ordered, strict=True):
        assert np.array_equal(image.numpy(), reference(data, (16, 24)).astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("backend", ["python", "rust", "native"])
def test_e2_51_bytes_without_resizing_on_every_backend(make, monkeypatch, backend):
    monkeypatch.setenv("MX8_DECODE_BACKEND", backend)
    monkeypatch.setenv("MX8_DECODE_THREADS", "3")
    source = pictures()
    images, _ = next(make(source, to_float=False))
    assert images.dtype == torch.uint8
    for image, name in zip(images, sorted(source), strict=True):
        assert np.array_equal(image.numpy(), reference(source[name], None))


@pytest.mark.parametrize(
    ("fmt", "mode"), [("PNG", "RGB"), ("PNG", "L"), ("PNG", "RGBA"), ("JPEG", "L"), ("JPEG", "CMYK")]
)
def test_other_kinds_of_picture_become_rgb(make, fmt, mode):
    source = pictures(fmt=fmt, mode=mode)
    images, _ = next(make(source, to_float=False))
    assert np.array_equal(images[0].numpy(), reference(source[sorted(source)[0]], None))


def test_e2_51_unequal_sizes_need_resize(make):
    source = pictures(2) | {"dog/009.jpg": image_bytes(9, (41, 30))}
    with pytest.raises(ConfigError, match=r"resize_hw=\(height, width\)"):
        next(make(source))
    images, _ = next(make.load(resize_hw=(8, 8)))
    assert images.shape == (3, 3, 8, 8)


def test_sizes_may_differ_between_batches(make):
    source = {f"cat/{i}.png": image_bytes(i, (20 + 7 * i, 10 + 3 * i), "PNG") for i in range(4)}
    source["dog/9.png"] = image_bytes(9, (9, 9), "PNG")
    shapes = [tuple(images.shape[2:]) for images, _ in make(source, batch_size_samples=1)]
    assert shapes == [(10 + 3 * i, 20 + 7 * i) for i in range(4)] + [(9, 9)]


def test_e2_51_no_labels_is_a_value_error_that_names_the_hints(make):
    with pytest.raises(ValueError, match="imagefolder hints"):
        next(make(pictures(), label_mode="none"))
    assert make.load().classes is None


def test_raw_and_decoded_bytes_are_charged_together_and_leave_with_the_tensor(make):
    decoded = 3 * 3 * 32 * 32 * 4
    loader = make(pictures(12), batch_size_samples=3, resize_hw=(32, 32), max_inflight_bytes=4 * decoded)
    images, _ = next(loader)
    loader.close()
    assert loader.stats()["inflight_bytes"] == decoded, "raw bytes are let go once decoded"
    view = images[1, 2].numpy()
    del images
    assert loader.stats()["inflight_bytes"] == decoded
    del view
    assert loader.stats()["inflight_bytes"] == 0
    assert loader.stats()["ram_high_water_bytes"] <= 4 * decoded


@pytest.mark.parametrize("resize_hw", [None, (30, 40)])
def test_kept_images_are_an_error_that_says_so(make, resize_hw):
    loader = make(pictures(40), batch_size_samples=1, resize_hw=resize_hw, to_float=False, max_inflight_bytes=20_000)
    kept = []
    with pytest.raises(BudgetHeld):
        for batch in loader:
            kept.append(batch)
    assert len(kept) >= 2
    del batch
    count = len(kept)
    kept.clear()
    assert 1 + sum(1 for _ in loader) + count > 40


def test_a_batch_of_pixels_larger_than_the_cap_names_both_numbers(make):
    loader = make(pictures(), resize_hw=(100, 100), max_inflight_bytes=100_000)
    with pytest.raises(UnitTooLarge) as raised:
        next(loader)
    assert raised.value.needed_bytes > 6 * 3 * 100 * 100 * 4
    assert "lower batch_size_samples" in str(raised.value)
    assert raised.value.total_bytes == 100_000


def test_order_and_pixels_do_not_depend_on_prefetch(make):
    make(pictures(20))
    runs = []
    for prefetch in (1, 4):
        batches = list(
            make.load(batch_size_samples=3, resize_hw=(9, 9), prefetch_batches=prefetch, shuffle=True, seed=1)
        )
        runs.append((torch.cat([i for i, _ in batches]), torch.cat([labels for _, labels in batches])))
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])


@pytest.mark.parametrize("backend", ["python", "native"])
def test_a_broken_picture_is_named(make, monkeypatch, backend):
    monkeypatch.setenv("MX8_DECODE_BACKEND", backend)
    source = pictures(3) | {"dog/777.jpg": pictures(1)["cat/000.jpg"][:200]}
    loader = make(source, resize_hw=(8, 8))
    with pytest.raises(DecodeError, match=r"sample 3 \(200 bytes\)") as raised:
        next(loader)
    assert raised.value.sample_id == 3


@pytest.mark.parametrize(
    ("name", "value", "listed"),
    [
        ("MX8_DECODE_BACKEND", "cuda", "python"),
        ("MX8_DECODE_THREADS", "0", "at least 1"),
        ("MX8_DECODE_THREADS", "two", "at least 1"),
        ("MX8_RUST_JPEG_CODEC", "mozjpeg", "zune"),
        ("MX8_RUST_RESIZE_BACKEND", "slow", "fast_image_resize"),
        ("PENSTOCK_DECODE_BACKEND", "cuda", "native"),
    ],
)
def test_e2_52_bad_decode_variables_list_the_choices(make, monkeypatch, name, value, listed):
    make(pictures(2))
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=listed) as raised:
        make.load()
    assert name in str(raised.value) and value in str(raised.value)


def test_pixels_of_unknown_size_fit_a_cap_of_one_batch(make):
    """The first attempt's memory must be gone before the second one is charged."""
    source = {f"{CLASSES[i % 2]}/{i}.png": image_bytes(i, (100, 100), "PNG") for i in range(16)}
    raw = sum(sorted((len(data) for data in source.values()), reverse=True)[:8])
    loader = make(source, batch_size_samples=8, to_float=False, max_inflight_bytes=raw + 8 * 3 * 100 * 100 + 64)
    seen = 0
    for batch in loader:
        seen += len(batch[1])
        del batch
    assert seen == 16


@pytest.mark.parametrize("resize_hw", [(0, 8), (8,), (8, -1), (1.5, 8), (8, 8, 3), 224, (True, 2), (2**40, 2**40)])
def test_a_bad_size_is_refused(make, resize_hw):
    with pytest.raises(ValueError, match="resize_hw"):
        make(pictures(2), resize_hw=resize_hw)


@pytest.mark.parametrize(("module", "name"), [("torch", "torch"), ("PIL.Image", "PIL")])
def test_a_missing_package_is_named(make, monkeypatch, module, name):
    import sys

    make(pictures(2))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RuntimeError, match=name):
        make.load()


def test_the_local_vision_gate(make):
    """Four JPEGs in two classes under a 64 KiB cap: shapes, classes, high water, and steps that train."""
    loader = make(pictures(4), batch_size_samples=2, resize_hw=(16, 16), max_inflight_bytes=64 << 10)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = [parameter.clone() for parameter in model.parameters()]
    for images, labels in loader:
        assert images.shape[0] == labels.shape[0] == 2
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loader.stats()["ram_high_water_bytes"] <= 64 << 10
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
