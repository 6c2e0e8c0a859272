"""Resolves a link in a process of its own and tells what happens: ``resolve_child.py LINK ROOT GATE``.

Prints every proof event, then ``resolved to ...``. Whoever is elected to index waits for the file GATE to appear.
"""

from __future__ import annotations

import logging
import os
import sys
import time

from penstock.dataset import intent_lock, lock_owner
from penstock.dataset import resolve as resolve_module
from penstock.dataset.index import write_index
from penstock.proof import LOGGER_NAME

GATE_DEADLINE_S = 60.0


def wait_for_gate(*arguments, **options):
    deadline = time.monotonic() + GATE_DEADLINE_S
    while not os.path.exists(sys.argv[3]):
        if time.monotonic() > deadline:
            raise TimeoutError(sys.argv[3])
        time.sleep(0.005)
    return write_index(*arguments, **options)


logging.getLogger(LOGGER_NAME).addHandler(logging.StreamHandler(sys.stdout))
logging.getLogger(LOGGER_NAME).setLevel(logging.INFO)
resolve_module.write_index = wait_for_gate
intent_lock.RENEWAL_S = float(os.environ.get("TEST_RENEWAL_S", intent_lock.RENEWAL_S))
lock_owner.SILENCE_S = float(os.environ.get("TEST_SILENCE_S", lock_owner.SILENCE_S))
print("ready", flush=True)
sys.stdin.readline()
print("resolved to " + resolve_module.resolve_manifest_hash(sys.argv[1], manifest_store_root=sys.argv[2]), flush=True)
