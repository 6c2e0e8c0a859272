"""What a job of many nodes costs its coordinator: the rules alone, and what they would have a journal write.

    python bench/coordinator_scale.py [--nodes 10000] [--samples 1000000000] [--block 65536] [--rate 1000]

A world of nodes that register, take leases, report each ``--report-s`` and take the next ones, in simulated time, until
5 % of them die at once and the others do the rest. No network and no disk: processor time of ``rules.apply`` and of
writing records as text, bytes of those records, as one line for each, and the size of this process.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import itertools
import json
import random
import resource
import time
from collections import defaultdict
from typing import Any

from penstock.coordinator.events import Event, Granted, Heartbeat, Leave, Progress, Register, RequestLease, Tick
from penstock.coordinator.rules import apply, begin
from penstock.coordinator.state import Caps, Job, Terms, write_record

CAPS = Caps(32, 8, 1 << 30, 1 << 30)


class Coordinator:
    """Applies events, and counts what each kind costs."""

    def __init__(self, job: Job, terms: Terms) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.worst: dict[str, float] = defaultdict(float)
        self.writing_s: dict[str, float] = defaultdict(float)
        self.journal_bytes: dict[str, int] = defaultdict(int)
        self.counts: dict[str, int] = defaultdict(int)
        self.live: dict[str, int] = {}
        self.live_bytes = self.most_live_bytes = 0
        self.state = begin(job, terms).state

    def do(self, event: Event, now: float, kind: str = "") -> Any:
        kind = kind or type(event).__name__
        started = time.process_time()
        outcome = apply(self.state, event, now)
        applied = time.process_time()
        self.state = outcome.state
        lines = {key: None if record is None else write_record(record) for key, record in outcome.changes.items()}
        written = time.process_time()
        self.seconds[kind] += applied - started
        self.worst[kind] = max(self.worst[kind], applied - started)
        self.writing_s[kind] += written - applied
        self.counts[kind] += 1
        for key, text in lines.items():
            size = len(key) + (len(text) if text else 0) + 20  # length, checksum, separators
            self.journal_bytes[kind] += size
            self.live_bytes += (size if text else 0) - self.live.pop(key, 0)
            if text:
                self.live[key] = size
        self.most_live_bytes = max(self.most_live_bytes, self.live_bytes)
        return outcome.reply


class Fleet:
    """Nodes that work at one speed, give or take a tenth, in simulated time."""

    def __init__(self, coordinator: Coordinator, arguments: argparse.Namespace) -> None:
        self.coordinator, self.arguments = coordinator, arguments
        self.rng = random.Random(1)
        self.heap: list[tuple[float, int, str, str]] = []
        self.order = itertools.count()
        self.held: dict[str, list[list[Any]]] = defaultdict(list)  # node -> [lease, cursor]
        self.rates: dict[str, float] = {}
        self.dead: set[str] = set()
        self.asks_at: dict[str, float] = defaultdict(float)
        self.now = 0.0

    def plan(self, when: float, what: str, node: str = "") -> None:
        heapq.heappush(self.heap, (when, next(self.order), what, node))

    def gather(self) -> None:
        names = [f"node-{at:05}" for at in range(self.arguments.nodes)]
        self.rng.shuffle(names)
        for name in names:
            self.now += 1e-4
            self.coordinator.do(Register("job", name, CAPS, f"i-{name}"), self.now)
        for name in names:  # each asks once more, as all do until the last one has come
            self.coordinator.do(Register("job", name, CAPS, f"i-{name}"), self.now, "Register again")
            self.rates[name] = self.arguments.rate * self.rng.uniform(0.9, 1.1)
            self.plan(self.now + self.rng.random() * self.arguments.report_s, "report", name)
            self.plan(self.now + self.rng.random() * self.arguments.beat_s, "beat", name)
        self.plan(self.now, "tick")

    def run(self, dying_share: float) -> tuple[float, float]:
        """Until all is done. Gives when some died, and when it was drained."""
        deaths_at, samples = 0.0, self.coordinator.state.job.samples
        while self.coordinator.state.course.phase == "running":
            self.now, _, what, node = heapq.heappop(self.heap)
            getattr(self, what)(node)
            if not deaths_at and what == "tick" and self.reported >= samples * 0.5:
                deaths_at = self.now
                self.dead.update(self.rng.sample(sorted(self.rates), int(len(self.rates) * dying_share)))
        return deaths_at, self.now

    reported = 0

    def tick(self, _: str) -> None:
        self.coordinator.do(Tick(), self.now)
        self.plan(self.now + 1.0, "tick")

    def beat(self, node: str) -> None:
        if node not in self.dead:
            self.coordinator.do(Heartbeat("job", node, {}, f"i-{node}"), self.now)
            self.plan(self.now + self.arguments.beat_s, "beat", node)

    def report(self, node: str) -> None:
        if node in self.dead:
            return
        done = int(self.rates[node] * self.arguments.report_s)
        for entry in list(self.held[node]):
            lease, cursor = entry
            to = min(lease.end, cursor + done)
            done -= to - cursor
            self.reported += to - cursor
            entry[1] = to
            event = Progress("job", node, lease.lease_id, to, to - cursor, 0, f"i-{node}", lease.fence)
            self.coordinator.do(event, self.now, "Progress to the end" if to == lease.end else "Progress")
            if to == lease.end:
                self.held[node].remove(entry)
        missing = self.arguments.want - len(self.held[node])
        if missing and self.now >= self.asks_at[node]:
            event = RequestLease("job", node, missing, f"i-{node}", f"r{next(self.order)}")
            reply = self.coordinator.do(event, self.now)
            assert isinstance(reply, Granted)
            self.held[node] += [[lease, lease.start] for lease in reply.leases]
            self.asks_at[node] = self.now + reply.wait_s
        self.plan(self.now + self.arguments.report_s, "report", node)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=10**9)
    parser.add_argument("--block", type=int, default=65536)
    parser.add_argument("--want", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1000.0, help="samples a second of a node")
    parser.add_argument("--report-s", type=float, default=0.5)
    parser.add_argument("--beat-s", type=float, default=1.0)
    parser.add_argument("--dying", type=float, default=0.05)
    arguments = parser.parse_args()
    base_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    job = Job("m" * 64, arguments.samples, arguments.block, True, 7, 0, 1, arguments.nodes)
    coordinator = Coordinator(job, Terms())
    gc.freeze()
    fleet = Fleet(coordinator, arguments)
    fleet.gather()
    started_s = fleet.now
    died_s, drained_s = fleet.run(arguments.dying)
    for node in sorted(fleet.rates)[: min(1000, arguments.nodes)]:
        coordinator.do(Leave("job", node, f"i-{node}"), fleet.now)
    report(coordinator, drained_s - started_s, drained_s - died_s, base_bytes)


def report(coordinator: Coordinator, ran_s: float, drained_in_s: float, base_bytes: int) -> None:
    rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{'event':<22}{'count':>10}{'us each':>9}{'worst ms':>10}{'us writing':>11}{'bytes each':>11}")
    for kind, count in coordinator.counts.items():
        print(
            f"{kind:<22}{count:>10,}{coordinator.seconds[kind] / count * 1e6:>9.1f}"
            f"{coordinator.worst[kind] * 1e3:>10.2f}"
            f"{coordinator.writing_s[kind] / count * 1e6:>11.1f}{coordinator.journal_bytes[kind] / count:>11.0f}"
        )
    gathering = sum(coordinator.seconds[kind] + coordinator.writing_s[kind] for kind in ("Register", "Register again"))
    spent = sum(coordinator.seconds.values()) + sum(coordinator.writing_s.values()) - gathering
    figures = {
        "gathering_cpu_s": round(gathering, 2),
        "running_cpu_s": round(spent, 1),
        "ran_s": round(ran_s, 1),
        "cores": round(spent / ran_s, 3),
        "drained_after_deaths_s": round(drained_in_s, 1),
        "rss_mib": rss_bytes >> 20,
        "rss_before_mib": base_bytes >> 20,
        "journal_mib": round(sum(coordinator.journal_bytes.values()) / (1 << 20), 1),
        "most_live_journal_mib": round(coordinator.most_live_bytes / (1 << 20), 2),
        "leases": coordinator.state.course.issued,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
