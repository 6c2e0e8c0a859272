"""Coordinators for tests: real servers on loopback ports, and nodes that speak plain gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc

from penstock.coordinator.server import CoordinatorServer, Settings
from penstock.coordinator.state import Job, Terms
from penstock.coordinator.wire import coordinator_pb2 as wire
from penstock.coordinator.wire.coordinator_pb2_grpc import CoordinatorStub

JOB_ID = "job"
MANIFEST = "m" * 64
CAPS = wire.NodeCaps(max_fetch_concurrency=32, max_decode_concurrency=8, max_inflight_bytes=1, max_ram_bytes=1)
WAIT_S = 20.0
BACK_SOON = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200)]


class Threaded:
    """A coordinator on a thread of its own, which leads when this returns, unless it is to ``follow``.

    Attributes:
        addr: host:port.
        notes: names of what it told so far.
    """

    def __init__(self, settings: Settings, job: Job, terms: Terms, *, follow: bool = False, **options: Any) -> None:
        self._follow = follow
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.failure: BaseException | None = None
        self._told = threading.Condition()
        self._ready = threading.Event()
        self._given = (settings, job, terms, options)
        self._thread = threading.Thread(target=self._run, name="coordinator", daemon=True)
        self._thread.start()
        assert self._ready.wait(WAIT_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self.failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        settings, job, terms, options = self._given
        self.server = CoordinatorServer(settings, job, terms, **options)
        self.server.seat.listen(self._note)
        self.addr = self.server.addr
        self._loop = asyncio.get_running_loop()
        started = asyncio.Event()
        running = asyncio.ensure_future(self.server.run(started=started))
        waiting = asyncio.ensure_future(started.wait())
        await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        while not (running.done() or self.server.seat.leads or self._follow):
            await asyncio.sleep(0.002)
        self._ready.set()
        await running

    def _note(self, _now: float, note: Any) -> None:
        with self._told:
            self.notes.append((note.event, dict(note.fields)))
            self._told.notify_all()

    def wait_for(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """The fields of all notes with this name, once there are so many."""
        with self._told:
            assert self._told.wait_for(lambda: len(self.told(event)) >= count, WAIT_S), (event, self.notes)
            return self.told(event)

    def wait_until_it_leads(self) -> None:
        until = time.monotonic() + WAIT_S
        while not self.server.seat.leads:
            assert time.monotonic() < until
            time.sleep(0.005)

    def told(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.notes if name == event]

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self.server.stop)
            self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def running(
    *,
    journal: str = "memory:",
    terms: Terms | None = None,
    settings: Settings | None = None,
    server: Any = None,
    **job: Any,
) -> Iterator[Threaded]:
    """A coordinator of a job of 80 samples in blocks of 8, unless it is told otherwise."""
    job = {"manifest_hash": MANIFEST, "samples": 80, "block_samples": 8, **job}
    settings = settings or Settings(addr="127.0.0.1:0", journal=journal)
    coordinator = Threaded(settings, Job(**job), terms or Terms(), **(server or {}))
    if coordinator.failure is not None:
        raise coordinator.failure
    try:
        yield coordinator
    finally:
        coordinator.stop()
    if coordinator.failure is not None:
        raise coordinator.failure


class Node:
    """A node as MX8's are: it knows nothing of instances, fences or requests, unless ``own`` says so.

    Args:
        addr: of the coordinator.
        node_id: its name.
        own: fields of our own, for every request that has them.
    """

    def __init__(self, addr: str, node_id: str, channel: grpc.Channel | None = None, **own: Any) -> None:
        self.node_id = node_id
        self._own = own
        self._channel = channel or grpc.insecure_channel(addr, options=BACK_SOON)
        self.stub = CoordinatorStub(self._channel)

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def _call(self, name: str, kind: Any, **fields: Any) -> Any:
        known = {field.name for field in kind.DESCRIPTOR.fields}
        own = {key: value for key, value in self._own.items() if key in known}
        request = kind(**{"job_id": JOB_ID, "node_id": self.node_id, **own, **fields})
        return getattr(self.stub, name)(request, timeout=WAIT_S)

    def register(self, **fields: Any) -> Any:
        return self._call("RegisterNode", wire.RegisterNodeRequest, **{"caps": CAPS, **fields})

    def heartbeat(self, **fields: Any) -> Any:
        return self._call("Heartbeat", wire.HeartbeatRequest, **fields)

    def request(self, want: int = 1, **fields: Any) -> Any:
        return self._call("RequestLease", wire.RequestLeaseRequest, want=want, **fields)

    def report(self, lease: Any, cursor: int, **fields: Any) -> Any:
        lease_id = lease if isinstance(lease, str) else lease.lease_id
        return self._call("ReportProgress", wire.ReportProgressRequest, lease_id=lease_id, cursor=cursor, **fields)

    def leave(self) -> Any:
        return self._call("LeaveNode", wire.LeaveNodeRequest)

    def work(self, want: int = 1) -> list[tuple[int, int]]:
        """Completes leases until it gets none; their ranges in order."""
        done = []
        while leases := self.request(want).leases:
            for lease in leases:
                done.append((lease.range.start_id, lease.range.end_id))
                self.report(lease, lease.range.end_id)
        return done


def nodes(addr: str, *names: str, **own: Any) -> list[Node]:
    """Nodes that have registered, all of them."""
    made = [Node(addr, name, **own) for name in names]
    for node in made:
        node.register()
    return made


class Process:
    """``penstock coordinator`` in a process of its own.

    Args:
        log: of what it says; more is added to it.
        options: of the command.
        environment: more of it.
        through: a module that runs it, and what that is given first.

    Attributes:
        addr: host:port.
    """

    def __init__(
        self,
        log: Path,
        *options: str,
        environment: Mapping[str, str] | None = None,
        through: Sequence[str] = (),
    ) -> None:
        self.log = log
        seen = len(log.read_text()) if log.exists() else 0
        command = [sys.executable, "-m", *through, "penstock", "coordinator", *options]
        with log.open("ab") as out:  # not `launched`: gRPC's threads don't bear a fork, which its preexec_fn takes
            self.process = subprocess.Popen(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**os.environ, **(environment or {})}
            )
        self.addr = self.until(r"^coordinator ready at (\S+): ", seen)[1]

    def until(self, pattern: str, seen: int = 0) -> re.Match[str]:
        """Wait for something in the log."""
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            if found := re.search(pattern, self.log.read_text()[seen:], re.MULTILINE):
                return found
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        raise AssertionError(f"{pattern} isn't in {self.log.read_text()}")

    def events(self, event: str) -> list[str]:
        """The lines of the log that prove it."""
        return [line for line in self.log.read_text().splitlines() if f" event={event}" in line]

    def wait_for(self, event: str) -> None:
        self.until(rf" event={event}\b")

    def end(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.terminate()
        return self.process.wait(WAIT_S)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """-9."""
        self.process.kill()
        self.process.wait(WAIT_S)
