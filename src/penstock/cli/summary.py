"""What ``penstock inspect`` tells about a dataset, computed a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from penstock.dataset.labels import read_labels
from penstock.dataset.manifest import Manifest
from penstock.dataset.resolve import Resolved
from penstock.errors import ObjectNotFound
from penstock.store import open_store

__all__ = ["Bin", "Example", "LabelCount", "Summary", "location_of", "summarise"]

_ROWS: Final = 1 << 18  # rows looked at together: a few MiB of temporary arrays
_MOST_LABELS: Final = 1 << 20
_EDGES: Final = np.array([0, *(1 << power for power in range(63))], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Bin:
    """Samples of ``start_bytes`` up to, but not including, ``end_bytes``."""

    start_bytes: int
    end_bytes: int
    samples: int


@dataclass(frozen=True, slots=True)
class LabelCount:
    """Samples with one label; ``name`` is None where the dataset has no labels file."""

    label_id: int
    name: str | None
    samples: int


@dataclass(frozen=True, slots=True)
class Example:
    """One sample; -1 stands for what the manifest doesn't say."""

    sample_id: int
    location: str
    offset: int
    length: int
    label_id: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class Summary:
    """A dataset in numbers; sizes in bytes, counts in samples.

    ``label_count`` counts the labels that occur; ``labels`` are the first of them.
    """

    base: str
    hash: str
    version: int
    samples: int
    locations: int
    sized: int
    checked: int
    labelled: int
    total_bytes: int
    least_bytes: int
    most_bytes: int
    histogram: list[Bin]
    label_count: int
    labels: list[LabelCount]
    examples: list[Example]


def summarise(resolved: Resolved, *, most_labels: int, examples: int) -> Summary:
    """Look at every row of a dataset's manifest; the payload isn't touched.

    Args:
        resolved: the dataset.
        most_labels: how many labels to count one by one.
        examples: how many samples to show, spread over the dataset.
    """
    manifest = resolved.manifest
    total = most = 0
    least = np.iinfo(np.int64).max
    bins = np.zeros(len(_EDGES), dtype=np.int64)
    label_counts = np.zeros(_MOST_LABELS, dtype=np.int64)
    for lengths, labels in _windows(manifest):
        known = lengths[lengths >= 0]
        if known.size:
            total += int(known.sum())
            least, most = min(least, int(known.min())), max(most, int(known.max()))
            bins += np.bincount(np.searchsorted(_EDGES, known, side="right") - 1, minlength=len(_EDGES))
        given = labels[(labels >= 0) & (labels < _MOST_LABELS)]
        counted = np.bincount(given)
        label_counts[: len(counted)] += counted
    present = np.flatnonzero(label_counts)
    names = _label_names(resolved.base) if present.size else None
    return Summary(
        base=resolved.base,
        hash=resolved.hash,
        version=manifest.version,
        samples=manifest.row_count,
        locations=manifest.location_count,
        sized=manifest.sized_count,
        checked=manifest.checked_count,
        labelled=manifest.labelled_count,
        total_bytes=total,
        least_bytes=int(least) if manifest.sized_count else 0,
        most_bytes=most,
        histogram=_bins(bins),
        label_count=len(present),
        labels=[_label_count(int(label), names, label_counts) for label in present[:most_labels]],
        examples=_examples(resolved, examples),
    )


def location_of(resolved: Resolved, sample_id: int) -> str:
    """The full location of a sample."""
    return resolved.location(int(resolved.manifest.location_index[sample_id]))


def _windows(manifest: Manifest) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    for start in range(0, manifest.row_count, _ROWS):
        rows = slice(start, start + _ROWS)
        yield manifest.length[rows], manifest.label_id[rows]


def _bins(counts: npt.NDArray[np.int64]) -> list[Bin]:
    """From the first bin that holds something to the last."""
    filled = np.flatnonzero(counts)
    if not filled.size:
        return []
    inside = range(int(filled[0]), int(filled[-1]) + 1)
    ends = [*_EDGES[1:].tolist(), np.iinfo(np.int64).max]
    return [Bin(int(_EDGES[number]), int(ends[number]), int(counts[number])) for number in inside]


def _label_count(label_id: int, names: list[str] | None, counts: npt.NDArray[np.int64]) -> LabelCount:
    name = names[label_id] if names is not None and label_id < len(names) else None
    return LabelCount(label_id, name, int(counts[label_id]))


def _label_names(base: str) -> list[str] | None:
    try:
        return read_labels(open_store(base).read("_mx8/labels.tsv"))
    except ObjectNotFound:
        return None


def _examples(resolved: Resolved, count: int) -> list[Example]:
    manifest = resolved.manifest
    last = manifest.row_count - 1
    ids = sorted({round(last * step / max(count - 1, 1)) for step in range(count)}) if last >= 0 else []
    return [
        Example(
            sample_id,
            location_of(resolved, sample_id),
            int(manifest.offset[sample_id]),
            int(manifest.length[sample_id]),
            int(manifest.label_id[sample_id]),
            int(manifest.crc32c[sample_id]),
        )
        for sample_id in ids
    ]
