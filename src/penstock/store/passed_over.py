"""What a walk through a folder passes over and a user may miss: symlinks."""

from __future__ import annotations

import logging
import os

__all__ = ["PassedOver"]

_log = logging.getLogger("penstock")


class PassedOver:
    """Counts the symlinks of a walk, and names the first.

    A link may lead round in a circle, out of the folder, or twice to the same file, so none is followed; but a folder
    of nothing else, such as a snapshot in Hugging Face's cache, would be empty without a word.
    """

    def __init__(self) -> None:
        self._count = 0
        self._first = ""

    def note(self, entry: os.DirEntry[str] | os.DirEntry[bytes]) -> None:
        """An entry that is neither taken nor gone into; what is no symlink doesn't count."""
        if not entry.is_symlink():
            return
        if not self._count:
            self._first = os.fsdecode(entry.path)
        self._count += 1

    def tell(self, folder: str) -> None:
        """Say so in the log, where there was any."""
        if self._count:
            _log.warning(
                "%d of what lies below %s were left out, as symlinks are not followed; the first is %s. Copy what they "
                "mean into place (`cp -rL`), or give the folder that holds it",
                self._count,
                folder,
                self._first,
            )
