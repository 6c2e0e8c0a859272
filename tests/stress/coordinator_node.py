"""A node of the simulated job: a loader's part in it, as a state machine that only messages and time drive.

It does what the real one must: a lease is its own by its own clock, counted from before the request was first sent; it
writes what it made of a batch before it says that the batch is done; it stops with a lease that it is told is lost.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penstock.coordinator.events import (
    Done,
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
from penstock.coordinator.state import Caps
from penstock.distributed.parts import Part

if TYPE_CHECKING:
    from tests.stress.coordinator_world import World

MARGIN = 0.05
"""By this part of the ttl a node ends a lease early: more than two clocks drift apart."""

PATIENCE_S = 1.0
"""How long a node waits for an answer."""


@dataclass
class Clock:
    """Seconds of somebody's own: from another zero, and not quite as long."""

    offset_s: float
    rate: float

    @classmethod
    def of(cls, rng: random.Random) -> Clock:
        return cls(rng.uniform(-1e6, 1e6), rng.uniform(1 - MARGIN / 2.1, 1 + MARGIN / 2.1))

    def read(self, now: float) -> float:
        return self.offset_s + self.rate * now


@dataclass
class Holding:
    """A lease, as its holder sees it."""

    lease: GrantedLease
    until_s: float  # by the holder's clock
    taken: int  # all before it was handed out, and what came of it is written
    told: int  # all before it is known to be committed
    asking: bool = False


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
        self.holdings: dict[str, Holding] = {}
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
        want = self.world.want - len(self.live())
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
            for lease in reply.leases:
                self.holdings[lease.lease_id] = Holding(
                    lease, self.until(since_s, lease.ttl_s), lease.cursor, lease.cursor
                )
            self.drained = reply.drained
            if not self.drained:
                self.after(reply.wait_s or self.world.step_s, self.ask)

        self.call(
            RequestLease(want=max(1, want), request=request, **self.ids()), answered, lambda: self.ask(request, since_s)
        )

    def until(self, since_s: float, ttl_s: float) -> float:
        return since_s + ttl_s * (1 - MARGIN)

    def live(self) -> list[Holding]:
        """Leases that are its own by its own clock; it lets go of the others."""
        now = self.time()
        self.holdings = {key: each for key, each in self.holdings.items() if now < each.until_s}
        return list(self.holdings.values())

    def report(self) -> None:
        """How far each lease is, which renews it. One report of a lease at a time."""
        for holding in self.live():
            if not holding.asking:
                self.report_of(holding)

    def report_of(self, holding: Holding) -> None:
        lease, cursor, since_s = holding.lease, holding.taken, self.time()
        holding.asking = True

        def answered(reply: Reply) -> None:
            holding.asking = False
            if isinstance(reply, Done):
                holding.told = cursor
                holding.until_s = max(holding.until_s, self.until(since_s, lease.ttl_s))
            if isinstance(reply, Refused) or cursor == lease.end:
                self.holdings.pop(lease.lease_id, None)

        def missed() -> None:
            holding.asking = False

        samples = cursor - holding.told
        fence = lease.fence if self.world.fenced else 0
        event = Progress(lease_id=lease.lease_id, cursor=cursor, samples=samples, fence=fence, **self.ids())
        self.call(event, answered, missed)

    # Work.

    def step(self) -> None:
        """The consumer comes for a batch, and what it makes of it is written at once."""
        ready = [each for each in self.live() if each.taken < each.lease.end]
        if not ready or self.world.now < self.stuck_until:
            return
        holding = self.rng.choice(ready)
        lease = holding.lease
        end = min(lease.end, holding.taken + self.rng.randint(1, self.world.batch))
        self.world.hand_out(self, lease)
        self.world.parts.add(Part(lease.epoch, holding.taken, end, lease.fence))
        holding.taken = end

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
