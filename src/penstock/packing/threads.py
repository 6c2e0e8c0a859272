"""Ending work that runs on threads."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, wait
from typing import TypeVar

__all__ = ["CLOSE_DEADLINE_S", "drain"]

CLOSE_DEADLINE_S = 60.0

T = TypeVar("T")


def drain(futures: Iterable[Future[T]], deadline_s: float = CLOSE_DEADLINE_S) -> None:
    """Cancel what hasn't begun, and wait for what has; results and errors are dropped."""
    # A cancelled future is left out: `wait` would take it for pending until a worker had picked it up.
    wait([future for future in futures if not future.cancel()], deadline_s)
