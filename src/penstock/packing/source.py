"""Where samples come from: the protocol that folders and object stores both satisfy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from penstock.dataset.spool import Entry
from penstock.errors import SampleChanged
from penstock.packing.plan import FilePiece, WholeFiles

__all__ = ["Source", "changed", "shown"]


class Source(Protocol):
    """Something to pack. Methods but ``entries`` may be called from several threads at once.

    All raise the ``StoreError`` that fits, naming the file, and ``SampleChanged`` when a file isn't as long
    as it was when it was listed.
    """

    @property
    def url(self) -> str:
        """What is packed, for messages."""

    @property
    def readers(self) -> int:
        """How many segments are worth reading at once."""

    def entries(self) -> Iterator[Entry]:
        """Path and size of every file to pack, in any order."""

    def read_files(self, files: WholeFiles, segment: memoryview) -> None:
        """Read each file to its place behind its header; ``segment`` begins where ``files`` does."""

    def read_piece(self, piece: FilePiece, data: memoryview) -> None:
        """Fill ``data`` with the bytes ``[begin, end)`` of one file."""

    def close(self) -> None:
        """Let go of threads and connections."""


def shown(path: bytes) -> str:
    """A path as text that any terminal can print."""
    return path.decode(errors="backslashreplace")


def changed(location: str, size: int, how: str) -> SampleChanged:
    """The error for a file that isn't as long as it was; ``how`` is ``grew`` or ``shrank``."""
    return SampleChanged(
        f"{location} {how} while it was being packed: it had {size} bytes when it was listed; "
        "pack again when nobody writes to it"
    )
