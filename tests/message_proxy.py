"""Between nodes and their coordinator: what they say is lost, late, said twice, said again later; answers are lost.

A gRPC server that knows methods and bytes, and no messages. What goes wrong is drawn from a seed.
"""

from __future__ import annotations

import itertools
import queue
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tests.coordinators import BACK_SOON, WAIT_S

from penstock.coordinator.wire import coordinator_pb2 as wire

_SERVICE = "/mx8.v0.Coordinator/"
_CALLS = {"heartbeat": "Heartbeat", "request": "RequestLease", "progress": "ReportProgress"}
_THREADS = 32


class MessageProxy:
    """A context manager.

    Args:
        addr: of the coordinator.
        seed: of what goes wrong.
        odds: how likely each fault is: ``lost``, ``late``, ``twice``, ``again`` (said once more, later), ``unanswered``
            (it was said, and the answer is lost) and ``silent`` (nothing comes, until the node gives up).
        late_s: how late, at most.

    Attributes:
        addr: where nodes find it.
        counts: of each fault, and ``said``, all that nodes said.
    """

    def __init__(self, addr: str, seed: int, *, late_s: float = 0.2, **odds: float) -> None:
        self.counts: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._odds, self._late_s = odds, late_s
        self._ended = threading.Event()
        self._channel = grpc.insecure_channel(addr, options=BACK_SOON)
        self._threads = ThreadPoolExecutor(_THREADS)
        self._again = ThreadPoolExecutor(4)
        self._server = grpc.server(self._threads)
        self._server.add_generic_rpc_handlers((_Any(self),))
        self.addr = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def __enter__(self) -> MessageProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.stop(0).wait()
        self._channel.close()
        self._threads.shutdown()
        self._again.shutdown()

    def call(self, name: str, said: bytes, context: Any) -> bytes:
        """One call, with what goes wrong."""

        def say() -> bytes:
            return self._forward(name, said)

        try:
            return self._faulty(say, context, lambda: self._repeat(name, said))
        except grpc.RpcError as error:
            _end_as(error, context)
            raise AssertionError from error

    def stream(self, name: str, said: bytes, context: Any) -> Iterator[bytes]:
        """A call with many answers, as it is."""
        try:
            yield from self._channel.unary_stream(_SERVICE + name)(said, timeout=WAIT_S)
        except grpc.RpcError as error:
            _end_as(error, context)

    def converse(self, sayings: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """A conversation: each saying with what goes wrong; what can't be answered ends it."""
        outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        upstream = self._channel.stream_stream(f"{_SERVICE}Converse")(iter(outgoing.get, None))

        def say(saying: bytes) -> bytes:
            outgoing.put(saying)
            return next(upstream)

        def repeat(saying: bytes) -> None:
            what = wire.Saying.FromString(saying)
            kind = what.WhichOneof("said")
            assert kind is not None
            self._repeat(_CALLS[kind], getattr(what, kind).SerializeToString())

        try:
            for saying in sayings:
                yield self._faulty(lambda said=saying: say(said), context, lambda said=saying: repeat(said))
        except grpc.RpcError as error:
            _end_as(error, context)
        finally:
            outgoing.put(None)
            upstream.cancel()

    def _faulty(self, say: Callable[[], bytes], context: Any, repeat: Callable[[], None]) -> bytes:
        fault = self._drawn()
        if fault == "silent":
            gone = threading.Event()
            if context.add_callback(gone.set):
                gone.wait(WAIT_S)
        if fault in ("lost", "silent"):
            context.abort(grpc.StatusCode.UNAVAILABLE, "lost on its way")
        if fault == "late":
            self._ended.wait(self._random.uniform(0, self._late_s))
        if fault == "again":
            self._again.submit(repeat)
        answers = [say() for _ in range(1 + (fault == "twice"))]
        if fault == "unanswered":
            context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost on its way")
        return self._random.choice(answers)

    def _drawn(self) -> str:
        self.counts["said"] += 1
        drawn = self._random.random()
        for fault, until in zip(self._odds, itertools.accumulate(self._odds.values()), strict=True):
            if drawn < until:
                self.counts[fault] += 1
                return fault
        return ""

    def _repeat(self, name: str, said: bytes) -> None:
        self._ended.wait(self._random.uniform(0, 5 * self._late_s))
        try:
            self._forward(name, said)
        except grpc.RpcError:
            self.counts["refused when it was said again"] += 1

    def _forward(self, name: str, said: bytes) -> bytes:
        answer: bytes = self._channel.unary_unary(_SERVICE + name)(said, timeout=WAIT_S)
        return answer


class _Any(grpc.GenericRpcHandler):
    """Takes every method; bytes stay bytes."""

    def __init__(self, proxy: MessageProxy) -> None:
        self._proxy = proxy

    def service(self, details: Any) -> Any:
        """See grpc.GenericRpcHandler."""
        name = details.method.removeprefix(_SERVICE)
        if name == "Converse":
            return grpc.stream_stream_rpc_method_handler(self._proxy.converse)
        if name == "GetManifestStream":
            return grpc.unary_stream_rpc_method_handler(lambda said, context: self._proxy.stream(name, said, context))
        return grpc.unary_unary_rpc_method_handler(lambda said, context: self._proxy.call(name, said, context))


def _end_as(error: grpc.RpcError, context: Any) -> None:
    """With the coordinator's own status, and who leads."""
    context.set_trailing_metadata(tuple(error.trailing_metadata() or ()))
    context.abort(error.code(), error.details())
