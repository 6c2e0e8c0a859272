"""A memory cgroup of our own, version 1 or 2, for proofs from outside."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Cgroup:
    """A folder of the kernel's; processes that are put in it share its limit."""

    path: Path
    version: int

    @property
    def limit_file(self) -> Path:
        return self.path / ("memory.limit_in_bytes" if self.version == 1 else "memory.max")

    @property
    def stat_file(self) -> Path:
        return self.path / "memory.stat"

    @property
    def procs_file(self) -> Path:
        return self.path / "cgroup.procs"


@contextlib.contextmanager
def memory_cgroup() -> Iterator[Cgroup | None]:
    """A new memory cgroup, or None where none can be made."""
    name = f"penstock-test-{uuid.uuid4().hex[:12]}"
    version = 1 if (_V1 / "memory.limit_in_bytes").exists() or (_V1 / "cgroup.procs").exists() else 2
    group = Cgroup((_V1 if version == 1 else _V2) / name, version)
    try:
        group.path.mkdir()
        if not group.limit_file.exists() or not os.access(group.limit_file, os.W_OK):
            raise OSError("the memory controller isn't delegated to us")
    except OSError:
        with contextlib.suppress(OSError):
            group.path.rmdir()
        yield None
        return
    try:
        yield group
    finally:
        with contextlib.suppress(OSError):
            group.path.rmdir()


def unreclaimable_bytes(stat_file: Path) -> int:
    """What the kernel can't take back from the group: anonymous and shared memory, not the page cache."""
    stat = dict(line.split() for line in stat_file.read_text().splitlines())
    if "anon" in stat:  # version 2
        return int(stat["anon"]) + int(stat["shmem"]) + int(stat.get("kernel", 0))
    return int(stat["total_rss"]) + int(stat.get("total_shmem", 0))
