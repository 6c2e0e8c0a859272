"""The canonical text of a manifest, written as a stream.

Version 0 is the seed system's: a line ``schema_version=0``, then a row of five fields for each sample, with
tabs between them: ``sample_id``, ``location``, ``byte_offset``, ``byte_length``, ``decode_hint``; an absent
value is an empty field. Version 1 adds ``crc32c`` as a sixth field of eight lower-case hex digits, and lets
locations be relative to the dataset's base. The SHA-256 of these bytes is the manifest's hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import IO, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from penstock.dataset.labels import label_id_of
from penstock.dataset.links import is_absolute_location
from penstock.errors import ConfigError, ManifestError

__all__ = ["SUPPORTED_VERSIONS", "ManifestWriter", "WrittenManifest", "check_version"]

SUPPORTED_VERSIONS = (0, 1)

Integers: TypeAlias = npt.NDArray[np.int64] | Sequence[int] | None

_LIMIT = 10**18  # readers take numbers of up to 18 digits
_BLANKS = " \t\n\v\f\r"


class WrittenManifest(NamedTuple):
    """What became of a canonical text: its hash and its rows."""

    hash: str
    rows: int


def check_version(version: int) -> int:
    """Return ``version`` when it can be written. Raises ConfigError when it can't."""
    if version not in SUPPORTED_VERSIONS:
        raise ConfigError(f"manifest_version is {version!r}; give 0 (the seed system's) or 1")
    return version


class ManifestWriter:
    """Streams canonical text to a binary file and hashes it; memory is one call's rows.

    Args:
        out: where the text goes; the caller opens and closes it.
        version: 0 or 1; version 0 has no room for checksums and drops them.
    """

    def __init__(self, out: IO[bytes], *, version: int = 1) -> None:
        self.version = check_version(version)
        self.rows = 0
        self._out = out
        self._digest = hashlib.sha256()
        self._emit(f"schema_version={version}\n".encode())

    def add(
        self,
        locations: str | Sequence[str],
        offsets: Integers = None,
        lengths: Integers = None,
        hints: str | Sequence[str] = "",
        crcs: Integers = None,
    ) -> None:
        """Write the next rows; a column that is one text, or None, holds for all of them.

        Args:
            locations: where the bytes lie; in version 1 relative to the dataset's base or absolute.
            offsets: first byte within the location, -1 where the sample is the whole object.
            lengths: bytes, -1 exactly where the offset is.
            hints: decode hints, empty where there is none.
            crcs: crc32c of each sample, -1 where unknown.

        Raises:
            ManifestError: a row that no reader could read back; nothing of this call is written then.
        """
        count = _row_count(locations, hints, offsets, lengths, crcs)
        offset_array, length_array = _column(offsets, count), _column(lengths, count)
        _check_texts("location", locations, self.rows)
        _check_texts("decode_hint", hints, self.rows)
        for hint in {hints} if isinstance(hints, str) else set(hints):
            label_id_of(hint)
        self._check_locations(locations)
        _check_ranges(offset_array, length_array, self.rows)
        columns: list[Iterator[str]] = [
            map(str, range(self.rows, self.rows + count)),
            _texts(locations),
            _numbers(offset_array),
            _numbers(length_array),
            _texts(hints),
        ]
        if self.version == 1:
            columns.append(_checksums(_column(crcs, count), self.rows))
        try:
            self._emit("".join(row + "\n" for row in map("\t".join, zip(*columns, strict=False))).encode())
        except UnicodeEncodeError as error:
            line = error.object.count("\n", 0, error.start)
            name = error.object.split("\n")[line]
            raise ManifestError(f"row {self.rows + line} is not valid UTF-8: {name!r}; rename the file") from None
        self.rows += count

    def finish(self) -> str:
        """The manifest's hash: 64 lower-case hex digits. The file is left open and unflushed."""
        return self._digest.hexdigest()

    def _emit(self, data: bytes) -> None:
        self._digest.update(data)
        self._out.write(data)

    def _check_locations(self, locations: str | Sequence[str]) -> None:
        for index, location in enumerate([locations] if isinstance(locations, str) else locations):
            if not location.strip(_BLANKS):
                raise ManifestError(f"row {self.rows + index} has a blank location")
            if self.version == 1 and ".." in location and _climbs(location):
                raise ManifestError(
                    f"row {self.rows + index}: location {location!r} climbs out of the dataset with '..'"
                )


def _climbs(location: str) -> bool:
    return ".." in location.split("/") and not is_absolute_location(location)


def _row_count(*columns: str | Sequence[str] | Integers) -> int:
    counts = {len(column) for column in columns if column is not None and not isinstance(column, str)}
    if len(counts) > 1:
        raise ConfigError(f"columns of different lengths: {sorted(counts)}")
    return counts.pop() if counts else 1


def _column(values: Integers, count: int) -> npt.NDArray[np.int64]:
    return np.full(count, -1, np.int64) if values is None else np.asarray(values, np.int64)


def _texts(values: str | Sequence[str]) -> Iterator[str]:
    return repeat(values) if isinstance(values, str) else iter(values)


def _numbers(values: npt.NDArray[np.int64]) -> Iterator[str]:
    return ("" if value < 0 else str(value) for value in values.tolist())


def _checksums(values: npt.NDArray[np.int64], first_row: int) -> Iterator[str]:
    too_big = np.flatnonzero((values < -1) | (values > 0xFFFFFFFF))
    if too_big.size:
        row = int(too_big[0])
        raise ManifestError(f"row {first_row + row}: crc32c {values[row]} is not a 32-bit number")
    return ("" if value < 0 else f"{value:08x}" for value in values.tolist())


def _check_texts(what: str, values: str | Sequence[str], first_row: int) -> None:
    rows = [values] if isinstance(values, str) else values
    joined = "\n".join(rows)
    # A carriage return may stand in a file's name, but a reader would trim it from the end of a hint.
    carriage_return = what == "decode_hint" and "\r" in joined
    if joined.count("\n") < len(rows) and "\t" not in joined and not carriage_return:
        return
    for index, text in enumerate(rows):
        if any(mark in text for mark in ("\t\n\r" if what == "decode_hint" else "\t\n")):
            raise ManifestError(
                f"row {first_row + index}: {what} {text!r} holds a tab or a newline, which a manifest can't "
                "write; rename the file"
            )


def _check_ranges(offsets: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], first_row: int) -> None:
    whole = (offsets == -1) & (lengths == -1)
    ranged = (offsets >= 0) & (lengths > 0) & (offsets < _LIMIT) & (lengths < _LIMIT)
    bad = np.flatnonzero(~(whole | ranged))
    if bad.size:
        row = int(bad[0])
        raise ManifestError(
            f"row {first_row + row}: byte range offset={offsets[row]} length={lengths[row]}; give both, with "
            "a length of at least 1, or neither (-1)"
        )
