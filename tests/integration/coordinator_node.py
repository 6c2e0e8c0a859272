"""A node of a shared job in a process of its own, over plain gRPC: it prints a JSON line for each step.

``python -m tests.integration.coordinator_node ADDR NODE_ID [hold | paced]``; with ``hold`` it goes half through its
first lease, and lives on without a word until it is killed; ``paced``, it waits for a line before the second half of
each lease, until there are no more.
"""

from __future__ import annotations

import json
import sys
import threading
import time

import grpc
from tests.coordinators import Node

STEPS = 4
RETRY_S = 0.05


def say(**fields):
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def retried(call, *arguments, **fields):
    """As MX8's clients: what is transient is tried again."""
    until = time.monotonic() + 20
    while True:
        try:
            return call(*arguments, **fields)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > until:
                raise
            time.sleep(RETRY_S)


def heartbeats(addr, node_id, interval_s):
    node = Node(addr, node_id)
    while True:
        retried(node.heartbeat)
        time.sleep(interval_s)


def finish(node, lease, mode):
    """Reports a lease step by step; a lost one ends quietly, as its samples are somebody else's."""
    start, end = lease.range.start_id, lease.range.end_id
    for step in range(1, STEPS + 1):
        cursor = start + (end - start) * step // STEPS
        try:
            retried(node.report, lease, cursor)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return
        say(event="done", start=start + (end - start) * (step - 1) // STEPS, end=cursor)
        if step == STEPS // 2 and mode:
            say(event="holding", lease=lease.lease_id)
            threading.Event().wait() if mode == "hold" else sys.stdin.readline()


def main(addr, node_id, mode=""):
    node = Node(addr, node_id)
    while not (told := retried(node.register)).job_ready:
        time.sleep(0.02)
    interval_s = told.heartbeat_interval_ms / 1000
    threading.Thread(target=heartbeats, args=(addr, node_id, interval_s), daemon=True).start()
    while not (granted := retried(node.request)).job_drained:
        for lease in granted.leases:
            say(event="lease", lease=lease.lease_id, start=lease.range.start_id, end=lease.range.end_id)
            finish(node, lease, mode)
        time.sleep(granted.wait_ms / 5000)
    say(event="drained")


if __name__ == "__main__":
    main(*sys.argv[1:])
