"""The samples of bench/load.py, in each contestant's own format.

Sizes are 4 to 100 KiB, most of them small (4 KiB + 96 KiB x Beta(1, 5), 20 KiB on average), contents random, so that
nothing compresses. The tar shards that penstock packs are read by most contestants as they are; Streaming gets the
same samples in its own shards. 100,000 samples take 2 GB; at no time does all of this take more than 5 GB of disk.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from _common import OUT, files_below, say

SHARD_MB = 64  # the default of MosaicML Streaming; two workers need several shards
_LEAST_BYTES, _MOST_BYTES = 4 << 10, 100 << 10
_SEED = 20261122
_FOLDER_SAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Seen:
    """What somebody saw of samples: enough to notice one that is missing, repeated, cut short or torn."""

    samples: int = 0
    bytes: int = 0
    first_bytes: int = 0  # the first byte of each, summed

    def __add__(self, other: Seen) -> Seen:
        return Seen(self.samples + other.samples, self.bytes + other.bytes, self.first_bytes + other.first_bytes)


@dataclass(frozen=True, slots=True)
class Index:
    """Where each sample lies; what a plain pread is told."""

    shard: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]


class Dataset:
    """One folder with the samples in all formats."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.packed = folder / "packed"
        self.store = folder / "manifests"
        self.mx8_manifest = folder / "mx8.tsv"
        self.mds = folder / "mds"
        self._facts = folder / "facts.json"

    @property
    def whole(self) -> Seen:
        """What one sees in an epoch."""
        return Seen(**json.loads(self._facts.read_text()))

    @property
    def shards(self) -> list[Path]:
        return files_below(self.packed / "shards")

    @property
    def ready(self) -> bool:
        return self._facts.exists()

    def index(self) -> Index:
        found = np.load(self.folder / "index.npy")
        return Index(*found)

    def make(self, samples: int) -> None:
        """Write everything; what a former, interrupted call left is thrown away."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        whole = self._pack(samples)
        self._write_index()
        self._write_mds()
        self._facts.write_text(json.dumps(asdict(whole)))

    def _pack(self, samples: int) -> Seen:
        import penstock

        say(f"writing {samples} samples ...")
        tree = self.folder / "tree"
        whole = _write_tree(tree, samples)
        say("packing ...")
        penstock.pack_dir(tree, out=self.packed, shard_mb=SHARD_MB, label_mode="none")
        shutil.rmtree(tree)
        with penstock.load(str(self.packed), manifest_store_root=str(self.store), start_id=0, end_id=1) as loader:
            for _ in loader:  # the link is resolved now, as it is on every run but a dataset's first
                pass
        return whole

    def _write_index(self) -> None:
        """Read the places of the samples out of the manifest, for pread and for mx8."""
        shard_of = {f"shards/{path.name}": number for number, path in enumerate(self.shards)}
        lines = (self.packed / "_mx8" / "manifest.tsv").read_text().splitlines()[1:]
        rows = [line.split("\t") for line in lines]
        places = [(shard_of[location], int(offset), int(length)) for _, location, offset, length, *_ in rows]
        np.save(self.folder / "index.npy", np.array(places, dtype=np.int64).T)
        with self.mx8_manifest.open("w") as manifest:
            for sample, (shard, offset, length) in enumerate(places):
                manifest.write(f"{sample}\t{self.shards[shard].resolve()}\t{offset}\t{length}\t\n")

    def _write_mds(self) -> None:
        from _streaming import import_streaming

        try:
            streaming = import_streaming()
        except ImportError as error:
            say(f"no samples for Streaming: {error}")
            return
        say("converting for Streaming ...")
        with streaming.MDSWriter(out=str(self.mds), columns={"sample": "bytes"}, size_limit=SHARD_MB << 20) as writer:
            for sample in self._samples():
                writer.write({"sample": sample})

    def _samples(self) -> Iterator[bytes]:
        index = self.index()
        for number, path in enumerate(self.shards):
            data = path.read_bytes()
            for row in np.flatnonzero(index.shard == number).tolist():
                yield data[index.offset[row] : index.offset[row] + index.length[row]]


def dataset(samples: int) -> Dataset:
    """The dataset with so many samples, made when it isn't there."""
    found = Dataset(OUT / f"load-{samples}")
    if not found.ready:
        found.make(samples)
    return found


def _write_tree(tree: Path, samples: int) -> Seen:
    random = np.random.default_rng(_SEED)
    lengths = _LEAST_BYTES + ((_MOST_BYTES - _LEAST_BYTES) * random.beta(1, 5, samples)).astype(np.int64)
    first_bytes = 0
    for number, length in enumerate(lengths.tolist()):
        folder = tree / f"{number // _FOLDER_SAMPLES:04d}"
        if number % _FOLDER_SAMPLES == 0:
            folder.mkdir(parents=True)
        data = random.bytes(length)
        first_bytes += data[0]
        (folder / f"{number:07d}.bin").write_bytes(data)
    return Seen(samples, int(lengths.sum()), first_bytes)
