"""How a rule says no: nothing has changed then."""

from __future__ import annotations

from penstock.coordinator.draft import Note
from penstock.coordinator.events import Code

__all__ = ["No"]


class No(Exception):
    """The status and the sentence that whoever asked gets, and what else is worth telling."""

    def __init__(self, code: Code, reason: str, *notes: Note) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.notes = notes
