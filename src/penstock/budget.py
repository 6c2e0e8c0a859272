"""The memory budget: the ledger and arena of the core, and the guard on the whole process.

``Budget(total_bytes)`` is an account of bytes. ``reserve(size, timeout_s)`` waits in line and returns a ``Charge``;
``charge.region()`` turns it into a ``Region``, memory of exactly that many bytes. A region's bytes are reached through
the buffer protocol (``memoryview(region)``, ``numpy.asarray(region)``) without a copy, and the charge returns to the
budget when the last view of them is gone, whoever holds it.
"""

from __future__ import annotations

import logging
import os

from penstock import config
from penstock._core import Budget, Charge, Region
from penstock.errors import ConfigError, RssExceeded
from penstock.sizes import format_bytes, parse_bytes

__all__ = ["Budget", "Charge", "Region", "RssGuard", "process_rss_bytes"]

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def process_rss_bytes() -> int:
    """Bytes of this process that are resident, shared pages included (``/proc/self/statm``, second field).

    Raises:
        OSError: there is no readable ``/proc``.
    """
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES


class RssGuard:
    """Watches the size of the whole process: keeps its high-water mark, and fails fast above a limit.

    It is the last line of defence against what the budget can't see (the user's own tensors, a leak in a library):
    an error with numbers in it instead of the OOM killer.
    """

    EVERY_BATCHES = 16  # one look costs some 10 us

    def __init__(self, limit_bytes: int | None) -> None:
        self.limit_bytes = limit_bytes
        self.high_water_bytes = 0
        self._looks = 0

    @classmethod
    def from_environment(cls) -> RssGuard:
        """A guard with the limit of ``PENSTOCK_MAX_PROCESS_RSS_BYTES``: bytes, or a size such as ``"4GiB"``.

        What is no size switches the guard off, as the seed system has it; a warning in the log says so.
        """
        found = config.setting("MAX_PROCESS_RSS_BYTES")
        if found.value is None:
            return cls(None)
        try:
            return cls(parse_bytes(found.value, name=found.source) or None)
        except ConfigError as error:
            logging.getLogger("penstock").warning("the guard on the process's size is off: %s", error)
            return cls(None)

    def sample(self) -> int:
        """The process's resident bytes now, or 0 where they can't be read; moves the high-water mark."""
        try:
            rss = process_rss_bytes()
        except OSError:
            return 0
        self.high_water_bytes = max(self.high_water_bytes, rss)
        return rss

    def check(self) -> None:
        """Look on the first call and on every 16th.

        Raises:
            RssExceeded: the process is larger than the limit, or there is a limit and the size can't be read.
        """
        look = self._looks % self.EVERY_BATCHES == 0
        self._looks += 1
        if not look:
            return
        rss = self.sample()
        if self.limit_bytes is None:
            return
        if rss == 0:
            raise RssExceeded(
                "process rss sampling is unavailable, so max_process_rss_bytes can't be held; "
                "mount /proc or unset PENSTOCK_MAX_PROCESS_RSS_BYTES"
            )
        if rss > self.limit_bytes:
            raise RssExceeded(
                f"process rss {rss} exceeds max_process_rss_bytes {self.limit_bytes} "
                f"({format_bytes(rss)} > {format_bytes(self.limit_bytes)}); "
                "lower max_inflight_bytes, hold fewer tensors, or raise the limit"
            )
