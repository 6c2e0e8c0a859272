"""Dies in the middle of a resolution, at every step in turn: ``resolve_crash.py DATA ROOT CACHE``.

A forked child counts the calls by which a resolution changes the file system, and leaves without any clean-up at
the n-th. Then another one resolves the same link as if nothing had happened. Prints a line for each death: how
long the next resolution took, and the hash that it gave.
"""

from __future__ import annotations

import os
import shutil
import sys
import time

from dying import die_at

from penstock.dataset.resolve import resolve, resolve_manifest_hash

STEPS = ("mkdir", "open", "write", "pwrite", "fsync", "link", "replace", "rename", "unlink", "ftruncate", "utime")


def main(data: str, root: str, cache: str) -> None:
    for step in range(10_000):
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(cache, ignore_errors=True)
        if step % 2:
            resolve_manifest_hash(data, manifest_store_root=root)
        child = os.fork()
        if child == 0:
            die_at(step // 2, STEPS)
            resolve(f"{data}@refresh", manifest_store_root=root)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        started = time.monotonic()
        resolved = resolve(f"{data}@refresh", manifest_store_root=root)
        if status != 0:
            print(f"died {time.monotonic() - started:.3f} {resolved.hash} {len(resolved.manifest)}", flush=True)
        elif step % 2:
            return


main(*sys.argv[1:])
