"""A journal that lives as long as its process: for tests, and for jobs that begin anew when their coordinator dies."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from penstock.coordinator.journal.base import apply_changes
from penstock.errors import ClosedError, NotLeader

__all__ = ["MemoryJournal", "MemoryRecords"]


class MemoryRecords:
    """What journals in memory share: records, and who leads. Any thread may call."""

    def __init__(self) -> None:
        self.records: dict[str, str] = {}
        self.term = 0
        self.leader: MemoryJournal | None = None
        self.changed = threading.Condition()

    def depose(self) -> None:
        """Whoever leads doesn't any more, and isn't told: as a leader that stood still for too long."""
        with self.changed:
            self.leader = None
            self.changed.notify_all()


class MemoryJournal:
    """A ``Journal`` in memory.

    Args:
        records: shared with others that may lead; None = its own.
        address: of this coordinator, for those that follow it.
    """

    def __init__(self, records: MemoryRecords | None = None, *, address: str) -> None:
        self._shared = records or MemoryRecords()
        self._address = address
        self._closed = False

    def lead(self, timeout_s: float | None) -> int | None:
        """See ``Journal``."""
        shared = self._shared
        with shared.changed:
            if shared.leader is self:
                shared.depose()
            shared.changed.wait_for(lambda: shared.leader is None or self._closed, timeout_s)
            self._check_open()
            if shared.leader is not None:
                return None
            shared.leader = self
            shared.term += 1
            return shared.term

    def load(self) -> dict[str, str]:
        """See ``Journal``."""
        with self._shared.changed:
            self._check_leads()
            return dict(self._shared.records)

    def commit(self, changes: Mapping[str, str | None]) -> None:
        """See ``Journal``."""
        with self._shared.changed:
            self._check_leads()
            apply_changes(self._shared.records, changes)

    def leader(self) -> str | None:
        """See ``Journal``."""
        with self._shared.changed:
            self._check_open()
            leader = self._shared.leader
            return None if leader is None else leader._address

    @property
    def lost(self) -> bool:
        """See ``Journal``."""
        return self._shared.leader is not self

    def close(self) -> None:
        """See ``Journal``."""
        with self._shared.changed:
            self._closed = True
            if self._shared.leader is self:
                self._shared.leader = None
            self._shared.changed.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the journal is closed")

    def _check_leads(self) -> None:
        self._check_open()
        if self._shared.leader is not self:
            raise NotLeader(f"{self._address} doesn't lead this job")
