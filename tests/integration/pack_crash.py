"""Dies in the middle of a pack, at every step in turn: ``pack_crash.py OUT NEW_SOURCE OLD_SOURCE``.

A forked child counts the calls by which a pack changes the file system, and leaves without any clean-up at the
n-th. Between two deaths the old dataset is packed again. Prints a line for each death.
"""

from __future__ import annotations

import os
import shutil
import sys

from dying import die_at

from penstock.packing import pack_dir

STEPS = ("mkdir", "open", "write", "fsync", "replace", "rename", "unlink", "rmdir")


def main(out: str, new: str, old: str) -> None:
    for step in range(10_000):
        shutil.rmtree(out, ignore_errors=True)
        pack_dir(old, out=out)
        child = os.fork()
        if child == 0:
            die_at(step, STEPS)
            pack_dir(new, out=out, shard_mb=1, label_mode="none")
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            return
        print("died", flush=True)
        sys.stdin.readline()  # the test looks at what is there now


main(*sys.argv[1:])
