"""What this process could leave behind: threads, and descriptors with what each leads to.

Numbers alone can't be compared: an earlier test's garbage, which ends in the middle of a later one, lowers them.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading


def held() -> frozenset[threading.Thread | str]:
    """This process's threads and descriptors; what nobody refers to any more is let go of first."""
    gc.collect()
    found: set[threading.Thread | str] = set(threading.enumerate())
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # it was closed since, as the listing's own is
            found.add(f"descriptor {number} to {os.readlink(f'/proc/self/fd/{number}')}")
    return frozenset(found)


def left_since(before: frozenset[threading.Thread | str]) -> list[str]:
    """What came since `before` was `held()` and is there still."""
    return sorted(str(each) for each in held() - before)
