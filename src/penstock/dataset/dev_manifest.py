"""Manifests that a person or a script wrote: a table of tab-separated rows, without header, in any order."""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from penstock.dataset.manifest_text import ManifestWriter, WrittenManifest
from penstock.errors import ManifestError, StoreError
from penstock.store.oserrors import os_errors

__all__ = ["DevRow", "parse_dev_row", "write_dev_manifest"]

_MAX_LINE_BYTES = (1 << 20) - 64  # a manifest's reader takes 1 MiB, and its row may have a few bytes more
_MAX_DIGITS = 18
_CHUNK_ROWS = 8192


@dataclass(frozen=True, slots=True)
class DevRow:
    """One row of the table; -1 stands for an absent number."""

    sample_id: int
    location: str
    offset: int
    length: int
    hint: str


def parse_dev_row(line: bytes) -> DevRow | None:
    """Parse one line: ``sample_id location [byte_offset byte_length [decode_hint ...]]``.

    Returns:
        The row, or None for a blank line and for a comment, which begins with ``#``.

    Raises:
        ManifestError: anything else.
    """
    stripped = line.strip()
    if not stripped or stripped.startswith(b"#"):
        return None
    try:
        fields = line.rstrip(b"\n").removesuffix(b"\r").decode().split("\t")
    except UnicodeDecodeError:
        raise ManifestError(f"{line[:80]!r} is not valid UTF-8") from None
    if len(fields) == 1:
        raise ManifestError(f"{fields[0][:80]!r} has one column; give sample_id<TAB>location")
    if len(fields) == 3:
        raise ManifestError("3 columns; byte_offset and byte_length must be given together")
    if not fields[1].strip():
        raise ManifestError("the location is blank")
    sample_id = _number("sample_id", fields[0])
    offset, length = -1, -1
    if len(fields) > 3 and (fields[2] or fields[3]):
        if not (fields[2] and fields[3]):
            raise ManifestError("byte_offset and byte_length must be given together")
        offset, length = _number("byte_offset", fields[2]), _number("byte_length", fields[3])
        if length == 0:
            raise ManifestError("byte_length is 0; a range has at least one byte")
    return DevRow(sample_id, fields[1], offset, length, fields[4] if len(fields) > 4 else "")


def write_dev_manifest(path: Path, out: IO[bytes], *, version: int) -> WrittenManifest:
    """Write the canonical manifest of a table.

    Two passes: the first checks each line and remembers its id and its place, 16 bytes a row; the second
    reads the lines again in the order of their ids.

    Args:
        path: the table.
        out: where the canonical text goes.
        version: the manifest version to write.

    Returns:
        The text's hash and its rows.

    Raises:
        ObjectNotFound: there is no such file. Another StoreError: it can't be read.
        ManifestError: a line that doesn't parse, by its number; or ids that aren't exactly 0 to N-1.
    """
    with os_errors(str(path), "reading dev manifest"):
        if path.stat() and not path.is_file():  # a named pipe would keep us waiting
            raise StoreError(f"dev manifest {path} is a folder or a special file; give a regular file")
        table = path.open("rb")
    with table:
        places = _ordered_places(table, path)
        writer = ManifestWriter(out, version=version)
        if len(places):
            _write_rows(table, places, writer, path)
        return WrittenManifest(writer.finish(), writer.rows)


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise ManifestError(f"{name} {text[:80]!r} is not a whole number")
    return int(text)


def _ordered_places(table: IO[bytes], path: Path) -> npt.NDArray[np.int64]:
    """Where each row's line begins, in the order of sample ids."""
    ids, places = array("q"), array("q")
    for number, place, line in _lines(table):
        try:
            if len(line) > _MAX_LINE_BYTES:
                raise ManifestError(f"longer than {_MAX_LINE_BYTES} bytes")
            row = parse_dev_row(line)
        except ManifestError as error:
            raise ManifestError(f"{path} line {number}: {error}") from None
        if row is not None:
            ids.append(row.sample_id)
            places.append(place)
    found = np.frombuffer(ids, np.int64)
    order = np.argsort(found, kind="stable")
    wrong = np.flatnonzero(found[order] != np.arange(len(found)))
    if wrong.size:
        expected = int(wrong[0])
        raise ManifestError(
            f"{path}: expected sample_id {expected} but found {found[order][expected]}; ids must be 0 to "
            f"{len(found) - 1}, each once"
        )
    return np.frombuffer(places, np.int64)[order]


def _lines(table: IO[bytes]) -> Iterator[tuple[int, int, bytes]]:
    number, place = 0, 0
    while line := table.readline(_MAX_LINE_BYTES + 1):
        number += 1
        yield number, place, line
        place += len(line)


def _write_rows(table: IO[bytes], places: npt.NDArray[np.int64], writer: ManifestWriter, path: Path) -> None:
    with mmap.mmap(table.fileno(), 0, access=mmap.ACCESS_READ) as text:
        for start in range(0, len(places), _CHUNK_ROWS):
            rows = [_row_at(text, place) for place in places[start : start + _CHUNK_ROWS].tolist()]
            try:
                writer.add(
                    [row.location for row in rows],
                    [row.offset for row in rows],
                    [row.length for row in rows],
                    [row.hint for row in rows],
                )
            except ManifestError as error:
                raise ManifestError(f"{path}: {error}") from None


def _row_at(text: mmap.mmap, place: int) -> DevRow:
    text.seek(place)
    row = parse_dev_row(text.readline())
    if row is None:
        raise ManifestError("the file was changed while it was read")
    return row
