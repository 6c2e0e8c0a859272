"""A job in a world where everything goes wrong, and all of it follows from one seed.

No threads, no real time: a heap of what happens next. Nodes and leaders have clocks that agree on nothing; a network
delays, loses, repeats and reorders what they say, both ways; leaders die before and after they have written, are
replaced from the journal's texts, or go on without knowing that they were; nodes crash, leave, are paused, come back as
other processes, or stand still. At last the faults stop, and the job must drain.

An auditor who knows nothing of the rules' insides looks at what was granted, accepted and handed out:

- no two leases overlap, none holds what is committed, and fences grow, from leader to leader too;
- a sample is committed once in an epoch, and an accepted cursor never goes back;
- what a node hands out under a lease that is live by its own clock, nobody else was given (where clocks only drift);
- the parts of output that stand hold each sample once, and are the ones that were committed.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.stress.simulated_node import Clock, SimulatedNode

from penstock.coordinator.draft import Changes
from penstock.coordinator.events import Done, Event, Granted, GrantedLease, Progress, Recover, Reply, Tick
from penstock.coordinator.rules import Outcome, apply, begin
from penstock.coordinator.state import Job, State, Terms, load_records, read_record, write_record
from penstock.distributed.parts import Part, gaps, standing

__all__ = ["Unfair", "World", "run_world"]

Answer = Callable[[Reply], None]


class Unfair(AssertionError):
    """Something that must never be."""


@dataclass
class Granting:
    """A lease, as the auditor knows it from what was told."""

    lease: GrantedLease
    cursor: int


class Auditor:
    """Sees every answer that a leader was allowed to give."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.granted: dict[str, Granting] = {}
        self.live: set[str] = set()
        self.by: dict[tuple[int, int], int] = {}  # epoch, sample -> fence it was committed under
        self.fence = 0
        self.ended: dict[str, str] = {}  # lease -> why, where it wasn't completed
        self.drained = 0

    def hear(self, event: Event, outcome: Outcome) -> None:
        for note in outcome.notes:
            fields = dict(note.fields)
            if note.event == "lease_expired":
                self.ended[str(fields["lease"])] = f"{fields['why']} ({event})"
            self.drained += note.event == "job_drained"
        self.live -= {key[6:] for key, record in outcome.changes.items() if key.startswith("lease/") and record is None}
        if isinstance(outcome.reply, Granted):
            for lease in outcome.reply.leases:
                if lease.lease_id not in self.granted:
                    self.grant(lease)
        if isinstance(event, Progress) and isinstance(outcome.reply, Done):
            self.commit(self.granted[event.lease_id], event.cursor)

    def grant(self, lease: GrantedLease) -> None:
        if lease.fence <= self.fence:
            raise Unfair(f"fence {lease.fence} after {self.fence}")
        self.fence = lease.fence
        for sample in range(lease.start, lease.end):
            if (lease.epoch, sample) in self.by:
                raise Unfair(f"sample {sample} is granted, but committed")
        for other in self.live:
            known = self.granted[other].lease
            if lease.start < known.end and self.granted[other].cursor < lease.end and lease.epoch == known.epoch:
                raise Unfair(f"{lease.lease_id} overlaps {other}")
        self.granted[lease.lease_id] = Granting(lease, lease.cursor)
        self.live.add(lease.lease_id)

    def commit(self, granting: Granting, cursor: int) -> None:
        lease = granting.lease
        if granting.cursor == lease.end:
            return  # it was completed; that an earlier report comes late changes nothing
        if cursor < granting.cursor:
            raise Unfair(f"{lease.lease_id} goes back from {granting.cursor} to {cursor}")
        for sample in range(granting.cursor, cursor):
            if (lease.epoch, sample) in self.by:
                raise Unfair(f"sample {sample} is committed twice")
            self.by[lease.epoch, sample] = lease.fence
        granting.cursor = cursor


@dataclass
class Leader:
    """A coordinator: what it was told waits until it writes, and what it answers is written before."""

    term: int
    state: State
    clock: Clock
    alive: bool = True
    inbox: list[tuple[Event, Answer]] = field(default_factory=list)


class World:
    """See the module. ``confirms=False`` lets a stale leader answer where nothing is to be written: a mutant."""

    def __init__(self, seed: int, *, confirms: bool = True) -> None:
        self.seed, self.confirms = seed, confirms
        self.rng = rng = random.Random(seed)
        self.now = 0.0
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.counts: Counter[str] = Counter()
        self.journal: dict[str, str] = {}
        self.term = 0
        self.leaders: list[Leader] = []
        self.parts: set[Part] = set()
        self.auditor = Auditor(self)
        self.honest_clocks = rng.random() < 0.7
        self.fenced = rng.random() < 0.8
        self.fault_s = rng.uniform(4, 25)
        self.loss = self.repeat = 0.0
        self.delay_s = 0.02
        self.cut: set[str] = set()
        self.gone: set[str] = set()
        self.ttl_s = rng.uniform(2, 5)
        self.beat_s, self.report_s = self.ttl_s / 4, self.ttl_s / rng.uniform(3, 6)
        self.step_s, self.want, self.batch = rng.uniform(0.2, 1.0), rng.randint(1, 3), rng.randint(1, 4)
        world_size, samples = rng.randint(1, 4), rng.choice([10, 40, 80]) - rng.randint(0, 9)
        done = ((0, samples // 4),) if rng.random() < 0.2 and samples >= 4 else ()
        self.job = Job("m" * 64, samples, rng.randint(1, 25), rng.random() < 0.5, seed, 0, 1, world_size, done)
        if rng.random() < 0.15:
            self.job = Job("m" * 64, max(1, samples // 2), 5, True, seed, 3, 2, world_size)
        # A node can always do a batch, and say so, in less: else it is right that the job never drains.
        idle_s = rng.choice([600.0, max(self.ttl_s, 3 * self.step_s + 2 * self.report_s)])
        self.terms = Terms(self.ttl_s, self.beat_s, idle_s, steal=rng.random() < 0.3, wait_s=0.3)
        self.elect()
        self.nodes = {f"n{rank}": SimulatedNode(self, f"n{rank}", "0") for rank in range(world_size)}
        self.instances = itertools.count(1)
        self.after(rng.expovariate(1.0), self.fault)

    # Time.

    def at(self, when: float, do: Callable[[], None]) -> None:
        heapq.heappush(self.heap, (when, next(self.numbers), do))

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        self.at(self.now + seconds, do)

    def run(self) -> None:
        """Until the job is drained.

        Raises:
            Unfair: it broke a promise, or doesn't drain.
        """
        limit_s = self.fault_s + 60 + 40 * self.ttl_s + 10 * self.job.samples * self.job.epochs * self.step_s
        while not self.drained():
            if not self.heap or self.heap[0][0] > limit_s:
                raise Unfair(f"not drained {limit_s - self.fault_s:.0f} s after the last fault")
            self.now, _, do = heapq.heappop(self.heap)
            do()
        self.check_end()

    def drained(self) -> bool:
        return '"phase":"drained"' in self.journal["course"]

    def check_end(self) -> None:
        epochs = range(self.job.epoch, self.job.epoch + self.job.epochs)
        before = {(self.job.epoch, each) for start, end in self.job.done for each in range(start, end)}
        missing = (
            {(epoch, each) for epoch in epochs for each in range(self.job.samples)} - before - set(self.auditor.by)
        )
        if missing:
            raise Unfair(f"drained, but never committed: {sorted(missing)[:5]}")
        if self.auditor.drained != 1:
            raise Unfair(f"drained {self.auditor.drained} times")
        stand = standing(self.parts)
        for part in stand:
            for sample in range(part.start, part.end):
                if self.auditor.by.get((part.epoch, sample)) != part.fence:
                    raise Unfair(f"{part} stands, but wasn't committed")
        for epoch in epochs:
            own = [part for part in stand if part.epoch == epoch]
            earlier = [Part(epoch, start, end, 0) for start, end in (self.job.done if epoch == self.job.epoch else ())]
            if gaps([*own, *earlier], self.job.samples):
                raise Unfair("parts are missing")
            if any(one.end > other.start for one, other in itertools.pairwise(own)):
                raise Unfair("parts overlap")

    # Leaders.

    def elect(self) -> None:
        """Somebody new leads, from the texts of the journal alone."""
        self.term += self.rng.randint(1, 1000)
        self.counts["leaders"] += 1
        records = {key: read_record(key, text) for key, text in self.journal.items()}
        clock = Clock.of(self.rng)
        state = load_records(records, self.terms)
        if state is None:
            outcome = begin(self.job, self.terms)
            self.write(outcome.changes)
            state = outcome.state
        leader = Leader(self.term, state, clock)
        self.leaders = [each for each in self.leaders if each.alive] + [leader]
        self.take(leader, Recover(self.term), lambda reply: None)
        self.flush(leader)
        self.tick(leader)

    def any_leader(self) -> Leader:
        """Whoever a node finds: the one that leads, or one that believes so."""
        return self.rng.choice(self.leaders)

    def tick(self, leader: Leader) -> None:
        if leader.alive:
            self.take(leader, Tick(), lambda reply: None)
            self.after(self.ttl_s / 12, lambda: self.tick(leader))

    def take(self, leader: Leader, event: Event, answer: Answer) -> None:
        """What comes while it writes is written together, a little later."""
        if not leader.alive:
            return
        leader.inbox.append((event, answer))
        if len(leader.inbox) == 1:
            self.after(self.rng.uniform(0.0, 0.03), lambda: self.flush(leader))

    def flush(self, leader: Leader) -> None:
        if not leader.alive or not leader.inbox:
            return
        inbox, leader.inbox = leader.inbox, []
        changes: Changes = {}
        answers, state = [], leader.state
        for event, answer in inbox:
            outcome = apply(state, event, leader.clock.read(self.now))
            state = outcome.state
            changes.update(outcome.changes)
            answers.append((event, outcome, answer))
        leads = leader.term == self.term
        if not leads and (changes or self.confirms):
            leader.alive = False  # its journal said so; nobody hears of what it would have done
            self.counts["stale leaders"] += 1
            return
        leader.state = state
        if leads:
            self.write(changes)
            dies = self.now < self.fault_s and self.rng.random() < 0.004
        for event, outcome, answer in answers:
            self.counts["events"] += 1
            if leads:
                self.auditor.hear(event, outcome)
            if not (leads and dies):
                answer(outcome.reply)
        if leads and dies:
            self.kill(leader)

    def write(self, changes: Changes) -> None:
        for key, record in changes.items():
            if record is None:
                self.journal.pop(key, None)
            else:
                self.journal[key] = write_record(record)

    def kill(self, leader: Leader) -> None:
        self.counts["leaders killed"] += 1
        leader.alive = False
        if leader.term == self.term:
            self.after(self.rng.uniform(0, self.ttl_s * 1.5), lambda: self.elect() if self.headless() else None)

    def headless(self) -> bool:
        return not any(each.alive and each.term == self.term for each in self.leaders)

    # The network.

    def send(self, node: SimulatedNode, leader: Leader, event: Event, answer: Answer) -> None:
        def back(reply: Reply) -> None:
            self.carry(node, lambda: answer(reply))

        self.carry(node, lambda: self.take(leader, event, back))

    def carry(self, node: SimulatedNode, deliver: Callable[[], None]) -> None:
        if node.node_id in self.cut or self.rng.random() < self.loss:
            self.counts["lost"] += 1
            return
        copies = 1
        while self.rng.random() < self.repeat:
            copies += 1
            self.counts["repeated"] += 1
        for _ in range(copies):
            self.after(self.rng.expovariate(1 / self.delay_s), deliver)

    # What nodes do under a lease.

    def hand_out(self, node: SimulatedNode, lease: GrantedLease) -> None:
        """A node gives samples to its consumer: nobody else may have been given them by now."""
        if self.honest_clocks and f"lease/{lease.lease_id}" not in self.journal:
            why = self.auditor.ended.get(lease.lease_id, "completed")
            raise Unfair(f"{node.node_id} hands out {lease.lease_id}, which has ended: {why}")

    # What goes wrong.

    def fault(self) -> None:
        if self.now > self.fault_s:
            self.heal()
            return
        kinds = [self.storm, self.calm, self.part, self.join, self.kill_leader, self.usurp, self.crash, self.pause]
        kinds += [self.leave, self.stand_still, self.zombie] + ([] if self.honest_clocks else [self.jump])
        kind = self.rng.choice(kinds)
        self.counts[kind.__name__] += 1
        kind()
        self.after(self.rng.expovariate(1 / 1.2), self.fault)

    def heal(self) -> None:
        """Nothing goes wrong any more. Who is dead is started again, or never, if the others can do without."""
        self.calm()
        self.cut.clear()
        if self.headless():
            self.elect()
        for node in self.nodes.values():
            node.stuck_until = 0.0
        if '"phase":"running"' in self.journal["course"] and self.rng.random() < 0.5:
            survivor = self.some_node().node_id
            self.gone = set(self.nodes) - {survivor}
            for node_id in self.gone:
                self.nodes[node_id].crash()
        for node_id in self.nodes:
            self.restart(node_id, 0.0)

    def some_node(self) -> SimulatedNode:
        return self.nodes[self.rng.choice(sorted(self.nodes))]

    def storm(self) -> None:
        self.loss, self.repeat = self.rng.uniform(0, 0.5), self.rng.uniform(0, 0.5)
        self.delay_s = self.rng.choice([0.05, 0.3, self.ttl_s])

    def calm(self) -> None:
        self.loss = self.repeat = 0.0
        self.delay_s = 0.02

    def part(self) -> None:
        self.cut.add(self.some_node().node_id)

    def join(self) -> None:
        self.cut.clear()

    def kill_leader(self) -> None:
        self.kill(self.leaders[-1])

    def usurp(self) -> None:
        """Another one leads, and the one before doesn't know."""
        self.elect()

    def crash(self) -> None:
        node = self.some_node()
        node.crash()
        if self.rng.random() < 0.8:
            self.restart(node.node_id, self.rng.uniform(0, 2 * self.ttl_s))

    def pause(self) -> None:
        self.some_node().paused_until = self.now + self.rng.uniform(0, 2 * self.ttl_s)

    def zombie(self) -> None:
        """It stands still for a while, is given up and replaced, and goes on."""
        node = self.some_node()
        node.paused_until = self.now + self.rng.uniform(0, 2 * self.ttl_s)
        self.replace(node.node_id)

    def leave(self) -> None:
        node = self.some_node()
        if node.alive:
            node.leave()
            self.restart(node.node_id, self.rng.uniform(0, 3 * self.ttl_s))

    def stand_still(self) -> None:
        self.some_node().stuck_until = self.now + self.rng.uniform(0, 3 * self.ttl_s)

    def jump(self) -> None:
        """Somebody's clock: ahead, and a node's back as well, as if its machine had slept."""
        if self.rng.random() < 0.5:
            self.leaders[-1].clock.offset_s += self.rng.uniform(0, 3 * self.ttl_s)
        else:
            self.some_node().clock.offset_s += self.rng.uniform(-3 * self.ttl_s, 3 * self.ttl_s)

    def restart(self, node_id: str, seconds: float) -> None:
        def come_back() -> None:
            if not self.nodes[node_id].alive and node_id not in self.gone:
                self.replace(node_id)

        self.after(seconds, come_back)

    def replace(self, node_id: str) -> None:
        self.nodes[node_id] = SimulatedNode(self, node_id, str(next(self.instances)))


def run_world(seed: int, *, confirms: bool = True) -> Counter[str]:
    """What happened in it, by kind. Raises Unfair, naming the seed."""
    world = World(seed, confirms=confirms)
    try:
        world.run()
    except Unfair as error:
        raise Unfair(f"world {seed}: {error} (at {world.now:.2f} s)") from None
    return world.counts
