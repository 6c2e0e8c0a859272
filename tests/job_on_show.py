"""A job for the page's tests: the rules, a clock that is moved by hand, and a real page server in a thread."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
from collections.abc import Coroutine
from typing import Any

from immutables import Map

from penstock.coordinator.events import (
    Event,
    Granted,
    GrantedLease,
    Heartbeat,
    Progress,
    Register,
    Reply,
    RequestLease,
    Tick,
)
from penstock.coordinator.page import Limits, PageServer
from penstock.coordinator.rules import apply, begin
from penstock.coordinator.state import Caps, Job, State, Terms
from penstock.coordinator.watch import Watch

JOB = "job"
MIB = 1 << 20
HASH = hashlib.sha256(b"photos").hexdigest()


class Seat:
    """What a seat shows to whoever watches it, without a journal."""

    def __init__(self, job: Job, terms: Terms) -> None:
        self.state: State | None = begin(job, terms).state
        self.clock_s = 1000.0
        self.listeners: list[Any] = []

    def now(self) -> float:
        return self.clock_s

    def listen(self, listener: Any) -> None:
        self.listeners.append(listener)

    async def leader(self) -> str | None:
        return "10.0.0.7:50051"

    def do(self, event: Event) -> Reply:
        assert self.state is not None
        outcome = apply(self.state, event, self.clock_s)
        self.state = outcome.state
        for note in outcome.notes:
            for listener in self.listeners:
                listener(self.clock_s, note)
        return outcome.reply


class JobOnShow:
    """A job with its page; what happens in it, happens in the page's event loop, as with a coordinator.

    Use it as a context. ``serve`` and ``stop`` start and end the page; the job goes on without.
    """

    def __init__(
        self, job: Job | None = None, terms: Terms | None = None, limits: Limits | None = None, **page: Any
    ) -> None:
        self.seat = Seat(job or Job(HASH, 1000, 100, world_size=2), terms or Terms())
        self.limits = limits or Limits(event_every_s=0.05)
        self.page_arguments = page
        self.page: PageServer | None = None
        self.port = 0
        self.held: dict[str, list[GrantedLease]] = {}
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._live, name="page")

    def __enter__(self) -> JobOnShow:
        self.thread.start()
        try:
            self.watch = self.run(self._watched())
            self.serve()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _live(self) -> None:
        self.loop.run_forever()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    async def _watched(self) -> Watch:
        return Watch(self.seat, fresh_s=0.0)

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout=30)

    def serve(self) -> None:
        start = PageServer.start(self.watch, port=self.port, limits=self.limits, **self.page_arguments)
        page: PageServer = self.run(start)
        self.page, self.port = page, page.port

    def stop(self) -> None:
        if self.page is not None:
            self.run(self.page.close())
        self.page = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def do(self, event: Event) -> Reply:
        async def done() -> Reply:
            return self.seat.do(event)

        reply: Reply = self.run(done())
        return reply

    def register(self, *names: str, cap_bytes: int = 512 * MIB) -> None:
        for name in names:
            self.do(Register(JOB, name, Caps(max_inflight_bytes=cap_bytes)))
            self.held[name] = []

    def lease(self, name: str, want: int = 1) -> list[GrantedLease]:
        reply = self.do(RequestLease(JOB, name, want))
        assert isinstance(reply, Granted)
        self.held[name] += reply.leases
        return list(reply.leases)

    def report(self, lease: GrantedLease, cursor: int, sample_bytes: int = 0) -> None:
        assert self.seat.state is not None
        count = cursor - self.seat.state.leases[lease.lease_id].cursor
        self.do(Progress(JOB, lease.node_id, lease.lease_id, cursor, count, count * sample_bytes))
        if cursor == lease.end:
            self.held[lease.node_id].remove(lease)

    def beat(self, name: str, inflight_bytes: int = 0, high_water_bytes: int = 0) -> None:
        stats = Map({"inflight_bytes": inflight_bytes, "ram_high_water_bytes": high_water_bytes})
        self.do(Heartbeat(JOB, name, stats))

    def tick(self) -> None:
        self.do(Tick())

    def advance(self, seconds: float) -> None:
        self.seat.clock_s += seconds

    def work(self, speeds: dict[str, int], seconds: float, *, sample_bytes: int = 110_000, want: int = 2) -> None:
        """So much time passes, and each node does so many samples in a second of it."""
        draw = random.Random(f"{self.seat.clock_s}")
        self.advance(seconds)
        for name, speed in speeds.items():
            left = int(speed * seconds * draw.uniform(0.9, 1.1))
            while left > 0:
                if (
                    len(self.held[name]) < want
                    and not self.lease(name, want - len(self.held[name]))
                    and not self.held[name]
                ):
                    break
                lease = min(self.held[name], key=lambda each: each.fence)
                assert self.seat.state is not None
                cursor = self.seat.state.leases[lease.lease_id].cursor
                step = min(left, lease.end - cursor)
                self.report(lease, cursor + step, sample_bytes)
                left -= step
            for lease in self.held[name]:
                self.report(lease, self.seat.state.leases[lease.lease_id].cursor)  # type: ignore[union-attr]
            self.beat(name, draw.randrange(180, 460) * MIB, 470 * MIB)
        self.run(self.watch.read())
