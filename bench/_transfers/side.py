"""What a contestant has to be able to do: one end of a pair of processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Operation = Callable[[], None]
"""One transfer: called, it posts it and comes back when it is done."""


class Unsupported(Exception):
    """This contestant has no such thing; the message says why."""


class Side:
    """One end of a contestant. What it can't do, it leaves as it is here.

    Args:
        name: of this end, "initiator" or "target".
        address: where it is reached over a network; None on one host.
        memory: "own" for memory that the contestant allocates, "user" for a plain NumPy array.
    """

    one_sided = True  # the target takes no part in a transfer
    polling = False  # its target has to poll for transfers to go on
    waits_for_ever = False  # receive_asleep() knows no time-out
    transport = "?"

    def __init__(self, name: str, address: str | None, memory: str) -> None:
        self.name, self.address, self.memory = name, address, memory

    def allocate(self, nbytes: int) -> np.ndarray:
        """Registered bytes, each page of it touched."""
        array = np.empty(nbytes, np.uint8)
        array.fill(0)
        return array

    def hello(self) -> Any:
        """What the other end needs to reach this one."""
        return b""

    def meet(self, hello: Any) -> None:
        """The other end's hello."""

    def operation(self, kind: str, rows: np.ndarray) -> Operation:
        """A transfer of rows (offset, length) of our memory to or from the same places of the target's."""
        raise Unsupported("no one-sided transfers")

    def halves(self, kind: str, rows: np.ndarray) -> tuple[Operation, Operation]:
        """The same in two: what posts it, and what waits until it is done."""
        raise Unsupported("not measured")

    def one_shot(self, kind: str, rows: np.ndarray) -> Operation:
        """The same, with everything that can't be prepared once for all inside."""
        raise Unsupported("not measured")

    def progress(self) -> None:
        """What a polling target does over and over."""

    def send(self, message: bytes) -> None:
        raise Unsupported("no notifications")

    def receive(self) -> list[bytes]:
        """What has arrived; doesn't wait."""
        raise Unsupported("no notifications")

    def receive_asleep(self, timeout_s: float) -> list[bytes]:
        """What has arrived, or will within that time; takes no processor time while it waits."""
        raise Unsupported("can only poll")

    def serve(self, kind: str, nbytes: int, count: int) -> None:
        """The target's part of so many transfers, where it has one."""
        raise Unsupported("takes no part")

    def register_many(self, arrays: list[Any]) -> Operation:
        """Register all of these at once; the operation returned undoes it."""
        raise Unsupported("registers nothing")

    def close(self) -> None:
        """Let go of everything."""
