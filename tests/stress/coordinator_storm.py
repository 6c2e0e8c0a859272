"""Run real shared jobs in which everything goes wrong, and say what did.

    python -m tests.stress.coordinator_storm [--jobs 20] [--first 0] [--work-s 20] [--seconds 30] [--keep FOLDER]

Four hosts (network namespaces, so it takes root): on three of them a member of etcd and a coordinator, on each a node
that runs ``penstock.run_job`` into one folder. Which fault comes when follows from a job's seed; what it hits then
doesn't, quite, as these are real processes. A failure names its seed and leaves its logs in the folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import penstock
from penstock.testing.hosts import Host, Network

ROOT = Path(__file__).parents[2]
SAMPLES = 1500
BLOCK = 50
BATCH = 10
TTL_S = 1.5
LEADER_TTL_S = 1.0
DRAIN_S = 90.0  # from the end of the faults; far more than it takes
START_S = 120.0  # seven programs, on a machine that others use as well
MOST_AT_ONCE = 3
TOKEN = "storm"


class Broken(Exception):
    """A job didn't hold what it must; the message names its seed."""


def text_of(sample: int) -> str:
    return f"sample {sample} " + "x" * (sample % 97)


class Program:
    """One that is killed, stopped, and started again with the same words."""

    def __init__(self, host: Host, name: str, command: list[str], folder: Path) -> None:
        self.host, self.name, self.command, self.log = host, name, command, folder / f"{name}.log"
        self.hit = False  # by a fault that isn't undone yet
        self.start()

    def start(self) -> None:
        environment = {**os.environ, "PENSTOCK_COORD_TOKEN": TOKEN, "PYTHONUNBUFFERED": "1"}
        with self.log.open("ab") as log:
            self.process = self.host.popen(self.command, stdout=log, stderr=log, cwd=ROOT, env=environment)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)

    @contextlib.contextmanager
    def killed(self) -> Iterator[None]:
        self.kill()
        yield
        self.start()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        self.process.send_signal(signal.SIGSTOP)
        yield
        self.process.send_signal(signal.SIGCONT)

    def said(self, pattern: str) -> list[str]:
        return re.findall(pattern, self.log.read_text(errors="replace"))

    def tail(self) -> str:
        return f"--- {self.name}\n{self.log.read_text(errors='replace')[-3000:]}"


class Ground:
    """What all jobs share: hosts, etcd's three members, and a dataset. A context manager."""

    def __init__(self, folder: Path, etcd: str) -> None:
        self.folder = folder
        self.network = Network(4)
        self.hosts = self.network.hosts
        members = list(enumerate(self.hosts[:3]))
        peers = ",".join(f"m{number}=http://{host.address}:2380" for number, host in members)
        self.etcd = [
            Program(host, f"m{number}", _etcd(etcd, f"m{number}", host.address, peers, folder), folder)
            for number, host in members
        ]
        self.journal = "etcd://" + ",".join(f"{host.address}:2379" for _, host in members)
        (folder / "files").mkdir()
        for sample in range(SAMPLES):
            (folder / "files" / f"{sample:05}.txt").write_text(text_of(sample))
        self.dataset = folder / "packed"
        penstock.pack_dir(str(folder / "files"), out=str(self.dataset))

    def __enter__(self) -> Ground:
        return self

    def __exit__(self, *_: object) -> None:
        self.network.close()
        for member in self.etcd:
            member.kill()


def _etcd(program: str, name: str, address: str, peers: str, folder: Path) -> list[str]:
    url, peer = f"http://{address}:2379", f"http://{address}:2380"
    return [
        *(program, "--name", name, "--data-dir", str(folder / name), "--unsafe-no-fsync"),
        *("--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", peer),
        *("--initial-advertise-peer-urls", peer, "--initial-cluster", peers),
        *("--heartbeat-interval", "50", "--election-timeout", "500"),
    ]


class Storm:
    """One job, and what happens to it.

    Args:
        ground: where.
        seed: of what goes wrong.
        work_s: how long the job takes where nothing does.
    """

    def __init__(self, ground: Ground, seed: int, work_s: float) -> None:
        self.ground, self.seed, self.random = ground, seed, random.Random(seed)
        self.folder = ground.folder / f"job{seed}"
        self.folder.mkdir()
        self.counts: Counter[str] = Counter()
        self.addresses = [f"{host.address}:{7000 + seed % 1000}" for host in ground.hosts[:3]]
        self.coordinators: list[Program] = []
        self.nodes: list[Program] = []
        try:
            for number, host in enumerate(ground.hosts[:3]):
                command = self._coordinator(self.addresses[number])
                self.coordinators.append(Program(host, f"c{number}", command, self.folder))
            for number, host in enumerate(ground.hosts):
                self.nodes.append(Program(host, f"n{number}", self._node(number, work_s), self.folder))
        except BaseException:
            self.end()
            raise

    def _coordinator(self, address: str) -> list[str]:
        return [
            *(sys.executable, "-X", "faulthandler", "-m", "penstock", "coordinator", f"--addr={address}"),
            *(f"--job-id=job{self.seed}", f"--journal={self.ground.journal}", f"--dataset-link={self.ground.dataset}"),
            *(f"--manifest-store-root={self.ground.folder / 'manifests'}", "--world-size=4", f"--seed={self.seed}"),
            *("--shuffle", f"--dev-block-size={BLOCK}", f"--lease-ttl-ms={TTL_S * 1000:.0f}"),
            *("--heartbeat-interval-ms=300", f"--leader-ttl-ms={LEADER_TTL_S * 1000:.0f}", "--steal"),
        ]

    def _node(self, number: int, work_s: float) -> list[str]:
        loader = {
            "coord_url": ",".join(f"http://{address}" for address in self.addresses),
            "job_id": f"job{self.seed}",
            "node_id": f"n{number}",
            "token": TOKEN,
            "want": 1 + number % 2,
            "batch_size_samples": BATCH,
            "progress_interval_ms": 200,
            "manifest_store_root": str(self.folder / f"manifests{number}"),
        }
        options = {
            "loader": loader,
            "out": str(self.folder / "out"),
            "slow": str(self.folder / f"slow{number}"),
            "batch_s": work_s * 4 * BATCH / SAMPLES,
        }
        return [sys.executable, "-m", "tests.stress.storm_node", json.dumps(options)]

    # The faults: each begins, and is undone when its context ends.

    @contextlib.contextmanager
    def _hit(self, program: Program, how: contextlib.AbstractContextManager[None]) -> Iterator[None]:
        program.hit = True
        with how:
            yield
        program.hit = False

    def leader(self) -> Program:
        """The coordinator that led last."""
        return max(self.coordinators, key=_last_term)

    def fault(self, kind: str, whom_drawn: float) -> contextlib.AbstractContextManager[None] | None:
        """One to begin now; None where there is nothing that it could hit."""
        what, _, whom = kind.partition("_")
        if whom == "host":
            return self._cut(self.ground.hosts[int(whom_drawn * 4)], one_way=what == "mute")
        among = {"node": self.nodes, "leader": [self.leader()], "coordinator": self.coordinators}
        free = [one for one in among.get(whom, self.ground.etcd) if not one.hit and one.process.poll() is None]
        if not free:
            return None
        program = free[int(whom_drawn * len(free))]
        how = {"kill": program.killed, "stop": program.stopped, "slow": lambda: self._slow(program)}[what]
        return self._hit(program, how())

    @contextlib.contextmanager
    def _slow(self, node: Program) -> Iterator[None]:
        flag = self.folder / f"slow{node.name[1:]}"
        flag.touch()
        yield
        flag.unlink()

    @contextlib.contextmanager
    def _cut(self, cut: Host, *, one_way: bool) -> Iterator[None]:
        """Nothing passes between a host and the others; ``one_way``, it still hears them."""
        rest = [host for host in self.ground.hosts if host is not cut]
        self.ground.network.partition([cut], rest, one_way=one_way)
        yield
        self.ground.network.heal()

    KINDS = (
        *("kill_node", "kill_node", "kill_leader", "kill_leader", "kill_coordinator", "kill_etcd", "stop_etcd"),
        *("stop_node", "stop_leader", "slow_node", "cut_host", "mute_host"),
    )

    # The job

    def begin(self) -> None:
        """Until somebody works: all nodes are there."""
        out, until = self.folder / "out", time.monotonic() + START_S
        while not any(out.glob("part-*")):
            self._check_living()
            if time.monotonic() > until:
                raise self._broken(f"nobody worked within {START_S:g} s")
            time.sleep(0.02)

    def rage(self, seconds: float) -> None:
        """Faults, until the job is done on some node, or for so long."""
        held: list[tuple[float, str, contextlib.ExitStack]] = []
        until, next_s = time.monotonic() + seconds, 0.0
        try:
            while (now := time.monotonic()) < until and not self._ended():
                for one in [one for one in held if one[0] <= now]:
                    held.remove(one)
                    one[2].close()
                if now >= next_s and len(held) < MOST_AT_ONCE:
                    next_s = now + self.random.uniform(0.1, 0.9)
                    self._begin_fault(held, now + self.random.uniform(0.1, 1.7 * TTL_S))
                self._check_living()
                time.sleep(0.02)
        finally:
            for *_, stack in held:
                stack.close()

    def _begin_fault(self, held: list[tuple[float, str, contextlib.ExitStack]], undo_s: float) -> None:
        kind, whom_drawn = self.random.choice(self.KINDS), self.random.random()
        if kind.endswith("host") and any(other.endswith("host") for _, other, _ in held):
            return
        fault = self.fault(kind, whom_drawn)
        if fault is not None:
            stack = contextlib.ExitStack()
            stack.enter_context(fault)
            held.append((undo_s, kind, stack))
            self.counts[kind] += 1

    def drain(self) -> None:
        """Without faults it ends, on all nodes."""
        until = time.monotonic() + DRAIN_S
        while not all(node.process.poll() == 0 for node in self.nodes):
            self._check_living()
            if time.monotonic() > until:
                self._tell_stacks()
                raise self._broken(f"it isn't drained {DRAIN_S:g} s after the last fault")
            time.sleep(0.05)

    def check(self) -> None:
        """The parts that count hold each sample once, and what it was."""
        out = self.folder / "out"
        told = json.loads((out / "_SUCCESS.json").read_text())
        found = []
        for part in told["parts"]:
            text = (out / part["name"]).read_bytes()
            if len(text) != part["bytes"]:
                raise self._broken(f"{part['name']} has {len(text)} bytes")
            found += map(json.loads, text.decode().splitlines())
        if found != [[sample, text_of(sample)] for sample in range(SAMPLES)]:
            times = Counter(sample for sample, _ in found)
            wrong = {sample: times[sample] for sample in range(SAMPLES) if times[sample] != 1}
            raise self._broken(f"the output isn't each sample once, as it was; there too often or never: {wrong}")
        for one in self.coordinators:
            if bad := one.said(r".*(?:overlap_detected|Traceback|couldn't be decided).*"):
                raise self._broken(f"{one.name} said {bad[0]}")
        self._count_what_happened()

    def _count_what_happened(self) -> None:
        for event in ("leading", "lease_expired", "range_requeued"):
            self.counts[f"({event})"] += sum(len(one.said(rf"event={event}\b")) for one in self.coordinators)
        self.counts["(lease_lost)"] += sum(len(one.said(r"event=lease_lost\b")) for one in self.nodes)

    def _ended(self) -> bool:
        return any(node.process.poll() == 0 for node in self.nodes)

    def _check_living(self) -> None:
        """Whoever we didn't kill lives, or is done."""
        for one in (*self.nodes, *self.coordinators, *self.ground.etcd):
            code = one.process.poll()
            if code is not None and not one.hit and not (code == 0 and one in self.nodes):
                raise self._broken(f"{one.name} ended by itself with {code}")

    def _tell_stacks(self) -> None:
        for node in self.nodes:
            if node.process.poll() is None:
                node.process.send_signal(signal.SIGUSR1)
        for one in self.coordinators:
            one.process.send_signal(signal.SIGABRT)
        time.sleep(1.0)  # to write them

    def _broken(self, what: str) -> Broken:
        tails = "\n".join(one.tail() for one in (*self.coordinators, *self.nodes))
        return Broken(f"job {self.seed}: {what}; after {dict(self.counts)}; logs in {self.folder}\n{tails}")

    def end(self) -> None:
        for one in (*self.nodes, *self.coordinators):
            one.kill()


def _last_term(coordinator: Program) -> int:
    return max(map(int, coordinator.said(r"event=leading\b.*?term=(\d+)")), default=0)


def run_storm(ground: Ground, seed: int, *, work_s: float, seconds: float) -> Counter[str]:
    """One job.

    Returns:
        How often what was done to it; in brackets, what came of that.

    Raises:
        Broken: it didn't hold what it must.
    """
    storm = Storm(ground, seed, work_s)
    try:
        storm.begin()
        storm.rage(seconds)
        storm.drain()
        storm.check()
    finally:
        storm.end()
    return storm.counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--work-s", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--keep", type=Path, default=None)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    from tests.etcd_server import find_etcd

    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="coordinator-storm-"))
    folder.mkdir(parents=True, exist_ok=True)
    started, total, failures = time.monotonic(), Counter[str](), 0
    with Ground(folder, find_etcd() or "etcd") as ground:
        for seed in range(arguments.first, arguments.first + arguments.jobs):
            began = time.monotonic()
            try:
                counts = run_storm(ground, seed, work_s=arguments.work_s, seconds=arguments.seconds)
            except Broken as error:
                failures += 1
                print(error, flush=True)
                continue
            total += counts
            print(f"job {seed}: {time.monotonic() - began:.0f} s, {dict(counts)}", flush=True)
    faults = sum(count for kind, count in total.items() if not kind.startswith("("))
    print(f"{arguments.jobs} jobs, {failures} failed, {faults} faults in {time.monotonic() - started:.0f} s")
    print(", ".join(f"{count:,} {kind}" for kind, count in total.most_common()))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
