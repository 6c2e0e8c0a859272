"""Transfers that were started and not waited for, by number."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable

from penstock.compat.hmc.line import deadline_after, remaining
from penstock.errors import UnknownPeer
from penstock.transfer import Transfer

__all__ = ["NoSuchTransfer", "Pending"]


class NoSuchTransfer(UnknownPeer):
    """A number that no transfer has, or whose transfer was waited for already."""


class Pending:
    """The transfers of one session that somebody will wait for; they, and their numbers, go with the waiting."""

    def __init__(self) -> None:
        self._transfers: dict[int, Transfer] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def add(self, transfer: Transfer | None) -> int:
        """Its number; 0 for none, which nobody needs to wait for."""
        if transfer is None:
            return 0
        with self._lock:
            number = next(self._numbers)
            self._transfers[number] = transfer
        return number

    def wait(self, numbers: int | Iterable[int], timeout_s: float) -> None:
        """Waits for one transfer or several. If one fails the others go on, and can be waited for again.

        Raises:
            NoSuchTransfer: a number that is none; nothing is waited for.
            TransferError: what a transfer failed with.
            DeadlineExceeded: the time is over first; what is not done can be waited for again.
        """
        wanted = [numbers] if isinstance(numbers, int) else list(numbers)
        deadline = deadline_after(timeout_s)
        with self._lock:
            unknown = [number for number in wanted if number and number not in self._transfers]
        if unknown or len(set(wanted) - {0}) < sum(map(bool, wanted)):
            raise NoSuchTransfer(f"no transfer has the number {unknown or wanted}; each can be waited for once")
        for number in filter(None, wanted):
            with self._lock:
                transfer = self._transfers[number]
            try:
                transfer.wait(remaining(deadline))
            finally:
                if transfer.state != "ACTIVE":
                    self._forget(number)

    def close(self) -> None:
        """Forgets all of them."""
        with self._lock:
            self._transfers.clear()

    def _forget(self, number: int) -> None:
        with self._lock:
            self._transfers.pop(number, None)
