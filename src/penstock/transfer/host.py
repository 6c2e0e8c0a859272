"""Which host this is, as far as shared memory is concerned."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

__all__ = ["Host", "this_host"]


class Host(NamedTuple):
    """Two processes whose hosts are equal see the same abstract Unix sockets and can map each other's segments.

    Attributes:
        boot_id: of the running kernel, new at every start; empty = unknown, which equals nobody's.
        netns: the inode of the network namespace; 0 = unknown.
    """

    boot_id: str
    netns: int

    def same_as(self, other: Host) -> bool:
        """Whether both are known, and the same."""
        return self == other and bool(self.boot_id) and bool(self.netns)


def this_host() -> Host:
    """The host of this process, now (a process may move between network namespaces)."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return Host(file.read().strip(), Path("/proc/self/ns/net").stat().st_ino)
    except OSError:
        return Host("", 0)
