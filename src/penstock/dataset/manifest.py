"""Manifests: which samples a dataset has and where their bytes lie.

In memory a manifest is columns over a mapped file: opening one of ten million rows costs no more than
hashing its text, and a sample is never a Python object.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from penstock import config
from penstock.dataset.manifest_cache import CachedColumns, ColumnSpool, build_turn, map_columns
from penstock.dataset.manifest_text import ManifestWriter
from penstock.errors import ManifestError, ManifestNotFound, StoreFull

__all__ = ["Manifest", "ManifestWriter"]

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Manifest:
    """An immutable list of samples, in columns that are read-only views of a mapped file.

    The arrays have one entry for each sample, in the order of sample ids; -1 stands for what is absent.
    They stay valid for as long as anyone holds one of them, with or without this object.

    Attributes:
        hash: SHA-256 of the canonical text, 64 lower-case hex digits.
        version: 0 or 1; only in version 1 are locations relative to the dataset's base.
        row_count: samples.
        location_index: uint32; which of the ``location_count`` locations a sample lies in.
        offset: int64; its first byte there, -1 when the sample is the whole object.
        length: int64; its size in bytes, -1 when the sample is the whole object.
        label_id: int64.
        crc32c: int64; the checksum of its bytes.
        labelled_count: samples with a label.
        sized_count: samples with a length.
        checked_count: samples with a checksum.
    """

    hash: str
    version: int
    row_count: int
    location_index: npt.NDArray[np.uint32]
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    label_id: npt.NDArray[np.int64]
    crc32c: npt.NDArray[np.int64]
    labelled_count: int
    sized_count: int
    checked_count: int
    _locations: Any  # pyarrow.LargeStringArray

    def __len__(self) -> int:
        return self.row_count

    def __repr__(self) -> str:
        return f"Manifest(hash={self.hash!r}, version={self.version}, row_count={self.row_count})"

    @property
    def location_count(self) -> int:
        """How many locations there are; neighbouring samples share one, far ones may repeat it."""
        return len(self._locations)

    def location(self, index: int) -> str:
        """The location with this index, as the manifest writes it."""
        return str(self._locations[index].as_py())

    @property
    def has_lengths(self) -> bool:
        """Whether every sample's size is known."""
        return self.sized_count == self.row_count

    @property
    def has_labels(self) -> bool:
        """Whether every sample has a label, and there is at least one."""
        return 0 < self.labelled_count == self.row_count

    @property
    def has_crcs(self) -> bool:
        """Whether every sample's checksum is known."""
        return self.checked_count == self.row_count

    @classmethod
    def open(cls, path: Path, *, expected_hash: str) -> Manifest:
        """Open a manifest's canonical text.

        The text is hashed again every time. Its columns are made at the first opening, in the cache folder
        or, where that can't be written, in a temporary file without a name; later they are only mapped.

        Args:
            path: the text.
            expected_hash: what it must hash to.

        Raises:
            ManifestNotFound: there is no such file.
            ManifestError: the text has another hash, or isn't a manifest.
            StoreFull: no room for the columns, neither in the cache folder nor among the temporary files.
        """
        try:
            text = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise ManifestNotFound(
                f"manifest not found: {expected_hash} ({path} does not exist); name the manifest store that "
                "has it, or resolve the dataset with @refresh"
            ) from None
        with text:
            return cls._from_columns(expected_hash, _columns_of(text, path, expected_hash))

    @classmethod
    def _from_columns(cls, manifest_hash: str, columns: CachedColumns) -> Manifest:
        location, *numbers = columns.batch.columns
        offset, length, label_id, crc32c = (column.to_numpy(zero_copy_only=True) for column in numbers)
        counts = columns.present_counts
        return cls(
            hash=manifest_hash,
            version=columns.version,
            row_count=columns.batch.num_rows,
            location_index=location.indices.to_numpy(zero_copy_only=True),
            offset=offset,
            length=length,
            label_id=label_id,
            crc32c=crc32c,
            labelled_count=counts["label_id"],
            sized_count=counts["length"],
            checked_count=counts["crc32c"],
            _locations=location.dictionary,
        )


def _columns_of(text: IO[bytes], path: Path, expected_hash: str) -> CachedColumns:
    cache = config.cache_dir() / "manifests" / f"{expected_hash}.arrow"
    columns = map_columns(cache, expected_hash)
    if columns is not None:
        _check_hash(text, path, expected_hash)
        return columns
    with build_turn(cache):
        # Someone else may have built it while we waited for our turn.
        columns = map_columns(cache, expected_hash)
        if columns is not None:
            _check_hash(text, path, expected_hash)
            return columns
        with contextlib.suppress(OSError):
            return _build(text, path, expected_hash, cache)
    return _build_without_cache(text, path, expected_hash)


def _build_without_cache(text: IO[bytes], path: Path, expected_hash: str) -> CachedColumns:
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            return _build(text, path, expected_hash, Path(folder) / "columns.arrow")
    except OSError as error:
        raise StoreFull(
            f"can't write the columns of manifest {expected_hash}: {error}; set PENSTOCK_CACHE_DIR to a "
            "folder that can be written and has room for about the size of the manifest's text"
        ) from error


def _build(text: IO[bytes], path: Path, expected_hash: str, cache: Path) -> CachedColumns:
    """Parse, write and map the columns; the hash is judged before what the text says."""
    text.seek(0)
    with ColumnSpool(cache.parent) as spool:
        try:
            digest = hashlib.sha256()
            for piece in _pieces(text):
                digest.update(piece)
                spool.feed(piece)
            _compare(digest.hexdigest(), expected_hash, path)
            spool.write(cache, expected_hash)
        except ManifestError as error:
            _check_hash(text, path, expected_hash)
            raise ManifestError(f"{path}: {error}") from None
    columns = map_columns(cache, expected_hash)
    if columns is None:
        raise OSError(f"{cache} can't be read back")
    return columns


def _check_hash(text: IO[bytes], path: Path, expected_hash: str) -> None:
    text.seek(0)
    digest = hashlib.sha256()
    for piece in _pieces(text):
        digest.update(piece)
    _compare(digest.hexdigest(), expected_hash, path)


def _compare(found_hash: str, expected_hash: str, path: Path) -> None:
    if found_hash != expected_hash:
        raise ManifestError(
            f"{path} hashes to {found_hash}, but {expected_hash} was asked for: the file was changed or "
            "damaged; delete it and resolve the dataset again with @refresh"
        )


def _pieces(text: IO[bytes]) -> Iterator[memoryview]:
    window = memoryview(bytearray(_PIECE_BYTES))
    readinto: Callable[[memoryview], int] = text.readinto  # type: ignore[attr-defined]
    while count := readinto(window):
        yield window[:count]
