"""Programs written for MX8 and s3dlio run with only their import line changed.

The calls of their guides, in our own words; and, where a folder of the guides themselves is at hand
(``PENSTOCK_GUIDES``, or ``../shared/guides`` beside this checkout), each of their Python blocks verbatim.
"""

import asyncio
import os
import re
from pathlib import Path

import pytest

pytest.importorskip("torch")
from PIL import Image

from penstock.compat import mx8, s3dlio
from penstock.store import open_store
from small_coordinator import SmallCoordinator

CHECKOUT = Path(__file__).parents[2]
GUIDES = Path(os.environ.get("PENSTOCK_GUIDES") or CHECKOUT.parent / "shared" / "guides")


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MX8_MANIFEST_STORE_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("PENSTOCK_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path):
    """Nine pictures of one size in two classes, each of its own colour."""
    folder = tmp_path / "photos"
    for number in range(9):
        path = folder / ("cat" if number < 4 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 30), (number * 20, 100, 200)).save(path)
    return folder


@pytest.fixture
def photos_in_s3(photos, s3_root):
    """The same pictures as objects below ``files``, and packed from there."""
    raw = f"{s3_root}/files"
    store = open_store(raw)
    for path in sorted(photos.rglob("*.png")):
        store.put(str(path.relative_to(photos)), path.read_bytes())
    mx8.pack(raw, out=f"{s3_root}/mx8/train", shard_mb=512, label_mode="imagefolder")
    return f"{s3_root}/mx8/train/"


def test_quickstart_packs_a_folder_and_trains_from_it(photos, tmp_path):
    out = str(tmp_path / "packed")
    mx8.pack_dir(str(photos), out=out, shard_mb=512, label_mode="imagefolder", require_labels=True)
    loader = mx8.vision.ImageFolderLoader(
        f"{out}@refresh", batch_size_samples=64, max_inflight_bytes=256 * 1024 * 1024, resize_hw=(224, 224)
    )
    assert loader.classes == ["cat", "dog"]
    batches = list(loader)
    assert [tuple(images.shape) for images, _ in batches] == [(9, 3, 224, 224)]
    assert batches[0][1].tolist() == [0] * 4 + [1] * 5


def test_high_water_marks_can_be_printed_while_training(photos, tmp_path):
    out = str(tmp_path / "packed")
    mx8.pack_dir(str(photos), out=out, label_mode="imagefolder", require_labels=True)
    cap = 256 * 1024 * 1024
    loader = mx8.vision.ImageFolderLoader(
        f"{out}@refresh",
        batch_size_samples=4,
        max_inflight_bytes=cap,
        max_queue_batches=8,
        prefetch_batches=4,
        resize_hw=(32, 32),
    )
    delivered = 0
    for _, labels in loader:
        delivered += len(labels)
        stats = loader.stats()
        assert 0 < stats["ram_high_water_bytes"] <= cap
        assert stats["delivered_samples_total"] == delivered
    assert delivered == 9


def test_bytes_are_loaded_from_a_listed_prefix(photos_in_s3, photos, s3_root):
    loader = mx8.load(
        f"{s3_root}/files@refresh",
        batch_size_samples=512,
        max_inflight_bytes=128 * 1024 * 1024,
        max_queue_batches=64,
        prefetch_batches=1,
    )
    (batch,) = loader
    assert isinstance(batch, mx8.PyBatch)
    assert batch.sample_ids == list(range(9))
    originals = [path.read_bytes() for path in sorted(photos.rglob("*.png"))]
    pairs = zip(batch.offsets[:-1], batch.offsets[1:], strict=True)
    assert [batch.payload[start:end] for start, end in pairs] == originals
    payload, offsets, sample_ids, labels = batch.to_torch_with_labels()
    assert (len(payload), len(offsets), len(sample_ids)) == (len(batch.payload), 10, 9)
    assert labels.tolist() == batch.label_ids == [0] * 4 + [1] * 5


def test_images_are_loaded_from_a_packed_prefix(photos_in_s3):
    loader = mx8.vision.ImageFolderLoader(
        f"{photos_in_s3}@refresh", batch_size_samples=64, resize_hw=(224, 224), max_inflight_bytes=256 * 1024 * 1024
    )
    assert loader.classes == ["cat", "dog"]
    ((images, labels),) = loader
    assert tuple(images.shape) == (9, 3, 224, 224)
    assert labels.tolist() == [0] * 4 + [1] * 5


def test_a_hash_is_the_same_for_the_packer_and_for_whoever_resolves(photos, tmp_path):
    out = str(tmp_path / "packed")
    packed = mx8.pack_dir(str(photos), out=out)
    assert mx8.resolve_manifest_hash(f"{out}@refresh", node_id="node1") == packed["manifest_hash"]
    assert mx8.resolve_manifest_hash(f"{out}@sha256:{packed['manifest_hash']}") == packed["manifest_hash"]


@pytest.fixture
def coordinator(photos, tmp_path):
    """Of a job over the packed photos, for one node."""
    packed = mx8.pack_dir(str(photos), out=str(tmp_path / "shared"))
    assert packed["samples"] == 9
    with SmallCoordinator(tmp_path / "shared", tmp_path / "coordinator-root", block_samples=4) as running:
        yield running


def test_the_distributed_loader_of_the_guide(coordinator):
    loader = mx8.DistributedDataLoader(coord_url=coordinator.url, job_id="demo", node_id="node1", want=2)
    assert (loader.assigned_rank, loader.world_size) == (0, 1)
    assert sorted(sample for batch in loader for sample in batch.to_torch()[2].tolist()) == list(range(9))
    assert loader.stats()["delivered_samples_total"] == 9
    loader.close()
    loader.close()


def blocks(name):
    """The Python blocks of a guide, by line number."""
    guide = GUIDES / name
    if not guide.is_file():
        return []
    text = guide.read_text()
    found = re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start()].count("\n") + 1, match[1]) for match in found]


def adapted(block, photos, packed, prefix, coord_url="http://127.0.0.1:50051"):
    """A block with its import line changed and its placeholders filled in."""
    changes = {
        "import mx8": "from penstock.compat import mx8",
        "http://127.0.0.1:50051": coord_url,
        "import s3dlio": "from penstock.compat import s3dlio",
        "/path/to/imagefolder": str(photos),
        "/path/to/mx8-dataset": str(packed),
        "s3://bucket/mx8/train/": prefix,
        "s3://bucket/prefix": prefix,
        "pack_dir(...,": f"pack_dir({str(photos)!r}, out={str(packed)!r},",
    }
    for old, new in changes.items():
        block = block.replace(old, new)
    return block


@pytest.mark.skipif(not GUIDES.is_dir(), reason="no folder of guides; set PENSTOCK_GUIDES")
@pytest.mark.parametrize("name", ["mx8-python-api.md", "mx8-readme.md"])
def test_every_block_of_the_guides_runs(name, photos, photos_in_s3, tmp_path, coordinator):
    found = blocks(name)
    assert len(found) >= 3
    names = {}
    for line, block in found:
        text = adapted(block, photos, tmp_path / "packed", photos_in_s3, coordinator.url)
        exec(compile(text, f"{name}:{line}", "exec"), names)
    assert "loader" in names


@pytest.fixture
def plain_files(tmp_path):
    """A folder of 300 files, as a URI, and their bytes in order."""
    folder = tmp_path / "plain"
    folder.mkdir()
    samples = [f"sample {number}".encode() for number in range(300)]
    for number, data in enumerate(samples):
        (folder / f"{number:03d}.bin").write_bytes(data)
    return f"file://{folder}", samples


def loaded(uri, opts):
    async def collect():
        return [batch async for batch in s3dlio.create_async_loader(uri, opts)]

    return asyncio.run(collect())


def test_the_options_that_s3dlio_shows_beside_torchs(plain_files):
    uri, samples = plain_files
    opts = (
        s3dlio.PyLoaderOptions()
        .with_batch_size(128)
        .shuffle(True, 42)
        .num_workers(2)
        .pin_memory(False)
        .persistent_workers(True)
        .with_timeout(30.0)
        .use_spawn()
        .drop_last(True)
    )
    batches = loaded(uri, opts)
    assert [len(batch) for batch in batches] == [128, 128]
    assert set(batches[0]) < set(samples)


def test_s3dlios_debug_mode_loads(plain_files):
    uri, samples = plain_files
    batches = loaded(uri, s3dlio.PyLoaderOptions().debug_mode().with_batch_size(4))
    assert [sample for batch in batches for sample in batch] == samples


def test_s3dlios_distributed_options_share_a_dataset(plain_files, s3_root):
    _, samples = plain_files
    store = open_store(f"{s3_root}/plain")
    for number, data in enumerate(samples):
        store.put(f"{number:03d}.bin", data)
    found = []
    for rank in range(8):
        opts = s3dlio.PyLoaderOptions().distributed_sampling(rank=rank, world_size=8).with_generator_seed(12345)
        found += [sample for batch in loaded(f"{s3_root}/plain", opts) for sample in batch]
    assert sorted(found) == sorted(samples)


@pytest.mark.skipif(not GUIDES.is_dir(), reason="no folder of guides; set PENSTOCK_GUIDES")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
def test_every_block_of_s3dlios_guide_runs(photos, plain_files):
    import torch

    uri, samples = plain_files
    names = {"torch": torch, "dataset": s3dlio.ObjectStoreMapDataset(uri)}
    found = blocks("s3dlio-loader-options.md")
    assert len(found) == 3
    options = []
    for line, block in found:
        code = compile(adapted(block, photos, uri, uri), f"s3dlio-loader-options.md:{line}", "exec")
        exec(code, names)
        options.append(names["opts"])
    assert len(names["dataloader"]) == 300 // 128
    assert options[0].timeout_seconds == 10.0  # debug mode, the last of three
    batches = loaded(uri, options[0])
    assert [sample for batch in batches for sample in batch] == samples
    assert (options[-1].batch_size, options[-1].seed, options[-1].num_workers, options[-1].drop_last) == (128, 42, 8, 1)
