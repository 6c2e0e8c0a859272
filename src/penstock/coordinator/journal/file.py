"""A journal in a file: for a coordinator on one machine, that goes on where it was when it is started again."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from penstock.coordinator.journal.base import apply_changes
from penstock.coordinator.journal.lines import Head, Read, read_journal
from penstock.coordinator.journal.log_file import LogFile, leader_in, locked
from penstock.errors import ClosedError, ConfigError, CoordinatorError, JournalUnavailable, NotLeader

__all__ = ["FileJournal"]

_log = logging.getLogger("penstock")

_COMPACT_BYTES: Final = 4 << 20
_COMPACT_TIMES: Final = 4
_PAUSE_S: Final = 0.05
_LEAST_WAIT_S: Final = 0.1  # whoever asks who leads holds the lock for a moment


class FileJournal:
    """A ``Journal`` in a file that is only appended to, and written anew when it has become long.

    Whoever leads has it locked (``flock``), so it ends to lead when its process does. The lock holds between processes
    of one machine, not on every network file system.

    Args:
        path: of the file; its folder is made. A link leads to the file that is meant, which keeps its place.
        job_id: whose records they are. A file of another job is refused.
        address: of this coordinator, for those that follow it.
        compact_bytes: how long the file may become before it is written anew, where that is more than four times what
            it began with.

    Raises:
        ConfigError: something else than a file is there.
    """

    def __init__(self, path: str | Path, *, job_id: str, address: str, compact_bytes: int = _COMPACT_BYTES) -> None:
        self._path = _file_at(Path(path))
        self._job_id = job_id
        self._address = address
        self._compact_bytes = compact_bytes
        self._closed = threading.Event()
        self._busy = threading.Lock()
        self._log: LogFile | None = None
        self._term = 0
        self._dropped_of = 0  # bytes that were there when the end of them was last dropped
        self._records: dict[str, str] = {}

    def lead(self, timeout_s: float | None) -> int | None:
        """See ``Journal``."""
        until = math.inf if timeout_s is None else time.monotonic() + max(timeout_s, _LEAST_WAIT_S)
        self._step_down()
        while True:
            with self._busy, self._failing("can't be taken over"):
                self._check_open()
                if self._take_over():
                    return self._term
            if time.monotonic() >= until:
                return None
            self._closed.wait(_PAUSE_S)

    def load(self) -> dict[str, str]:
        """See ``Journal``."""
        with self._busy:
            self._leading()
            return dict(self._records)

    def commit(self, changes: Mapping[str, str | None]) -> None:
        """See ``Journal``."""
        with self._busy, self._failing("can't be written"):
            log = self._leading()
            log.append(changes)
            self._leading()  # a file that somebody moved away meanwhile isn't what the next leader reads
            apply_changes(self._records, changes)
            if log.size_bytes > max(self._compact_bytes, _COMPACT_TIMES * log.whole_bytes):
                self._compact()

    def leader(self) -> str | None:
        """See ``Journal``."""
        self._check_open()
        if not self.lost:
            return self._address
        with self._failing("can't be read", ends=False):
            return leader_in(self._path)

    @property
    def lost(self) -> bool:
        """See ``Journal``."""
        log = self._log
        return log is None or not log.is_at(self._path)

    def close(self) -> None:
        """See ``Journal``."""
        self._closed.set()
        self._step_down()

    def _take_over(self) -> bool:
        """Lead, if nobody else does: read what there is, and begin a file of our own with it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = locked(self._path)
        if descriptor is None:
            return False
        try:
            found = self._read(descriptor)
            self._term = 1 + (found.head.term if found.head else 0)
            self._records = found.records
            self._log = self._begun()
        finally:
            os.close(descriptor)
        return True

    def _read(self, descriptor: int) -> Read:
        with os.fdopen(os.dup(descriptor), "rb") as file:
            data = file.read()
        try:
            found = read_journal(data)
        except CoordinatorError as error:
            raise CoordinatorError(f"{self._path}: {error}") from None
        if found.head is not None and found.head.job_id != self._job_id:
            raise CoordinatorError(
                f"{self._path} is the journal of job {found.head.job_id!r}, not of {self._job_id!r}; give each job a "
                "file of its own"
            )
        if found.dropped_bytes and len(data) != self._dropped_of:  # once, not with each try to lead
            self._dropped_of = len(data)
            _log.warning("%s: dropped %d bytes of a commit that was cut off", self._path, found.dropped_bytes)
        return found

    def _begun(self) -> LogFile:
        return LogFile.begun(self._path, Head(self._job_id, self._term, self._address), self._records)

    def _compact(self) -> None:
        before, self._log = self._log, None  # whatever goes wrong, we don't go on with either
        try:
            self._log = self._begun()
        except OSError as error:
            _log.error("%s can't be written anew, so this coordinator steps down: %s", self._path, error)
        finally:
            if before is not None:
                before.close()

    def _leading(self) -> LogFile:
        self._check_open()
        log = self._log
        if log is None:
            raise NotLeader(f"{self._address} doesn't lead job {self._job_id!r}")
        if not log.is_at(self._path):
            self._end()
            raise NotLeader(
                f"{self._path} isn't the file any more that {self._address} leads by: it was moved or deleted"
            )
        return log

    @contextlib.contextmanager
    def _failing(self, what: str, *, ends: bool = True) -> Iterator[None]:
        """The system's errors as a journal's; after them we don't lead any more, unless it was only asked who does."""
        try:
            yield
        except OSError as error:
            if ends:
                self._end()
            raise JournalUnavailable(f"the journal {self._path} {what}: {error}") from error

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ClosedError(f"the journal {self._path} is closed")

    def _step_down(self) -> None:
        with self._busy:
            self._end()

    def _end(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            log.close()


def _file_at(path: Path) -> Path:
    """The file that is meant: of a link the one that it leads to, as a new file would take the link's place."""
    try:
        path = path.resolve()
        other = path.exists() and not path.is_file()
    except (OSError, RuntimeError):  # which whoever wants to lead is told
        return path
    if other:
        raise ConfigError(
            f"the journal {path} is a folder or a device, and a journal would take its place; give a file, or "
            "memory: to keep nothing"
        )
    return path
