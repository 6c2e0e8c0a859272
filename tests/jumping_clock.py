"""Runs a module with clocks that a test can set forward and back: ``python -m tests.jumping_clock FILE MODULE ...``.

What the file holds is added to ``time.monotonic``, the clock of leases and ``time.time`` each time that they are asked.
"""

from __future__ import annotations

import mmap
import runpy
import struct
import sys
import time
from pathlib import Path

_OFFSETS = struct.Struct("=dd")


class JumpingClock:
    """A test's end: the file, which it makes."""

    def __init__(self, path: Path) -> None:
        self.through = ("tests.jumping_clock", str(path))
        self._path = path
        self._offsets = (0.0, 0.0)
        path.write_bytes(_OFFSETS.pack(*self._offsets))

    def jump(self, monotonic_s: float, wall_s: float) -> None:
        """Let so much time seem to have gone by since, by either clock."""
        self._offsets = (self._offsets[0] + monotonic_s, self._offsets[1] + wall_s)
        with self._path.open("r+b") as file:
            file.write(_OFFSETS.pack(*self._offsets))


def _patch(path: str) -> None:
    with Path(path).open("rb") as file:
        offsets = mmap.mmap(file.fileno(), _OFFSETS.size, prot=mmap.PROT_READ)
    wall_ns, clock = time.time_ns, time.clock_gettime
    time.clock_gettime = lambda which: clock(which) + _OFFSETS.unpack(offsets)[0]
    time.monotonic = lambda: time.clock_gettime(time.CLOCK_MONOTONIC)
    time.time_ns = lambda: wall_ns() + int(_OFFSETS.unpack(offsets)[1] * 1e9)
    time.time = lambda: time.time_ns() / 1e9


if __name__ == "__main__":
    _, _file, _module, *_rest = sys.argv
    _patch(_file)
    sys.argv = [_module, *_rest]
    runpy.run_module(_module, run_name="__main__", alter_sys=True)
