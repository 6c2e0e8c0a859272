"""Flow control of a channel, without the channel: who may send what when, as numbers. Pure.

Messages are numbered from 0; message ``n`` lies in slot ``n % slots``. The receiver grants a *limit*: the sender may
send the numbers below it. The limit is the first number that the receiver hasn't freed, plus the slots: so a slot is
filled anew only after it was freed. It never falls, so grants may be repeated or late without harm.
"""

from __future__ import annotations

from penstock.errors import MetadataError

__all__ = ["Allowance", "Window"]


class Window:
    """The receiver's side: what arrived, what is freed, and what it may therefore grant.

    Transfers over a network may end in another order than they began, so messages arrive in any order within the window
    and are handed out by number.

    Args:
        slots: of the ring.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.next = 0
        self.granted = 0
        self._first_held = 0
        self._waiting: dict[int, int] = {}
        self._freed: set[int] = set()

    @property
    def limit(self) -> int:
        """Numbers below it may be sent."""
        return self._first_held + self.slots

    @property
    def owed(self) -> int:
        """By how much the limit is above what was granted."""
        return self.limit - self.granted

    @property
    def held_count(self) -> int:
        """Messages that were handed out and aren't freed."""
        return self.next - self._first_held - len(self._freed)

    def grant(self) -> int:
        """The limit, which counts as granted from now on."""
        self.granted = self.limit
        return self.granted

    def arrive(self, sequence: int, size_bytes: int) -> None:
        """A message of this number and size is in its slot.

        Raises:
            MetadataError: it was there before, or never granted.
        """
        if sequence >= self.granted:
            raise MetadataError(f"message {sequence} arrived, but only those below {self.granted} were granted")
        if sequence < self.next or sequence in self._waiting:
            raise MetadataError(f"message {sequence} arrived twice")
        self._waiting[sequence] = size_bytes

    def take(self) -> tuple[int, int] | None:
        """Number and size of the next message, which is handed out now; None = it isn't there."""
        size_bytes = self._waiting.pop(self.next, None)
        if size_bytes is None:
            return None
        self.next += 1
        return self.next - 1, size_bytes

    def free(self, sequence: int) -> None:
        """A message that was handed out has been dealt with. In any order; twice is once."""
        if not self._first_held <= sequence < self.next:
            return
        self._freed.add(sequence)
        while self._first_held in self._freed:
            self._freed.remove(self._first_held)
            self._first_held += 1


class Allowance:
    """The sender's side: how far it may go."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.next = 0
        self.limit = 0

    @property
    def left(self) -> int:
        """Messages that may be sent now."""
        return self.limit - self.next

    def grant(self, limit: int) -> None:
        """The receiver's limit arrived.

        Raises:
            MetadataError: it is more than the ring can hold.
        """
        most = self.next + self.slots
        if limit > most:
            raise MetadataError(
                f"a grant of {limit} after {self.next} messages into {self.slots} slots; at most {most}"
            )
        self.limit = max(self.limit, limit)

    def take(self) -> int:
        """The number of the message that is sent now; only while something is left."""
        assert self.left > 0
        self.next += 1
        return self.next - 1
