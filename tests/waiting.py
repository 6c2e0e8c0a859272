"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(true: Callable[[], object], what: str = "it didn't happen in time", within_s: float = 15.0) -> None:
    """Returns once `true()` is; fails with `what` after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)
