"""The core's decoder against Pillow, and everything a training pass does to a picture."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.decoding import decode, encoded

import penstock
from penstock import _core
from penstock.errors import ConfigError, DecodeError
from penstock.loader.augment import ImageTransform, Randomness
from penstock.loader.decode import NativeDecoder, PillowDecoder, PixelFormat

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")

pytestmark = pytest.mark.skipif(not _core.HAS_JPEG, reason="the core was built without libjpeg-turbo")

MOST_PIXELS = 1 << 26


def photograph(seed: int, width: int, height: int) -> Image.Image:
    """Smooth shapes, edges and sensor noise: what a resampler gets wrong shows."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [
        np.sin(2 * np.pi * (random.uniform(1, 9) * x + random.uniform(1, 9) * y + random.random())) for _ in range(3)
    ]
    pixels = 128 + 60 * np.stack(waves, axis=-1)
    pixels[(x - 0.5) ** 2 + (y - 0.3) ** 2 < 0.04] = random.uniform(0, 255, 3)
    pixels += random.normal(0, 5, (height, width, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **({"quality": 92} | options))
    return out.getvalue()


def native(threads: int = 2, most_pixels: int = MOST_PIXELS) -> NativeDecoder:
    return NativeDecoder(threads, most_pixels=most_pixels)


def pillow() -> PillowDecoder:
    return PillowDecoder(1, whole_filter="bilinear", most_pixels=MOST_PIXELS)


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    error = ((first.astype(np.float64) - second) ** 2).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


KINDS = {
    "420": {"subsampling": 2},
    "422": {"subsampling": 1},
    "444": {"subsampling": 0},
    "progressive": {"progressive": True},
    "optimized": {"optimize": True},
    "restarts": {"restart_marker_blocks": 3},
}


@pytest.mark.parametrize("kind", [*KINDS, "grey", "cmyk"])
@pytest.mark.parametrize("out_hw", [(224, 224), (96, 64), (600, 700)])
def test_every_kind_of_jpeg_is_close_to_pillow(kind, out_hw):
    image = photograph(1, 463, 415)
    if kind in ("grey", "cmyk"):
        image = image.convert({"grey": "L", "cmyk": "CMYK"}[kind])
    file = jpeg(image, **KINDS.get(kind, {}))
    assert psnr(decode(native(), [file], out_hw), decode(pillow(), [file], out_hw)) > 40


def test_200_photographs_stay_above_40_db_on_average():
    random = np.random.default_rng(0)
    files = [
        jpeg(photograph(i, int(random.integers(300, 640)), int(random.integers(300, 640))), quality=90 + i % 8)
        for i in range(200)
    ]
    ours, exact = decode(native(), files, (224, 224)), decode(pillow(), files, (224, 224))
    values = [psnr(a, b) for a, b in zip(ours, exact, strict=True)]
    assert np.mean(values) > 40
    assert min(values) > 34


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5), (8, 8), (15, 17), (16, 16), (33, 31), (700, 2), (2, 700)])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_odd_sizes(size, subsampling):
    file = jpeg(photograph(2, *size), subsampling=subsampling)
    for out_hw in [(5, 7), (40, 30)]:
        # A chroma sample for four pixels leaves tiny pictures a little off; no row or column may be missing.
        assert psnr(decode(native(), [file], out_hw), decode(pillow(), [file], out_hw)) > 28


def test_the_same_size_is_the_same_picture():
    file = jpeg(photograph(3, 121, 77))
    exact = np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).transpose(2, 0, 1)
    assert psnr(decode(native(), [file], (77, 121))[0], exact) > 50


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_window_and_flip_is_close_to_pillow(data):
    width, height = data.draw(st.integers(20, 300)), data.draw(st.integers(20, 300))
    x = data.draw(st.floats(0, width - 10))
    y = data.draw(st.floats(0, height - 10))
    window = [x, y, data.draw(st.floats(8, width - x)), data.draw(st.floats(8, height - y))]
    flip = data.draw(st.booleans())
    out_hw = (data.draw(st.integers(1, 80)), data.draw(st.integers(1, 80)))
    file = jpeg(photograph(4, width, height), subsampling=data.draw(st.integers(0, 2)))
    arguments = {"windows": [window], "flips": [flip]}
    ours, exact = decode(native(1), [file], out_hw, **arguments), decode(pillow(), [file], out_hw, **arguments)
    assert psnr(ours, exact) > 32


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("flip", [False, True])
def test_exif_orientation_stands_upright(orientation, flip):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = jpeg(photograph(5, 200, 120), exif=exif, subsampling=0)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(file)))
    sizes = native().sizes(encoded([file]))
    assert sizes.tolist() == [[upright.height, upright.width]]
    for window in [[0, 0, upright.width, upright.height], [10, 20, 60, 50]]:
        arguments = {"windows": [window], "flips": [flip]}
        ours, exact = decode(native(), [file], (48, 40), **arguments), decode(pillow(), [file], (48, 40), **arguments)
        assert psnr(ours, exact) > 38


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("type_", ["uint8", "float32", "bfloat16"])
def test_every_format_holds_the_same_pixels(layout, type_):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    real = type_ != "uint8"
    form = PixelFormat(type_, layout, mean, std) if real else PixelFormat(type_, layout)
    files = [jpeg(photograph(i, 90, 70)) for i in range(3)] + [png(photograph(9, 90, 70))]
    plain = decode(native(), files, (32, 48)).astype(np.float64)
    expected = plain
    if real:
        expected = (plain / 255 - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    if layout == "NHWC":
        expected = expected.transpose(0, 2, 3, 1)
    found = decode(native(), files, (32, 48), form=form)
    if type_ == "bfloat16":
        found = (found.astype(np.uint32) << 16).view(np.float32)
    tolerance = {"uint8": 0, "float32": 2e-6, "bfloat16": 1e-2}[type_]
    assert np.abs(found - expected).max() <= tolerance


def png(image: Image.Image, fmt: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, fmt)
    return out.getvalue()


@pytest.mark.parametrize("fmt", ["PNG", "WEBP", "BMP", "GIF"])
def test_other_files_go_through_pillow_beside_jpegs(fmt):
    if fmt == "WEBP" and not __import__("PIL.features").features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    files = [jpeg(photograph(1, 80, 60)), png(photograph(2, 50, 70), fmt), jpeg(photograph(3, 60, 60))]
    ours, exact = decode(native(), files, (40, 40)), decode(pillow(), files, (40, 40))
    assert np.array_equal(ours[1], exact[1])
    assert psnr(ours[0], exact[0]) > 38 and psnr(ours[2], exact[2]) > 38


@settings(max_examples=25, deadline=None)
@given(threads=st.integers(1, 6), split=st.integers(1, 12), seed=st.integers(0, 3))
def test_pixels_do_not_depend_on_threads_or_batches(threads, split, seed):
    files = [jpeg(photograph(seed * 20 + i, 60 + 9 * i, 90 - 3 * i)) for i in range(12)]
    together = decode(native(1), files, (31, 29))
    decoder = native(threads)
    parts = [decode(decoder, files[i : i + split], (31, 29)) for i in range(0, 12, split)]
    assert np.array_equal(together, np.concatenate(parts))


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.97])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_file_is_an_error(keep, progressive):
    file = jpeg(photograph(1, 300, 200), progressive=progressive)
    with pytest.raises(DecodeError, match="sample 1 "):
        decode(native(), [jpeg(photograph(1, 30, 20)), file[: int(len(file) * keep)]], (20, 20))


def test_absurd_sizes_are_refused_before_anything_is_decoded():
    file = bytearray(jpeg(photograph(1, 64, 64)))
    frame = file.index(b"\xff\xc0")
    file[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"  # 65535 x 65535
    with pytest.raises(DecodeError, match="PENSTOCK_MAX_IMAGE_PIXELS"):
        decode(native(), [bytes(file)], (8, 8), windows=[[0, 0, 65535, 65535]])
    with pytest.raises(DecodeError, match="PENSTOCK_MAX_IMAGE_PIXELS"):
        native(most_pixels=100).sizes(encoded([png(photograph(1, 64, 64))]))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_files_never_crash(data):
    file = bytearray(FUZZ_SEEDS[data.draw(st.integers(0, len(FUZZ_SEEDS) - 1))])
    for _ in range(data.draw(st.integers(1, 12))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    batch = encoded([bytes(file)])
    headers = _core.jpeg_headers(batch.data, batch.offsets, batch.lengths)
    out = np.zeros((1, 3, 16, 16), dtype=np.uint8)
    height, width = max(1, int(headers[0, 0])), max(1, int(headers[0, 1]))
    statuses, messages = FUZZ_POOL.decode(
        batch.data, batch.offsets, batch.lengths, np.array([[0, 0, width, height]], dtype=np.float64),
        np.zeros(1, dtype=np.uint8), (16, 16), 0, 0, [1, 1, 1], [0, 0, 0], 1 << 20, out,
    )  # fmt: skip
    assert statuses[0] in (_core.DECODE_OK, _core.DECODE_NOT_JPEG, _core.DECODE_DAMAGED, _core.DECODE_TOO_LARGE)
    assert bool(messages[0]) == (statuses[0] == _core.DECODE_DAMAGED)


FUZZ_SEEDS = [
    jpeg(photograph(1, 40, 30)),
    jpeg(photograph(2, 33, 17), progressive=True, subsampling=1),
    jpeg(photograph(3, 20, 20).convert("CMYK")),
    jpeg(photograph(4, 20, 20).convert("L")),
]
FUZZ_POOL = _core.DecodePool(1) if _core.HAS_JPEG else None


# Random parts and mirroring


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    ids=st.lists(st.integers(0, 10**12), min_size=1, max_size=20),
    seed=st.integers(0, 9),
)
def test_random_windows_lie_inside_and_keep_their_limits(height, width, ids, seed):
    transform = ImageTransform((224, 224), "random", area=(0.1, 0.9), aspect=(0.5, 2))
    sample_ids = np.array(ids, dtype=np.int64)
    sizes = np.tile(np.array([[height, width]], dtype=np.int64), (len(ids), 1))
    windows = transform.windows(sizes, sample_ids, Randomness("hash", seed, 0))
    x, y, w, h = windows.T
    assert (w >= 1).all() and (h >= 1).all() and (x >= 0).all() and (y >= 0).all()
    assert (x + w <= width).all() and (y + h <= height).all()
    alone = [
        transform.windows(sizes[:1], sample_ids[i : i + 1], Randomness("hash", seed, 0))[0] for i in range(len(ids))
    ]
    assert np.array_equal(windows, np.array(alone)), "a sample's window depends on its id alone"


def test_random_windows_spread_as_they_should():
    ids = np.arange(20_000, dtype=np.int64)
    sizes = np.tile(np.array([[400, 400]], dtype=np.int64), (len(ids), 1))
    windows = ImageTransform((8, 8), "random", area=(0.2, 0.6)).windows(sizes, ids, Randomness("h", 1, 2))
    share = windows[:, 2] * windows[:, 3] / 160_000
    assert abs(share.mean() - 0.4) < 0.01 and share.min() > 0.19 and share.max() < 0.61
    aspect = np.log(windows[:, 2] / windows[:, 3])
    assert abs(aspect.mean()) < 0.01 and abs(aspect).max() < np.log(4 / 3) + 0.02
    free = (400 - windows[:, 0] - windows[:, 2]) - windows[:, 0]
    assert abs(free.mean()) < 3, "left and right are alike"
    flips = ImageTransform((8, 8), "random", flip_probability=0.3).flips(ids, Randomness("h", 1, 2))
    assert abs(flips.mean() - 0.3) < 0.015
    other = ImageTransform((8, 8), "random", area=(0.2, 0.6)).windows(sizes, ids, Randomness("h", 1, 3))
    assert (other != windows).any(axis=1).mean() > 0.99, "another epoch, other windows"


def test_a_centre_crop_is_what_resize_and_crop_would_show():
    file = jpeg(photograph(1, 500, 400), subsampling=0)
    transform = ImageTransform((224, 224), "center", 256)
    batch = encoded([file])
    window = transform.windows(native().sizes(batch), batch.sample_ids, Randomness("", 0, 0))
    image = Image.open(io.BytesIO(file)).resize((320, 256), Image.Resampling.BILINEAR)
    cropped = np.asarray(image.crop((48, 16, 272, 240))).transpose(2, 0, 1)
    assert psnr(decode(native(), [file], (224, 224), windows=window)[0], cropped) > 38


# Through the loader


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for index in range(24):
        path = root / "in" / f"class{index % 3}" / f"{index:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(photograph(index, 100 + 5 * index, 150 - 2 * index)))
    penstock.pack_dir(str(root / "in"), out=str(root / "out"))
    return root


def epoch_of(root: Path, **arguments):
    arguments = {"batch_size_samples": 5, "seed": 3, "shuffle": True} | arguments
    with penstock.vision.ImageFolderLoader(
        str(root / "out"), manifest_store_root=str(root / "store"), **arguments
    ) as loader:
        batches = [(images.clone(), labels) for images, labels in loader]
        stats = loader.stats()
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches]), stats


TRAINING = {
    "random_resized_crop_hw": (32, 40),
    "horizontal_flip": 0.5,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.integers(1, 24), prefetch=st.integers(0, 5), threads=st.integers(1, 4))
def test_a_training_pass_is_the_same_whatever_the_knobs(dataset, batch, prefetch, threads):
    base, labels, _ = epoch_of(dataset, **TRAINING)
    os.environ["PENSTOCK_DECODE_THREADS"] = str(threads)
    try:
        again, again_labels, stats = epoch_of(
            dataset, batch_size_samples=batch, prefetch_batches=prefetch, max_inflight_bytes="2MiB", **TRAINING
        )
    finally:
        del os.environ["PENSTOCK_DECODE_THREADS"]
    assert torch.equal(base, again) and torch.equal(labels, again_labels)
    assert stats["ram_high_water_bytes"] <= 2 << 20


def test_both_backends_agree_on_a_training_pass(dataset, monkeypatch):
    ours, labels, _ = epoch_of(dataset, **TRAINING)
    monkeypatch.setenv("MX8_DECODE_BACKEND", "python")
    exact, exact_labels, _ = epoch_of(dataset, **TRAINING)
    assert torch.equal(labels, exact_labels)
    assert (ours - exact).abs().mean() < 0.05
    assert ours.shape == (24, 3, 32, 40)


def test_another_epoch_shows_other_parts(dataset):
    first, _, _ = epoch_of(dataset, shuffle=False, **TRAINING)
    second, _, _ = epoch_of(dataset, shuffle=False, epoch=1, **TRAINING)
    assert (first != second).flatten(1).any(dim=1).sum() == 24


@pytest.mark.parametrize(("dtype", "layout"), [("bfloat16", "NCHW"), ("float32", "NHWC"), ("uint8", "NHWC")])
def test_types_and_layouts_of_tensors(dataset, dtype, layout):
    images, _, _ = epoch_of(dataset, resize_hw=(16, 20), dtype=dtype, layout=layout)
    assert images.dtype == getattr(torch, dtype)
    assert images.shape == ((24, 3, 16, 20) if layout == "NCHW" else (24, 16, 20, 3))
    assert images.is_contiguous()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"resize_hw": (8, 8), "center_crop_hw": (8, 8)}, "exclude one another"),
        ({"shorter_side": 8}, "center_crop_hw"),
        ({"center_crop_hw": (8, 8), "shorter_side": 7}, "shorter_side is 7"),
        ({"random_resized_crop_hw": (8, 8), "crop_area": (0, 1)}, "crop_area"),
        ({"random_resized_crop_hw": (8, 8), "crop_aspect": (2, 1)}, "crop_aspect"),
        ({"horizontal_flip": 1.5}, "horizontal_flip"),
        ({"dtype": "float16"}, "bfloat16"),
        ({"layout": "CHWN"}, "NHWC"),
        ({"mean": (1, 2)}, "three channels"),
        ({"std": (1, 0, 1)}, "std above 0"),
        ({"to_float": False, "mean": (0, 0, 0)}, "dtype float32"),
    ],
)
def test_bad_arguments_name_the_argument_and_the_choices(dataset, arguments, text):
    with pytest.raises(ConfigError, match=text):
        epoch_of(dataset, **arguments)


def test_going_on_shows_the_same_pixels_on_other_ranks(dataset):
    whole, _, _ = epoch_of(dataset, batch_size_samples=4, **TRAINING)
    link, store = str(dataset / "out"), str(dataset / "store")
    again = {"seed": 3, "shuffle": True, "manifest_store_root": store, **TRAINING}
    with penstock.vision.ImageFolderLoader(link, batch_size_samples=4, prefetch_batches=3, **again) as loader:
        next(loader)
        state = loader.state_dict()
    ranks = [
        epoch_of(dataset, batch_size_samples=2, rank=rank, world_size=5, resume=state, **TRAINING)[0]
        for rank in range(5)
    ]
    by_rank = torch.stack(ranks).unflatten(1, (2, 2))  # five ranks, two steps, batches of two
    assert torch.equal(by_rank.transpose(0, 1).flatten(0, 2), whole[4:])


def test_a_picture_that_no_memory_is_left_for_is_not_called_damaged():
    """A progressive picture of 36 Mpixel takes 100 MB inside libjpeg; this child may take 50 MB more than it has."""
    code = (
        "import io, resource, sys\n"
        "import numpy as np\n"
        "from PIL import Image\n"
        "from penstock.errors import DecodeError, PenstockError\n"
        "from penstock.loader.decode import NativeDecoder\n"
        "from tests.decoding import decode\n"
        "out = io.BytesIO()\n"
        "Image.new('RGB', (6000, 6000), 'red').save(out, 'JPEG', progressive=True)\n"
        "decoder = NativeDecoder(1, most_pixels=1 << 27)\n"
        "small = io.BytesIO()\n"
        "Image.new('RGB', (8, 8)).save(small, 'JPEG')\n"
        "decode(decoder, [small.getvalue()], (8, 8))\n"
        "taken = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (taken + (50 << 20), resource.RLIM_INFINITY))\n"
        "try:\n"
        "    decode(decoder, [out.getvalue()], (8, 8))\n"
        "except PenstockError as error:\n"
        "    print(type(error).__name__, error)\n"
        "decode(decoder, [small.getvalue()], (8, 8))\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PenstockError no memory is left to decode sample 0 ")
