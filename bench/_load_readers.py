"""The contestants of bench/load.py.

A reader is a function ``(dataset, shuffled) -> epoch``. What it does itself, importing, isn't timed; ``epoch()`` is,
and yields what was seen of each batch. Every reader touches every sample: its length and its first byte.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from _common import prewarm
from _load_data import Dataset, Seen
from _streaming import import_streaming

BATCH_SAMPLES = 512
WORKERS = 2
_SHUFFLE_BUFFER = 1000  # WebDataset's own default in its examples

Epoch = Callable[[], Iterator[Seen]]


@dataclass(frozen=True, slots=True)
class Reader:
    """One contestant. ``kind`` is ours, peer or floor."""

    title: str
    kind: str
    open: Callable[[Dataset, bool], Epoch]
    shuffles: bool = True


def touch(samples: Sequence[Any]) -> Seen:
    return Seen(len(samples), sum(map(len, samples)), sum(sample[0] for sample in samples))


def touch_one_by_one(samples: Iterable[bytes]) -> Seen:
    count = size = first_bytes = 0
    for sample in samples:
        count += 1
        size += len(sample)
        first_bytes += sample[0]
    return Seen(count, size, first_bytes)


def penstock_arrays(data: Dataset, shuffled: bool, *, prefetch_batches: int) -> Epoch:
    """Batches as they come: one array of bytes and one of offsets."""
    from penstock import load

    def epoch() -> Iterator[Seen]:
        with load(
            str(data.packed),
            manifest_store_root=str(data.store),
            batch_size_samples=BATCH_SAMPLES,
            prefetch_batches=prefetch_batches,
            shuffle=shuffled,
        ) as loader:
            for batch in loader:
                starts = batch.offsets_array[:-1]
                yield Seen(len(batch), batch.payload_bytes, int(batch.array()[starts].sum(dtype=np.int64)))

    return epoch


def penstock_samples(data: Dataset, shuffled: bool) -> Epoch:
    """Each sample as an object of its own, as the peers hand them out: a view, without a copy."""
    from penstock import load

    def epoch() -> Iterator[Seen]:
        with load(
            str(data.packed),
            manifest_store_root=str(data.store),
            batch_size_samples=BATCH_SAMPLES,
            prefetch_batches=WORKERS,
            shuffle=shuffled,
        ) as loader:
            for batch in loader:
                yield touch(list(batch))

    return epoch


def pread(data: Dataset, shuffled: bool, *, keep: bool) -> Epoch:
    """One thread, one system call and one bytes object a sample, from lists that are in memory already.

    With ``keep`` the samples of a batch are kept until it is whole, as a batch is; without, each is dropped at once,
    and the next one comes to lie in memory that is still in the processor's cache.
    """
    index = data.index()
    count = len(index.length)
    order = np.random.default_rng(0).permutation(count).tolist() if shuffled else list(range(count))
    shards, offsets, lengths = index.shard.tolist(), index.offset.tolist(), index.length.tolist()

    def read(batch: list[int], fds: list[int]) -> Iterator[bytes]:
        return (os.pread(fds[shards[i]], lengths[i], offsets[i]) for i in batch)

    def epoch() -> Iterator[Seen]:
        fds = [os.open(path, os.O_RDONLY) for path in data.shards]
        for start in range(0, count, BATCH_SAMPLES):
            samples = read(order[start : start + BATCH_SAMPLES], fds)
            yield touch(list(samples)) if keep else touch_one_by_one(samples)
        for fd in fds:
            os.close(fd)

    return epoch


def sequential_read(data: Dataset, shuffled: bool) -> Epoch:
    """The shards from end to end in pieces of 4 MiB; samples aren't told apart."""
    del shuffled

    def epoch() -> Iterator[Seen]:
        prewarm(data.shards)
        yield data.whole

    return epoch


def webdataset(data: Dataset, shuffled: bool, *, workers: int) -> Epoch:
    import webdataset as wds

    urls = [str(path) for path in data.shards]

    def epoch() -> Iterator[Seen]:
        samples = wds.WebDataset(urls, shardshuffle=len(urls) if shuffled else False)
        if shuffled:
            samples = samples.shuffle(_SHUFFLE_BUFFER)
        batches = samples.to_tuple("bin").batched(BATCH_SAMPLES, partial=True)
        for (batch,) in wds.WebLoader(batches, batch_size=None, num_workers=workers):
            yield touch(batch)

    return epoch


def streaming(data: Dataset, shuffled: bool, *, workers: int) -> Epoch:
    module = import_streaming()
    from torch.utils.data import DataLoader

    def epoch() -> Iterator[Seen]:
        samples = module.StreamingDataset(local=str(data.mds), shuffle=shuffled, batch_size=BATCH_SAMPLES)
        for batch in DataLoader(samples, BATCH_SAMPLES, num_workers=workers, collate_fn=_samples_of):
            yield touch(batch)

    return epoch


def _samples_of(rows: list[dict[str, bytes]]) -> list[bytes]:
    return [row["sample"] for row in rows]


def mx8(data: Dataset, shuffled: bool) -> Epoch:
    import mx8 as module

    del shuffled

    def epoch() -> Iterator[Seen]:
        loader = module.load(
            f"{data.packed.resolve()}@refresh",
            store=str(data.folder / "mx8-store"),
            manifest=str(data.mx8_manifest),
            batch=BATCH_SAMPLES,
            prefetch=WORKERS,
        )
        for batch in loader:
            payload, offsets = batch.payload, batch.offsets
            yield Seen(len(offsets) - 1, len(payload), sum(payload[start] for start in offsets[:-1]))

    return epoch


READERS = {
    "penstock": Reader("penstock.load", "ours", functools.partial(penstock_arrays, prefetch_batches=WORKERS)),
    "penstock-defaults": Reader(
        "penstock.load, one builder", "ours", functools.partial(penstock_arrays, prefetch_batches=1)
    ),
    "penstock-samples": Reader("penstock.load, one view a sample", "ours", penstock_samples),
    "pread": Reader("pread per sample, known index", "floor", functools.partial(pread, keep=False)),
    "pread-batches": Reader("pread per sample, batch kept", "floor", functools.partial(pread, keep=True)),
    "sequential": Reader("read() of the shards, 4 MiB", "floor", sequential_read, shuffles=False),
    "webdataset": Reader(f"WebDataset, {WORKERS} workers", "peer", functools.partial(webdataset, workers=WORKERS)),
    "webdataset-here": Reader("WebDataset, in process", "peer", functools.partial(webdataset, workers=0)),
    "streaming": Reader(
        f"MosaicML Streaming, {WORKERS} workers", "peer", functools.partial(streaming, workers=WORKERS)
    ),
    "streaming-here": Reader("MosaicML Streaming, in process", "peer", functools.partial(streaming, workers=0)),
    "mx8": Reader("mx8.load", "peer", mx8, shuffles=False),
}
