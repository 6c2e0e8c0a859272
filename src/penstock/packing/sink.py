"""Where shards go: the protocol of folders and object stores, and the names of what is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO, Protocol

__all__ = ["LABELS_KEY", "MANIFEST_KEY", "Sink", "is_shard_key", "shard_key"]

MANIFEST_KEY = "_mx8/manifest.tsv"
LABELS_KEY = "_mx8/labels.tsv"

_SHARD_KEY = re.compile(r"shards/shard-\d{5,}\.tar")


def shard_key(shard: int) -> str:
    """The key of a shard, relative to the dataset's base."""
    return f"shards/shard-{shard:05d}.tar"


def is_shard_key(key: str) -> bool:
    """Whether a key relative to the dataset's base is one that a pack writes its shards to."""
    return _SHARD_KEY.fullmatch(key) is not None


class Sink(Protocol):
    """A dataset being written: shards in order, then ``publish``; or ``abort``.

    Whatever happens, and whenever the process dies, the manifest that a reader finds names only bytes that
    are there. Until ``publish`` (for object stores: until the first shard is complete) a dataset that was
    there before stays as it was. All methods raise the ``StoreError`` that fits, naming the place.
    """

    @property
    def scratch(self) -> Path | None:
        """A folder with room for temporary files, or None for the system's."""

    def open(self) -> None:
        """Prepare to write; raises PackError when another pack is writing here."""

    def locate(self, key: str) -> str:
        """Absolute location of a key, as version 0 of the manifest writes it."""

    def result_key(self, key: str) -> str:
        """A key as the result of a pack names it: a path, or the key within the bucket."""

    def write(self, shard: int, data: memoryview) -> None:
        """Append to a shard; shards come in order. ``data`` may be reused as soon as this returns."""

    def end_shard(self) -> None:
        """No more comes for the shard that was last written to."""

    def open_manifest(self) -> BinaryIO:
        """A file for the manifest's text; ``publish`` takes its content, the sink closes it."""

    def publish(self, labels: bytes | None) -> None:
        """Put everything in its place, the manifest last; ``labels`` is the text of ``labels.tsv``."""

    def abort(self) -> None:
        """Remove what was written and isn't published. Does nothing after ``publish``."""
