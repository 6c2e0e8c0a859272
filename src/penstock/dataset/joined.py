"""Several datasets as one: sample ids of each follow those of the one before it, and no column is copied."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from penstock.dataset.labels import read_labels
from penstock.dataset.manifest import Manifest
from penstock.dataset.resolve import Resolved
from penstock.errors import ConfigError, ObjectNotFound
from penstock.store import open_store

__all__ = [
    "Column",
    "Dataset",
    "Joined",
    "LabelSets",
    "Samples",
    "Source",
    "grouped",
    "join",
    "label_names",
    "sources_of",
]

Int64Array: TypeAlias = npt.NDArray[np.int64]
LabelSets: TypeAlias = Literal["same", "own", "none"]


class Column(Protocol):
    """One number for each sample; read by rows."""

    def __getitem__(self, rows: Any, /) -> Any:
        """The numbers of these rows, a slice or an int64 array, in their order."""


class Samples(Protocol):
    """What loaders ask of a manifest; see there."""

    @property
    def hash(self) -> str: ...  # noqa: D102
    @property
    def row_count(self) -> int: ...  # noqa: D102
    @property
    def location_index(self) -> Column: ...  # noqa: D102
    @property
    def offset(self) -> Column: ...  # noqa: D102
    @property
    def length(self) -> Column: ...  # noqa: D102
    @property
    def label_id(self) -> Column: ...  # noqa: D102
    @property
    def crc32c(self) -> Column: ...  # noqa: D102


class Dataset(Protocol):
    """What loaders ask of a resolved link, or of several that are joined; see ``Resolved``."""

    @property
    def manifest(self) -> Samples: ...  # noqa: D102
    @property
    def base(self) -> str: ...  # noqa: D102
    @property
    def hash(self) -> str: ...  # noqa: D102
    def location(self, index: int) -> str: ...  # noqa: D102
    def owner(self, index: int) -> tuple[Resolved, int]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Source:
    """One dataset among those that are joined.

    Attributes:
        name: as its user calls it.
        first_id: of its samples, among all; they follow one another.
        count: of its samples.
        manifest_hash: its own.
        base: where it lies.
    """

    name: str
    first_id: int
    count: int
    manifest_hash: str
    base: str


def join(names: Sequence[str], datasets: Sequence[Resolved], labels: LabelSets) -> Joined:
    """Join datasets.

    Args:
        names: of the datasets.
        datasets: at least one.
        labels: ``same``: all have the same labels, or none has any; ``own``: ids are each dataset's own; ``none``:
            as if there were none.

    Raises:
        ConfigError: a dataset has labels and another hasn't, or others.
        StoreError, ManifestError: labels can't be read.
    """
    if labels != "none":
        _check_all_labelled(names, datasets)
        if labels == "same" and datasets[0].manifest.labelled_count:
            _check_same_labels(names, datasets)
    return Joined(names, datasets, labels)


class Joined:
    """Joined datasets, as a ``Dataset`` and as the ``Samples`` of it."""

    def __init__(self, names: Sequence[str], datasets: Sequence[Resolved], labels: LabelSets) -> None:
        self.datasets, self.labels = tuple(datasets), labels
        manifests = [dataset.manifest for dataset in datasets]
        counts = [manifest.row_count for manifest in manifests]
        location_counts = [manifest.location_count for manifest in manifests]
        self._first_locations = np.cumsum([0, *location_counts])[:-1]
        hashes = "\n".join(dataset.hash for dataset in datasets)
        self.hash = hashlib.sha256(f"penstock joined\n{hashes}".encode()).hexdigest()
        self.base = " + ".join(dataset.base for dataset in datasets)
        self.row_count = sum(counts)
        firsts = np.cumsum([0, *counts])[:-1]
        self.sources = tuple(
            Source(name, int(first), count, dataset.hash, dataset.base)
            for name, first, count, dataset in zip(names, firsts, counts, datasets, strict=True)
        )
        rows = _Rows(firsts)
        self.location_index = _JoinedColumn(rows, [m.location_index for m in manifests], self._first_locations)
        self.offset = _JoinedColumn(rows, [m.offset for m in manifests])
        self.length = _JoinedColumn(rows, [m.length for m in manifests])
        self.crc32c = _JoinedColumn(rows, [m.crc32c for m in manifests])
        self.label_id: Column = _JoinedColumn(rows, [m.label_id for m in manifests]) if labels != "none" else _Absent()
        self._rows = rows

    @property
    def manifest(self) -> Joined:
        """Itself."""
        return self

    def location(self, index: int) -> str:
        """The full location with this index."""
        dataset, own = self.owner(index)
        return dataset.location(own)

    def owner(self, index: int) -> tuple[Resolved, int]:
        """The dataset that the location with this index is of, and its index there."""
        number = int(np.searchsorted(self._first_locations, index, side="right")) - 1
        return self.datasets[number], index - int(self._first_locations[number])

    def source_of(self, sample_ids: Int64Array) -> Int64Array:
        """The number of the source that each sample is of, from 0."""
        return self._rows.source_of(sample_ids)


class _Rows:
    """Finds the source of rows, and remembers those of the rows that were asked for last: columns ask one by one."""

    def __init__(self, firsts: Int64Array) -> None:
        self._firsts = firsts
        self._last: tuple[Int64Array, list[tuple[int, Int64Array, Int64Array]]] | None = None

    def source_of(self, rows: Int64Array) -> Int64Array:
        found: Int64Array = np.searchsorted(self._firsts, rows, side="right") - 1
        return found

    def parts(self, rows: Int64Array) -> list[tuple[int, Int64Array, Int64Array]]:
        """For each source that has some: its number, which of these rows they are, and their rows in the source."""
        last = self._last
        if last is None or last[0] is not rows:
            self._last = last = (rows, list(self._find(rows)))
        return last[1]

    def _find(self, rows: Int64Array) -> Iterator[tuple[int, Int64Array, Int64Array]]:
        for source, places in grouped(self.source_of(rows)):
            yield source, places, rows[places] - self._firsts[source]


class _JoinedColumn:
    def __init__(self, rows: _Rows, columns: Sequence[Any], added: Int64Array | None = None) -> None:
        self._rows, self._columns, self._added = rows, columns, added

    def __getitem__(self, rows: slice | Int64Array) -> Int64Array:
        if isinstance(rows, slice):
            rows = np.arange(rows.start, rows.stop, dtype=np.int64)
        found = np.empty(len(rows), dtype=np.int64)
        for source, places, own in self._rows.parts(rows):
            values = self._columns[source][own]
            found[places] = values if self._added is None else values + self._added[source]
        return found


class _Absent:
    def __getitem__(self, rows: slice | Int64Array) -> Int64Array:
        return np.full(rows.stop - rows.start if isinstance(rows, slice) else len(rows), -1, dtype=np.int64)


def grouped(numbers: Int64Array) -> Iterator[tuple[int, Int64Array]]:
    """Each number that occurs, ascending, with the places where it does, ascending."""
    order = np.argsort(numbers, kind="stable")
    ascending = numbers[order]
    bounds = [0, *(np.flatnonzero(np.diff(ascending)) + 1).tolist(), len(order)]
    for start, end in pairwise(bounds):
        if start < end:
            yield int(ascending[start]), order[start:end]


def sources_of(dataset: Dataset) -> tuple[Source, ...]:
    """What was joined; a dataset that wasn't is one source, called by where it lies."""
    if isinstance(dataset, Joined):
        return dataset.sources
    return (Source(dataset.base, 0, dataset.manifest.row_count, dataset.hash, dataset.base),)


def label_names(dataset: Dataset) -> list[str] | None:
    """Names of a packed dataset's labels by id, from its ``_mx8/labels.tsv``; None when it has none.

    Of joined datasets those of all, or None where ids are each dataset's own.
    """
    if isinstance(dataset, Joined):
        return label_names(dataset.datasets[0]) if dataset.labels == "same" else None
    try:
        return read_labels(open_store(dataset.base).read("_mx8/labels.tsv"))
    except ObjectNotFound:
        return None


def _check_all_labelled(names: Sequence[str], datasets: Sequence[Resolved]) -> None:
    labelled: dict[bool, str] = {}
    for name, dataset in zip(names, datasets, strict=True):
        labelled.setdefault(_has_labels(dataset.manifest), name)
    if len(labelled) > 1:
        raise ConfigError(
            f"the samples of {labelled[True]!r} have labels and those of {labelled[False]!r} have none; give mix(..., "
            "labels='none') to load them without, or pack both alike"
        )


def _has_labels(manifest: Manifest) -> bool:
    return manifest.labelled_count > 0


def _check_same_labels(names: Sequence[str], datasets: Sequence[Resolved]) -> None:
    if len({dataset.base for dataset in datasets}) == 1:
        return
    expected = label_names(datasets[0])
    for name, dataset in zip(names[1:], datasets[1:], strict=True):
        found = label_names(dataset)
        if found != expected:
            raise ConfigError(
                f"{names[0]!r} and {name!r} have different labels ({_shown(expected)} and {_shown(found)}), so that "
                "one label id would mean two things; pack them with the same folders, or give mix(..., labels='own') "
                "if ids are each source's own (loader.source_of says whose), or labels='none'"
            )


def _shown(labels: list[str] | None) -> str:
    if labels is None:
        return "no labels.tsv"
    return f"{len(labels)}: {', '.join(labels[:3])}{', ...' if len(labels) > 3 else ''}"
