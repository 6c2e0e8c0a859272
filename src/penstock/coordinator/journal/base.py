"""What every journal does: keep a job's records for whoever leads it next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

__all__ = ["Journal", "apply_changes"]


@runtime_checkable
class Journal(Protocol):
    """Durable records, key to text, with one writer at a time: the leader.

    ``lead``, ``load`` and ``commit`` are for one thread at a time; the others for any.

    Every method but ``close`` and ``lost`` raises:
        JournalUnavailable: what it is kept in can't be reached, or takes nothing more.
        CoordinatorError: what is kept there is damaged, or isn't this job's.
        ClosedError: ``close()`` was called, before or meanwhile.
    """

    def lead(self, timeout_s: float | None) -> int | None:
        """Become the leader, waiting while somebody else leads; whoever leads already gives that up first.

        Args:
            timeout_s: how long to wait; None = for ever. At least one try is made.

        Returns:
            The term: larger than any before, of whomever. None: somebody else still leads.
        """

    def load(self) -> dict[str, str]:
        """All records, as they were when we began to lead or as we committed them since. The caller's own.

        Raises:
            NotLeader: we don't lead.
        """

    def commit(self, changes: Mapping[str, str | None]) -> None:
        """Change records; all of it or nothing. It is durable when this returns.

        After any error we don't lead any more. ``lead()`` and ``load()`` then tell what is kept: after a ``NotLeader``
        none of these changes came after what the new leader loaded; after a ``JournalUnavailable`` they may have been
        kept, all of them, or not.

        Args:
            changes: texts by key; None takes a record away, if there is one.

        Raises:
            NotLeader: we don't lead, or not any more.
        """

    def leader(self) -> str | None:
        """The address that the leader, we or somebody else, was given; None while there is none."""

    @property
    def lost(self) -> bool:
        """Whether we don't lead, or can't be sure of it any more by our own clock.

        To be asked last before an answer is sent that rests on leading and commits nothing, such as that a lease was
        renewed: the next leader may have begun, and counts from then on.
        """

    def close(self) -> None:
        """Let somebody else lead at once, and wake who waits here. Any thread; safe twice."""


def apply_changes(records: dict[str, str], changes: Mapping[str, str | None]) -> None:
    """Change records in place."""
    for key, text in changes.items():
        if text is None:
            records.pop(key, None)
        else:
            records[key] = text
