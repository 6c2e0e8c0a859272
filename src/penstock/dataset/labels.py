"""Class labels: which files have one, how they are numbered, and the two texts that carry them.

A file's label is the first part of its path below the dataset's root, when a further part follows. Labels are
numbered from 0 in the byte order of their UTF-8 form. ``_mx8/labels.tsv`` maps numbers to labels; in a
manifest a sample's number stands in its decode hint. A folder's name need not be UTF-8: such bytes are
carried as Python carries them in paths (surrogate escapes) and come back unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, TypeAlias
from urllib.parse import quote, unquote_to_bytes

from penstock.errors import ConfigError, ManifestError, PackError

__all__ = [
    "LabelMode",
    "hint_for",
    "label_id_of",
    "label_of",
    "labels_active",
    "number_labels",
    "parse_label_mode",
    "read_labels",
    "write_labels",
]

LabelMode: TypeAlias = Literal["auto", "none", "imagefolder"]

_MODES: dict[str, LabelMode] = {
    "": "auto",
    "auto": "auto",
    **dict.fromkeys(("none", "off", "false", "0"), "none"),
    **dict.fromkeys(("imagefolder", "image_folder", "image-folder"), "imagefolder"),
}
_HEADER = b"schema_version=1"
_HINT = "mx8:vision:imagefolder"
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def parse_label_mode(text: str) -> LabelMode:
    """A label mode as a person writes it; case and white space don't matter, nor do the known aliases.

    Raises:
        ConfigError: another text.
    """
    mode = _MODES.get(text.strip().lower()) if isinstance(text, str) else None
    if mode is None:
        raise ConfigError(f"label_mode is {text!r}; give one of auto|none|imagefolder")
    return mode


def label_of(path: bytes) -> bytes | None:
    """The first part of a path relative to the dataset's root, or None for a file at the root."""
    label, slash, file = path.partition(b"/")
    return label if label and slash and file else None


def labels_active(mode: LabelMode, *, unlabelled: bytes | None, label_count: int) -> bool:
    """Decide whether a dataset carries labels.

    Args:
        mode: what was asked for.
        unlabelled: the relative path of some file without a label, or None when every file has one.
        label_count: how many labels there are.

    Returns:
        Whether samples get label ids. ``auto`` wants a label on every file and at least two labels.

    Raises:
        PackError: the mode is ``imagefolder`` and a file has no label.
    """
    if mode == "none":
        return False
    if mode == "imagefolder" and unlabelled is not None:
        raise PackError(
            "require_labels/imagefolder mode requires files under <label>/<file>; "
            f"{unlabelled.decode(errors='backslashreplace')!r} lies at the root: move it under a label, "
            'or use label_mode="none"'
        )
    return unlabelled is None and (mode == "imagefolder" or label_count >= 2)


def number_labels(labels: Iterable[bytes]) -> dict[bytes, int]:
    """Number labels from 0 in byte order."""
    return {label: number for number, label in enumerate(sorted(labels))}


def write_labels(labels: list[str]) -> bytes:
    """The text of ``labels.tsv`` for labels whose position is their number.

    Returns:
        ``schema_version=1``, then a row ``id<TAB>label`` each, labels percent-encoded except
        ``A-Za-z0-9-_.~``.
    """
    rows = (f"{number}\t{quote(_to_bytes(label), safe='')}\n".encode() for number, label in enumerate(labels))
    return b"".join((_HEADER + b"\n", *rows))


def read_labels(text: bytes) -> list[str]:
    """The labels of a ``labels.tsv``, each at the position of its number.

    Raises:
        ManifestError: another version, a row that doesn't parse, a number or label given twice, or a gap.
    """
    header, *rows = text.split(b"\n")
    if header.rstrip(b"\r") != _HEADER:
        shown = header[:80].decode(errors="backslashreplace")
        raise ManifestError(f"labels file begins with {shown!r}; only {_HEADER.decode()!r} is understood")
    by_number: dict[int, bytes] = {}
    for line_number, line in enumerate(rows, start=2):
        row = line.rstrip(b"\r")
        if row:
            number, label = _parse_row(row, line_number)
            if number in by_number:
                raise ManifestError(f"labels file line {line_number}: label id {number} is given twice")
            by_number[number] = label
    if len(set(by_number.values())) != len(by_number):
        raise ManifestError("labels file gives one label two ids; every label must have its own")
    for expected in range(len(by_number)):
        if expected not in by_number:
            raise ManifestError(f"labels file has {len(by_number)} labels but no label id {expected}; ids run from 0")
    return [_to_text(by_number[number]) for number in range(len(by_number))]


def _parse_row(row: bytes, line_number: int) -> tuple[int, bytes]:
    number, tab, label = row.partition(b"\t")
    if not (number.isdigit() and len(number) <= 18 and tab and label) or b"\t" in label:
        raise ManifestError(f"labels file line {line_number}: expected <id><TAB><label>, found {row[:80]!r}")
    if _BROKEN_ESCAPE.search(label):
        raise ManifestError(f"labels file line {line_number}: {label[:80]!r} has a % without two hex digits")
    return int(number), unquote_to_bytes(label)


def hint_for(label_id: int) -> str:
    """The decode hint that gives a sample this label id."""
    return f"{_HINT};label_id={label_id}"


def label_id_of(hint: str) -> int | None:
    """The label id in a decode hint, or None when the hint speaks of something else.

    Raises:
        ManifestError: an ImageFolder hint without a label id, or with one that isn't a number.
    """
    kind, *parts = hint.split(";")
    if kind.strip() != _HINT:
        return None
    for part in parts:
        name, _, value = part.partition("=")
        if name.strip() == "label_id":
            value = value.strip()
            if not (value.isascii() and value.isdigit() and len(value) <= 18):
                raise ManifestError(f"decode hint {hint!r}: label_id must be a whole number")
            return int(value)
    raise ManifestError(f"decode hint {hint!r} has no label_id; expected {hint_for(0)!r}")


def _to_bytes(label: str) -> bytes:
    return label.encode("utf-8", "surrogateescape")


def _to_text(label: bytes) -> str:
    return label.decode("utf-8", "surrogateescape")
