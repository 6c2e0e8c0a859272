"""Many threads, one agent: every call at once, closed in the middle; only typed errors, and nobody is left waiting."""

from __future__ import annotations

import faulthandler
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from penstock.errors import PenstockError
from penstock.transfer import Agent, Descriptors
from puppet import Puppet

THREADS = 8
SLOT_BYTES = 4096
SIZE = THREADS * SLOT_BYTES
# What may go wrong while peers are removed and registrations closed under whoever uses them.
BORNE = ("PeerLost", "StaleDescriptor", "NotRegistered", "UnknownPeer", "DeadlineExceeded", "ClosedError")
PLANES = {"host": {}, "network": {"network": "loopback", "require": "tcp"}}


class Worker(threading.Thread):
    """Does one random thing after another with the agent, until it is closed or time is up."""

    def __init__(self, number: int, agent: Agent, blob: bytes, remote: Descriptors, until: float) -> None:
        super().__init__(name=f"worker{number}", daemon=True)
        self.number, self.agent, self.blob, self.remote, self.until = number, agent, blob, remote, until
        self.random = random.Random(number)
        self.memory = np.asarray(agent.allocate(SLOT_BYTES)).view(np.uint8)
        self.inbound = np.zeros(SLOT_BYTES, np.uint8)
        self.moved = 0
        self.problem: BaseException | None = None

    def run(self) -> None:
        acts: list[Callable[[], Any]] = [
            self.there_and_back, self.there_and_back, self.there_and_back, self.come_and_go, self.speak, self.listen,
            self.agent.metadata, lambda: self.agent.add_peer(self.blob), self.part, lambda: repr(self.agent),
            lambda: [peer.connected for peer in self.agent.peers.values()],
        ]  # fmt: skip
        while time.monotonic() < self.until and self.problem is None:
            try:
                self.random.choice(acts)()
            except PenstockError as error:
                if self.agent.closed:
                    return
                if type(error).__name__ not in BORNE:
                    self.problem = error
            except BaseException as error:
                self.problem = error

    def there_and_back(self) -> None:
        """Only this thread's slot of the peer's memory."""
        peer = self.agent.add_peer(self.blob)
        remote = peer.prepare(self.remote[self.number : self.number + 1])
        with self.agent.register([self.memory, self.inbound]):
            self.memory[:] = self.random.randrange(256)
            self.inbound[:] = 0
            self.agent.write(self.memory, remote).wait()
            self.agent.read(self.inbound, remote).wait()
        assert (self.inbound == self.memory).all()
        self.moved += 1

    def come_and_go(self) -> None:
        region = self.agent.allocate(100)
        registration = self.agent.register(region)
        if self.random.random() < 0.5:
            registration.renew()
        registration.close()

    def speak(self) -> None:
        self.agent.notify("peer", b"to you", timeout_s=1)

    def listen(self) -> None:
        if self.random.random() < 0.5:
            self.agent.notifications()
        else:
            self.agent.wait_notification(timeout_s=0.01)

    def part(self) -> None:
        if self.random.random() < 0.2:
            self.agent.remove_peer("peer")


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("closed_in_the_middle", [False, True])
def test_many_threads_use_one_agent(plane: str, closed_in_the_middle: bool) -> None:
    with Puppet("peer", **({"network": "loopback"} if plane == "network" else {})) as peer:
        peer.call("allocate", key="kv", nbytes=SIZE)
        cuts = [[at, at + SLOT_BYTES] for at in range(0, SIZE, SLOT_BYTES)]
        remote = Descriptors.from_bytes(peer.call("register", key="kv", cuts=cuts))
        blob = peer.call("metadata")
        taking = peer.begin(
            "run", code="acts.over = False\nwhile not acts.over: agent.notifications(); time.sleep(0.002)"
        )
        with Agent("many", timeout_s=10, **PLANES[plane]) as agent:
            workers = [Worker(n, agent, blob, remote, time.monotonic() + 2.0) for n in range(THREADS)]
            for worker in workers:
                worker.start()
            if closed_in_the_middle:
                time.sleep(0.7)
                agent.close()
            for worker in workers:
                worker.join(30)
                if worker.is_alive():
                    faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
                    raise AssertionError(f"{worker.name} waits")
            assert [worker.problem for worker in workers] == [None] * THREADS
            assert sum(worker.moved for worker in workers) > 10
        peer.aside("run", code="acts.over = True")
        peer.result(taking)
