"""A node of the simulated job: a loader's part in it, as a state machine that only messages and time drive.

What it holds, may hand out and must tell is decided by the loaders' own ``Holding``. Like ``run_job`` it writes what it
made of a batch before it says that the batch is done. It may ask a leader that isn't one any more, and about several
leases at a time, in whatever order the answers come.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penstock.coordinator.events import (
    Event,
    Granted,
    GrantedLease,
    Heartbeat,
    Leave,
    Progress,
    Refused,
    Register,
    Registered,
    Reply,
    RequestLease,
)
from penstock.coordinator.holding import Answer, Holding, Portion, Report
from penstock.coordinator.state import Caps
from penstock.distributed.parts import Part

if TYPE_CHECKING:
    from tests.stress.coordinator_world import World

DRIFT = 0.02
"""A clock is too fast or too slow by this at most; ``Holding`` allows for two of them."""

PATIENCE_S = 1.0
"""How long a node waits for an answer."""


@dataclass
class Clock:
    """Seconds of somebody's own: from another zero, and not quite as long."""

    offset_s: float
    rate: float

    @classmethod
    def of(cls, rng: random.Random) -> Clock:
        return cls(rng.uniform(-1e6, 1e6), rng.uniform(1 - DRIFT, 1 + DRIFT))

    def read(self, now: float) -> float:
        return self.offset_s + self.rate * now


class SimulatedNode:
    """One process. A crash is the end of it; what comes back is another one."""

    def __init__(self, world: World, node_id: str, instance: str) -> None:
        self.world, self.node_id, self.instance = world, node_id, instance
        self.rng = world.rng
        self.clock = Clock.of(world.rng)
        self.leader = world.any_leader()
        self.alive = True
        self.paused_until = 0.0
        self.stuck_until = 0.0
        self.drained = False
        self.holding = Holding()
        self.leases: dict[int, GrantedLease] = {}  # by the number that its holding gave it
        self.handed: dict[int, int] = {}
        self.in_hand: Portion | None = None
        self.reporting: set[int] = set()
        self.requests = 0
        self.register()
        self.every(world.beat_s, self.heartbeat)

    # Time.

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Unless it is dead by then; while it is paused, nothing happens."""

        def run() -> None:
            if not self.alive:
                return
            if self.world.now < self.paused_until:
                self.world.at(self.paused_until, run)
            else:
                do()

        self.world.after(seconds, run)

    def every(self, seconds: float, do: Callable[[], None]) -> None:
        def run() -> None:
            do()
            if not self.drained:
                self.every(seconds, do)

        self.after(seconds * self.rng.uniform(0.8, 1.2), run)

    def time(self) -> float:
        return self.clock.read(self.world.now)

    # Messages.

    def call(self, event: Event, answered: Callable[[Reply], None], missed: Callable[[], None]) -> None:
        """Send it once. An answer that comes too late, or twice, isn't listened to."""
        open_ = [True]

        def take(reply: Reply) -> None:
            if open_:
                open_.clear()
                answered(reply)

        def give_up() -> None:
            if open_:
                open_.clear()
                self.leader = self.world.any_leader()
                missed()

        self.world.send(self, self.leader, event, lambda reply: self.after(0.0, lambda: take(reply)))
        self.after(PATIENCE_S, give_up)

    def ids(self) -> dict[str, Any]:
        return {"job_id": "job", "node_id": self.node_id, "instance": self.instance}

    def register(self) -> None:
        def answered(reply: Reply) -> None:
            if isinstance(reply, Registered) and reply.ready:
                self.ask()
                self.every(self.world.report_s, self.report)
                self.every(self.world.step_s, self.step)
            elif isinstance(reply, Refused):
                self.fail()
            else:
                self.after(0.2, self.register)

        self.call(Register(caps=Caps(), **self.ids()), answered, self.register)

    def heartbeat(self) -> None:
        self.call(Heartbeat(stats={}, **self.ids()), lambda reply: None, lambda: None)

    def ask(self, request: str = "", since_s: float = 0.0) -> None:
        """For leases. Asked again, the same request; the time of what it brings counts from when it was asked first."""
        want = self.world.want - len(self.holding)
        if want < 1 and not request:
            self.after(self.world.step_s, self.ask)
            return
        if not request:
            self.requests += 1
            request, since_s = f"{self.instance}-{self.requests}", self.time()

        def answered(reply: Reply) -> None:
            if isinstance(reply, Refused):
                self.fail()
                return
            assert isinstance(reply, Granted)
            for number, lease in self.holding.grant(reply.leases, since_s):
                self.leases[number], self.handed[number] = lease, lease.cursor
            self.drained = reply.drained
            if not self.drained:
                self.after(reply.wait_s or self.world.step_s, self.ask)

        self.call(
            RequestLease(want=max(1, want), request=request, **self.ids()), answered, lambda: self.ask(request, since_s)
        )

    def report(self) -> None:
        """How far each lease is, which renews it. One report of a lease at a time."""
        for report in self.holding.reports():
            if report.lease not in self.reporting:
                self.tell(report)

    def tell(self, report: Report) -> None:
        since_s = self.time()
        self.reporting.add(report.lease)

        def answered(reply: Reply) -> None:
            self.reporting.discard(report.lease)
            if isinstance(reply, Refused):
                self.holding.lose(report.lease)
            else:
                self.holding.confirm(report, since_s)

        event = Progress(
            lease_id=report.lease_id,
            cursor=report.cursor,
            samples=report.samples,
            fence=report.fence if self.world.fenced else 0,
            **self.ids(),
        )
        self.call(event, answered, lambda: self.reporting.discard(report.lease))

    # Work.

    def step(self) -> None:
        """The consumer comes for a batch; what it had is done."""
        if self.world.now < self.stuck_until:
            return
        if self.in_hand is not None:
            self.holding.take(self.in_hand)
            self.in_hand = None
        ready = [number for number, at in self.handed.items() if at < self.leases[number].end]
        if not ready:
            return
        number = self.rng.choice(ready)
        lease, start = self.leases[number], self.handed[number]
        end = min(lease.end, start + self.rng.randint(1, self.world.batch))
        portion = Portion(number, start, end, lease.fence, lease.epoch)
        answer = self.holding.ask(portion, self.time())
        if answer is Answer.NO:
            del self.handed[number]
        if answer is Answer.YES:
            self.holding.hand_out(portion, end - start, 0)
            self.handed[number] = end
            self.world.hand_out(self, lease)
            self.world.parts.add(Part(lease.epoch, start, end, lease.fence))
            self.in_hand = portion

    # Ends.

    def fail(self) -> None:
        """It was told that it can't go on: it ends, and whoever watches over it starts another one."""
        self.crash()
        self.world.restart(self.node_id, self.rng.uniform(0.1, 2.0))

    def crash(self) -> None:
        self.alive = False

    def leave(self) -> None:
        """In order: it hands out nothing more, and says so."""
        self.world.send(self, self.leader, Leave(**self.ids()), lambda reply: None)
        self.alive = False
