"""The contestants of bench/images.py.

A reader has three parts. ``prepare`` brings the photographs into its format, once. ``open`` imports what it needs,
which isn't timed. The ``epoch()`` that it returns is: it yields (images, labels) of each batch.

Everyone has two threads or two worker processes, and no more. Where a loader brings no decoder of its own, it runs
the same function, with OpenCV, so that it is the loaders that differ.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from _image_data import Photographs
from _image_work import AREA, ASPECT, MEAN, SIDE, STD, work
from _streaming import import_streaming

BATCH = 64
WORKERS = int(os.environ.get("BENCH_WORKERS", "2"))  # the measurement of scaling asks for 1
# Of Penstock: two batches with what they are read from, and one that the consumer holds. They have 9.6 and 39 MB.
CAP_BYTES = {"whole": 40 << 20, "crop": 128 << 20}
_SHARD_MB = 64
_SHARDS = 8  # where shards are dealt out to workers
_SEED = 1

Batches = Iterator[tuple[Any, Any]]
Epoch = Callable[[], Batches]


class CannotRun(Exception):
    """A contestant has no way to do a task; the message says why."""


def _nothing(data: Photographs) -> None:
    del data


@dataclass(frozen=True, slots=True)
class Reader:
    """One contestant. ``kind`` is ours, peer or floor; ``reads`` the folder that it reads."""

    title: str
    kind: str
    open: Callable[[Photographs, str], Epoch]
    reads: str = "folder"
    prepare: Callable[[Photographs], object] = _nothing


# -- Penstock


def _pack(data: Photographs) -> Path:
    import penstock

    return data.converted(
        "packed", lambda out: penstock.pack_dir(data.folder, out=out, shard_mb=_SHARD_MB, label_mode="imagefolder")
    )


def _packed(data: Photographs) -> None:
    """Pack, and resolve the link, which every run but a dataset's first finds done."""
    from penstock import load

    with load(str(_pack(data)), manifest_store_root=str(data.root / "manifests"), start_id=0, end_id=1) as loader:
        for _ in loader:
            pass


def penstock(data: Photographs, task: str) -> Epoch:
    import torch  # noqa: F401 - which the loader would import
    from PIL import Image  # noqa: F401

    from penstock import vision

    ways: dict[str, dict[str, Any]] = {
        "whole": {"resize_hw": (SIDE, SIDE), "to_float": False},
        "crop": {
            "random_resized_crop_hw": (SIDE, SIDE),
            "crop_area": AREA,
            "crop_aspect": ASPECT,
            "horizontal_flip": 0.5,
            "mean": MEAN,
            "std": STD,
        },
    }

    def epoch() -> Batches:
        with vision.ImageFolderLoader(
            str(data.root / "packed"),
            manifest_store_root=str(data.root / "manifests"),
            batch_size_samples=BATCH,
            max_inflight_bytes=CAP_BYTES[task],
            prefetch_batches=2,
            shuffle=True,
            seed=_SEED,
            **ways[task],
        ) as loader:
            yield from loader

    return epoch


# -- The floor


def full_decode(data: Photographs, task: str) -> Epoch:
    """What libjpeg-turbo decodes to full-size RGB on two threads, from files that are in memory already."""
    import simplejpeg

    del task  # the floor is that of whole pictures
    files, labels = [path.read_bytes() for path in data.paths], data.labels

    def several(numbers: Sequence[int]) -> list[int]:
        for number in numbers:
            simplejpeg.decode_jpeg(files[number], "RGB")
        return [labels[number] for number in numbers]

    def epoch() -> Batches:
        with ThreadPoolExecutor(WORKERS) as pool:
            for seen in pool.map(several, _batches(range(len(files)))):
                yield None, seen

    return epoch


# -- torch's DataLoader


class _Files:
    """What torch calls a dataset: one photograph by its number."""

    def __init__(self, data: Photographs, codec: str, task: str) -> None:
        self._paths, self._labels = [str(path) for path in data.paths], data.labels
        self._codec, self._task = codec, task
        self._work: Callable[[bytes], Any] | None = None

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        self._work = self._work or work(self._codec, self._task)
        with open(self._paths[index], "rb") as file:
            return self._work(file.read()), self._labels[index]


def torch_loader(data: Photographs, task: str, *, codec: str) -> Epoch:
    import torch
    from torch.utils.data import DataLoader

    work(codec, task)
    torch.set_num_threads(1)
    samples = _Files(data, codec, task)
    return lambda: iter(DataLoader(samples, BATCH, shuffle=True, num_workers=WORKERS))  # type: ignore[arg-type]


def torchvision(data: Photographs, task: str) -> Epoch:
    import torch
    from torch.utils.data import DataLoader

    try:
        from torchvision import datasets, transforms
    except (ImportError, RuntimeError) as error:
        raise CannotRun(f"{error} (its wheel wants torch's CUDA build; Pillow's row does the same)") from error
    torch.set_num_threads(1)
    ways = {
        "whole": [transforms.Resize((SIDE, SIDE)), transforms.PILToTensor()],
        "crop": [
            transforms.RandomResizedCrop(SIDE, AREA, ASPECT),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ],
    }
    samples = datasets.ImageFolder(str(data.folder), transforms.Compose(ways[task]))
    return lambda: iter(DataLoader(samples, BATCH, shuffle=True, num_workers=WORKERS))


# -- Loaders with threads


def grain(data: Photographs, task: str) -> Epoch:
    import grain.python as module

    files = _Files(data, "cv2", task)
    work("cv2", task)

    def epoch() -> Batches:
        samples = module.MapDataset.source(range(len(files))).shuffle(seed=_SEED).map(files.__getitem__)
        options = module.ReadOptions(num_threads=WORKERS, prefetch_buffer_size=2 * BATCH)
        return iter(samples.to_iter_dataset(options).batch(BATCH))

    return epoch


def spdl(data: Photographs, task: str, *, codec: str) -> Epoch:
    """The pipeline that its documents show, an operation a photograph; two run at once."""
    from spdl.pipeline import PipelineBuilder

    files = _Files(data, codec, task)
    work(codec, task)

    def epoch() -> Batches:
        order = list(range(len(files)))
        random.Random(_SEED).shuffle(order)
        builder = PipelineBuilder().add_source(order).pipe(files.__getitem__, concurrency=WORKERS)
        pipeline = builder.aggregate(BATCH).pipe(_stack).add_sink(2).build(num_threads=WORKERS)
        with pipeline.auto_stop():
            yield from pipeline.get_iterator()

    return epoch


def dali(data: Photographs, task: str) -> Epoch:
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=BATCH, num_threads=WORKERS, device_id=None, seed=_SEED)
    def graph() -> Any:
        files, labels = fn.readers.file(
            file_root=str(data.folder), random_shuffle=True, name="files", pad_last_batch=False
        )
        if task == "whole":
            images = fn.decoders.image(files, device="cpu", output_type=types.RGB)
            return fn.resize(images, size=(SIDE, SIDE), antialias=False), labels
        images = fn.decoders.image_random_crop(
            files, device="cpu", output_type=types.RGB, random_area=AREA, random_aspect_ratio=ASPECT
        )
        images = fn.resize(images, size=(SIDE, SIDE), antialias=False)
        return (
            fn.crop_mirror_normalize(
                images,
                dtype=types.FLOAT,
                output_layout="CHW",
                mean=[255 * value for value in MEAN],
                std=[255 * value for value in STD],
                mirror=fn.random.coin_flip(probability=0.5),
            ),
            labels,
        )

    def epoch() -> Batches:
        pipeline = graph()
        pipeline.build()
        left = pipeline.epoch_size("files")
        while left > 0:
            images, labels = pipeline.run()
            count = min(BATCH, left)  # the batch across an epoch's end begins the next one
            yield np.asarray(images.as_tensor())[:count], labels.as_array()[:count, 0]
            left -= count

    return epoch


def mx8(data: Photographs, task: str) -> Epoch:
    import mx8 as module
    import torch  # noqa: F401 - which the loader would import
    from PIL import Image  # noqa: F401

    if task != "whole":
        raise CannotRun("has no RandomResizedCrop")

    def epoch() -> Batches:
        return iter(
            module.image(
                f"{data.root / 'mx8'}@refresh",
                store=str(data.root / "mx8-store"),
                batch=BATCH,
                inflight=CAP_BYTES[task],
                prefetch=2,
                resize=(SIDE, SIDE),
                float_out=False,
                seed=_SEED,
            )
        )

    return epoch


def _mx8_packed(data: Photographs) -> None:
    import mx8 as module

    out = data.root / "mx8"  # its manifest holds absolute paths: a folder that is packed elsewhere can't be renamed
    if not (out / "_mx8" / "manifest.tsv").exists():
        module.pack_dir(str(data.folder), out=str(out), label_mode="imagefolder", require_labels=True)


# -- Formats of their own, behind torch's DataLoader or their own


def webdataset(data: Photographs, task: str) -> Epoch:
    import torch
    import webdataset as module

    torch.set_num_threads(1)
    decode = work("cv2", task)
    urls = [str(path) for path in sorted((data.root / "webdataset").iterdir())]

    def epoch() -> Batches:
        samples = module.WebDataset(urls, shardshuffle=len(urls)).shuffle(1000).to_tuple("jpg", "cls")
        batches = samples.map_tuple(decode, int).batched(BATCH, partial=True)
        return iter(module.WebLoader(batches, batch_size=None, num_workers=WORKERS))

    return epoch


def _webdataset_shards(data: Photographs) -> None:
    import webdataset as module

    def convert(out: Path) -> None:
        out.mkdir()
        pairs = _shuffled(data)
        with module.ShardWriter(f"{out}/%05d.tar", maxcount=-(-len(pairs) // _SHARDS), verbose=0) as writer:
            for path, label in pairs:
                writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": str(label).encode()})

    data.converted("webdataset", convert)


def streaming(data: Photographs, task: str) -> Epoch:
    module = import_streaming()
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    decode = work("cv2", task)

    class Samples(module.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: int) -> tuple[Any, int]:
            row = super().__getitem__(at)
            return decode(row["image"]), row["label"]

    def epoch() -> Batches:
        module.base.util.clean_stale_shared_memory()
        samples = Samples(local=str(data.root / "streaming"), shuffle=True, batch_size=BATCH)
        return iter(DataLoader(samples, BATCH, num_workers=WORKERS))

    return epoch


def _streaming_shards(data: Photographs) -> None:
    module = import_streaming()

    def convert(out: Path) -> None:
        columns = {"image": "bytes", "label": "int"}
        with module.MDSWriter(out=str(out), columns=columns, size_limit=_SHARD_MB << 20) as writer:
            for path, label in zip(data.paths, data.labels, strict=True):
                writer.write({"image": path.read_bytes(), "label": label})

    data.converted("streaming", convert)


def litdata(data: Photographs, task: str) -> Epoch:
    import litdata as module
    import torch

    torch.set_num_threads(1)
    decode = work("cv2", task)

    class Samples(module.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> tuple[Any, int]:
            image, label = super().__getitem__(index)
            return decode(bytes(image)), int(label)

    def epoch() -> Batches:
        samples = Samples(str(data.root / "litdata"), shuffle=True)
        return iter(module.StreamingDataLoader(samples, batch_size=BATCH, num_workers=WORKERS))

    return epoch


def _litdata_chunks(data: Photographs) -> None:
    import litdata as module

    def convert(out: Path) -> None:
        samples = [(str(path), label) for path, label in zip(data.paths, data.labels, strict=True)]
        module.optimize(fn=_litdata_sample, inputs=samples, output_dir=str(out), num_workers=1, chunk_bytes="64MB")

    data.converted("litdata", convert)


def _litdata_sample(sample: tuple[str, int]) -> tuple[bytes, int]:
    return Path(sample[0]).read_bytes(), sample[1]


def ffcv(data: Photographs, task: str) -> Epoch:
    del data, task
    try:
        import ffcv as module
    except ImportError as error:
        raise CannotRun(f"{error} (its package compiles against OpenCV's C++ headers, which wheels lack)") from error
    raise CannotRun(f"{module.__name__} is installed, which was not foreseen: its pipeline is still to be written")


# -- helpers


def _batches(numbers: Sequence[int]) -> list[Sequence[int]]:
    return [numbers[start : start + BATCH] for start in range(0, len(numbers), BATCH)]


def _shuffled(data: Photographs) -> list[tuple[Path, int]]:
    pairs = list(zip(data.paths, data.labels, strict=True))
    random.Random(_SEED).shuffle(pairs)
    return pairs


def _stack(samples: Iterable[tuple[Any, int]]) -> tuple[Any, Any]:
    images, labels = itertools.tee(samples)
    return np.stack([image for image, _ in images]), np.array([label for _, label in labels])


def _torch(codec: str) -> Callable[[Photographs, str], Epoch]:
    return functools.partial(torch_loader, codec=codec)


READERS = {
    "penstock": Reader("penstock", "ours", penstock, "packed", _packed),
    "floor": Reader("libjpeg-turbo to full-size RGB, no resize", "floor", full_decode),
    "torch-simplejpeg": Reader("torch DataLoader, simplejpeg + OpenCV", "peer", _torch("simplejpeg")),
    "torch-cv2": Reader("torch DataLoader, OpenCV", "peer", _torch("cv2")),
    "torch-pillow": Reader("torch DataLoader, Pillow", "peer", _torch("pillow")),
    "torchvision": Reader("torch DataLoader, torchvision", "peer", torchvision),
    "grain": Reader("Grain, OpenCV", "peer", grain),
    "spdl": Reader("SPDL, OpenCV", "peer", functools.partial(spdl, codec="cv2")),
    "dali": Reader("DALI on the CPU", "peer", dali),
    "webdataset": Reader("WebDataset, OpenCV", "peer", webdataset, "webdataset", _webdataset_shards),
    "streaming": Reader("MosaicML Streaming, OpenCV", "peer", streaming, "streaming", _streaming_shards),
    "litdata": Reader("LitData, OpenCV", "peer", litdata, "litdata", _litdata_chunks),
    "ffcv": Reader("FFCV", "peer", ffcv),
    "mx8": Reader("mx8.image", "peer", mx8, "mx8", _mx8_packed),
}
