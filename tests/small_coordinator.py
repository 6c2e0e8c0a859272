"""A coordinator in the test's own process: the rules behind gRPC, with a clock that can be moved and faults on demand.

For what a real one can't be made to do at a given moment: lose an answer, be silent, end a lease.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc

from penstock.coordinator import events
from penstock.coordinator.events import Code, Refused, Tick
from penstock.coordinator.rules import apply, begin
from penstock.coordinator.state import Job, Terms
from penstock.coordinator.token import checkpoint_of, read_checkpoint
from penstock.coordinator.wire import convert
from penstock.coordinator.wire import coordinator_pb2 as wire
from penstock.coordinator.wire.coordinator_pb2_grpc import CoordinatorServicer, add_CoordinatorServicer_to_server
from penstock.dataset.resolve import resolve
from penstock.errors import ResumeError

_STATUS = {code: getattr(grpc.StatusCode, code.name) for code in Code}


class SmallCoordinator(CoordinatorServicer):
    """Serves one job until `stop`; `again` starts it on the same port with its state.

    Without ``converses`` it takes calls only, as MX8's.
    """

    def __init__(
        self,
        link: str | Path,
        root: str | Path,
        terms: Terms | None = None,
        *,
        port: int = 0,
        converses: bool = True,
        **job: Any,
    ) -> None:
        self.converses = converses
        dataset = resolve(link, manifest_store_root=root)
        self.base, self.text = dataset.base, Path(root, "by-hash", dataset.hash).read_bytes()
        self.terms = terms or Terms()
        job.setdefault("block_samples", 100)
        self.state = begin(Job(dataset.hash, dataset.manifest.row_count, **job), self.terms).state
        self.clock = time.monotonic
        self.lock = threading.RLock()
        self.calls: Counter[str] = Counter()
        self.lose_answers: set[str] = set()  # done, but the answer is lost, once
        self.silent: set[str] = set()  # not done, no answer
        self.notes: list[Any] = []
        self.most_leases: Counter[str] = Counter()
        self.port = port
        self.again()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def again(self) -> None:
        self.pool = ThreadPoolExecutor(16)
        self.server = grpc.server(self.pool, options=[("grpc.so_reuseport", 0)])
        add_CoordinatorServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        self.server.start()
        self.ticking = threading.Event()
        self.ticker = threading.Thread(target=self._tick)
        self.ticker.start()

    def stop(self) -> None:
        self.ticking.set()
        self.ticker.join()
        self.server.stop(0).wait()
        self.pool.shutdown()

    def __enter__(self) -> SmallCoordinator:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _tick(self) -> None:
        while not self.ticking.wait(0.05):
            self.do(Tick())

    def do(self, event: Any) -> Any:
        with self.lock:
            outcome = apply(self.state, event, self.clock())
            self.state = outcome.state
            self.notes += outcome.notes
            held = Counter(lease.node_id for lease in self.state.leases.values())
            self.most_leases |= held
            return outcome.reply

    def jump(self, seconds: float) -> None:
        """So much time goes by at once."""
        with self.lock:
            earlier = self.clock
            self.clock = lambda: earlier() + seconds
            self.do(Tick())

    def freeze(self) -> None:
        """No time goes by here any more."""
        with self.lock:
            now = self.clock()
            self.clock = lambda: now

    def told(self, event: str) -> list[dict[str, Any]]:
        return [dict(note.fields) for note in self.notes if note.event == event]

    def _answer(self, name: str, event: Any, context: Any) -> Any:
        self.calls[name] += 1
        if name in self.silent:
            context.abort(grpc.StatusCode.UNAVAILABLE, "silent, as the test wants it")
        reply = self.do(event)
        if name in self.lose_answers:
            self.lose_answers.discard(name)
            context.abort(grpc.StatusCode.UNAVAILABLE, "done, and the answer is lost, as the test wants it")
        return reply

    def _done(self, name: str, event: Any, context: Any) -> Any:
        reply = self._answer(name, event, context)
        if isinstance(reply, Refused):
            context.abort(_STATUS[reply.code], reply.reason)
        return reply

    def Converse(self, request_iterator, context):
        if not self.converses:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "this coordinator takes calls only")
        self.calls["Converse"] += 1
        for saying in request_iterator:
            what = saying.WhichOneof("said")
            reply = self._answer(convert.CALLS[what], convert.read_saying(saying), context)
            if isinstance(reply, Refused):
                yield wire.Answer(refused=reply.code.value, reason=reply.reason)
            else:
                granted = convert.write_granted(reply, unix_time_ms=0) if what == "request" else None
                yield wire.Answer(granted=granted)

    def RegisterNode(self, request, context):
        reply = self._done("RegisterNode", convert.read_register(request), context)
        return convert.write_registered(replace(reply, dataset_base=self.base))

    def Heartbeat(self, request, context):
        self._done("Heartbeat", convert.read_heartbeat(request), context)
        return wire.HeartbeatResponse()

    def RequestLease(self, request, context):
        return convert.write_granted(self._done("RequestLease", convert.read_request(request), context), unix_time_ms=0)

    def ReportProgress(self, request, context):
        self._done("ReportProgress", convert.read_progress(request), context)
        return wire.ReportProgressResponse()

    def LeaveNode(self, request, context):
        self._done("LeaveNode", convert.read_leave(request), context)
        return wire.LeaveNodeResponse()

    def Checkpoint(self, request, context):
        with self.lock:
            return wire.CheckpointResponse(token=json.dumps(checkpoint_of(self.state)))

    def Restore(self, request, context):
        try:
            event: events.Restore = read_checkpoint(request.token, self.state.job)
        except ResumeError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        self._done("Restore", event, context)
        return wire.RestoreResponse()

    def GetManifestStream(self, request, context):
        self.calls["GetManifestStream"] += 1
        for start in range(0, len(self.text), 1 << 20):
            yield wire.ManifestChunk(data=self.text[start : start + (1 << 20)], schema_version=1)
