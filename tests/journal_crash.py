"""A coordinator's file journal that is killed, -9, at each of its steps on disk: ``python journal_crash.py FOLDER``.

For each step there is a child that commits 1, 2, 3... and is killed there: before the step, in the middle of a write,
or after it. ``FOLDER/<n>`` then holds the journal and ``acknowledged``, a byte for each commit that had returned.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock.coordinator.journal import FileJournal, file

COMMITS = 6
ADDRESS = "killed:1"


def changes_of(number: int) -> dict[str, str | None]:
    """What a commit changes: it counts, adds one record, and takes an earlier one away."""
    return {"count": str(number), f"record/{number}": "x" * 50, f"record/{number - 2}": None}


class Steps:
    """Stands in for what the journal calls of the system, and kills the process at one moment.

    A killed process leaves what it wrote to the kernel; ``unsafe`` is what a power cut might take in spite of that.
    """

    def __init__(self, moment: int) -> None:
        self.left = moment
        self.unsafe: set[str] = set()

    def wrap(
        self, step: Callable[..., Any], *, in_pieces: bool = False, begins: str = "", ends: str = ""
    ) -> Callable[..., Any]:
        def stepped(*args: Any) -> Any:
            self.tick()
            self.unsafe = (self.unsafe | {begins}) - {"", ends}
            if begins == "rename" and "write" in self.unsafe:
                raise AssertionError("a file that isn't on the disk takes the other's place")
            if in_pieces and len(args[1]) > 1:
                step(args[0], args[1][: len(args[1]) // 2])
                self.tick()
                return len(args[1]) // 2 + step(args[0], args[1][len(args[1]) // 2 :])
            value = step(*args)
            self.tick()
            return value

        return stepped

    def tick(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def live(folder: Path, moment: int) -> None:
    """Lead, commit, and be killed."""
    folder.mkdir()
    acknowledged = (folder / "acknowledged").open("ab", buffering=0)
    steps = Steps(moment)
    of_file, of_folder = steps.wrap(os.fsync, ends="write"), steps.wrap(os.fsync, ends="rename")
    os.write = steps.wrap(os.write, in_pieces=True, begins="write")
    os.fsync = lambda descriptor: (of_folder if stat.S_ISDIR(os.fstat(descriptor).st_mode) else of_file)(descriptor)
    os.fdatasync = steps.wrap(os.fdatasync, ends="write")
    fcntl.flock = steps.wrap(fcntl.flock)
    Path.rename = steps.wrap(Path.rename, begins="rename")
    file._COMPACT_TIMES = 1
    journal = FileJournal(folder / "journal", job_id="job", address=ADDRESS, compact_bytes=300)
    for number in range(1, COMMITS + 1):
        if number in {1, 4}:
            journal.lead(5)  # once anew, over what is there
        journal.commit(changes_of(number))
        if steps.unsafe:
            raise AssertionError(f"{steps.unsafe} isn't on the disk yet, and the commit has returned")
        acknowledged.write(b".")


def main(folder: Path) -> None:
    moment, status = 0, 1
    while status != 0:
        child = os.fork()
        if child == 0:
            try:
                live(folder / f"{moment:04d}", moment)
            except BaseException:
                traceback.print_exc()
                os._exit(3)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not (status == 0 or os.WIFSIGNALED(status)):
            raise RuntimeError(f"the child of moment {moment} failed: {status}")
        moment += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
