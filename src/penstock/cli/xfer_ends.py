"""The two ends of ``penstock xfer-bench``, and the socket over which they agree on what comes next.

What travels there is JSON, a line each, of bounded length. The bytes that are measured never do.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from penstock import _core
from penstock.errors import (
    DeadlineExceeded,
    MetadataError,
    PeerRefused,
    PenstockError,
    TransferError,
    TransportUnavailable,
)
from penstock.transfer import Agent, Transfer

__all__ = ["Control", "Initiator", "Measured", "Move", "Plane", "Target", "new_token"]

Bytes = npt.NDArray[np.uint8]
Plane = Literal["shm", "network", "any"]

_MOST_LINE_BYTES: Final = 1 << 20
_ANSWER_S: Final = 30.0
_LEAST_POSTS, _MOST_POSTS = 5, 100_000
_PING = b"12345678"


def new_token() -> str:
    """What a connecting end has to show; whoever has it may read and write the memory that is measured."""
    return secrets.token_urlsafe(16)


@dataclass(frozen=True, slots=True)
class Move:
    """One transfer: rows of a size, each followed by as large a gap when there are several."""

    operation: Literal["WRITE", "READ"]
    size_bytes: int
    descriptors: int

    @property
    def stride_bytes(self) -> int:
        """From the beginning of a row to that of the next."""
        return self.size_bytes * (2 if self.descriptors > 1 else 1)

    @property
    def total_bytes(self) -> int:
        """What is moved."""
        return self.size_bytes * self.descriptors

    @property
    def span_bytes(self) -> int:
        """What it takes of memory, gaps included."""
        return self.stride_bytes * self.descriptors

    def table(self, address: int) -> npt.NDArray[np.uint64]:
        """(N, 2): address and length of each row."""
        starts = address + np.arange(self.descriptors, dtype=np.uint64) * np.uint64(self.stride_bytes)
        return np.column_stack([starts, np.full_like(starts, self.size_bytes)])

    def rows(self, memory: Bytes) -> Bytes:
        """(N, size_bytes): a view of the rows."""
        return memory[: self.span_bytes].reshape(self.descriptors, self.stride_bytes)[:, : self.size_bytes]


@dataclass(frozen=True, slots=True)
class Measured:
    """A line of the result.

    Attributes:
        plane: which one was asked for.
        transport: what really moved the bytes.
        operation: ``"WRITE"``, ``"READ"``, or ``"NOTIFY"``: a message and its answer, both ends asleep in between.
        size_bytes: of a row.
        descriptors: how many rows; 0 for a message.
        posts: how many were timed, from before ``post()`` until it was known to be done.
    """

    plane: Plane
    transport: str
    operation: str
    size_bytes: int
    descriptors: int
    posts: int
    p50_us: float
    p99_us: float
    bytes_per_s: float


class Control:
    """The socket of the two ends."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.settimeout(_ANSWER_S)
        self._lines = sock.makefile("rb")

    def send(self, message: dict[str, Any]) -> None:
        """One message to the other end."""
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, *, patient: bool = False) -> dict[str, Any]:
        """The next message; ``patient``: however long it takes.

        Raises:
            EOFError: the other end is gone.
            DeadlineExceeded, MetadataError
        """
        self._socket.settimeout(None if patient else _ANSWER_S)
        try:
            line = self._lines.readline(_MOST_LINE_BYTES)
        except TimeoutError:
            raise DeadlineExceeded(f"the other end didn't answer within {_ANSWER_S:g} s") from None
        except ConnectionResetError:
            line = b""
        if not line:
            raise EOFError
        try:
            message = json.loads(line)
        except ValueError as error:
            raise MetadataError(f"the other end doesn't speak as penstock xfer-bench does: {error}") from error
        if not isinstance(message, dict):
            raise MetadataError("the other end doesn't speak as penstock xfer-bench does: no object")
        return message

    def ask(self, **message: Any) -> dict[str, Any]:
        """A message, and its answer.

        Raises:
            TransferError: the other end failed, or is gone.
        """
        try:
            self.send(message)
            answer = self.receive()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise TransferError("the other end has ended; what it printed says why") from None
        if "error" in answer:
            raise TransferError(f"the other end: {answer['error']}")
        return answer

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._socket.close()


def _agent(name: str, network: str, plane: Plane) -> Agent:
    if plane == "shm":
        return Agent(name, require="shm")
    if plane == "network":
        return Agent(name, network=network, require="tcp")
    try:
        return Agent(name, network=network)
    except TransportUnavailable:
        return Agent(name)  # two on one host need no more


class _End:
    """An agent with some memory in which moves take place."""

    def __init__(self, name: str, *, network: str, plane: Plane, own: bool, size_bytes: int) -> None:
        self.agent = _agent(name, network, plane)
        if own:
            self.memory: Bytes = np.asarray(memoryview(self.agent.allocate(size_bytes))).view(np.uint8)
        else:
            self.memory = np.empty(size_bytes, np.uint8)
        self.memory.fill(0)
        self.agent.register(self.memory)

    @property
    def address(self) -> int:
        return int(self.memory.ctypes.data)

    def fill(self, move: Move) -> int:
        """New bytes into the rows of a move; their checksum."""
        rows = move.rows(self.memory)
        rows[:] = np.frombuffer(np.random.default_rng().bytes(move.total_bytes), np.uint8).reshape(rows.shape)
        return self.sum(move)

    def sum(self, move: Move) -> int:
        return int(_core.crc32c(np.ascontiguousarray(move.rows(self.memory)).data))

    def close(self) -> None:
        self.agent.close()


class Target:
    """The end whose memory is written and read.

    Args:
        sock: connected with the other end.
        network: where its network plane listens.
        token: what the other end has to show first; None where it is our own parent.
    """

    def __init__(self, sock: socket.socket, *, network: str, token: str | None = None) -> None:
        self._control = Control(sock)
        self._network = network
        self._token = token
        self._end: _End | None = None

    def run(self) -> None:
        """Serve until the other end hangs up."""
        try:
            if self._token is not None:
                self._admit(self._token)
            while True:
                message = self._control.receive(patient=True)
                try:
                    self._control.send(self._answer(message))
                except (PenstockError, KeyError, TypeError, ValueError) as error:
                    self._control.send({"error": f"{type(error).__name__}: {error}"})
        except (EOFError, BrokenPipeError):
            pass
        finally:
            self._close_end()
            self._control.close()

    def _admit(self, token: str) -> None:
        shown = str(self._control.receive().get("token"))
        if not hmac.compare_digest(shown.encode(), token.encode()):
            self._control.send({"error": "that isn't the token that this end printed"})
            raise PeerRefused("somebody connected without the token")
        self._control.send({})

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        what = message["do"]
        if what == "open":
            return self._open(message)
        end = self._end
        if end is None:
            raise MetadataError(f"{what!r} before 'open'")
        if what == "echo":
            return self._echo(end, int(message["count"]))
        move = Move(**message["move"])
        if not 0 < move.span_bytes <= len(end.memory):
            raise MetadataError(f"a move over {move.span_bytes} of {len(end.memory)} bytes")
        return {"sum": end.fill(move) if what == "fill" else end.sum(move)}

    def _open(self, message: dict[str, Any]) -> dict[str, Any]:
        self._close_end()
        self._end = end = _End(
            "xfer-bench target",
            network=self._network,
            plane=message["plane"],
            own=bool(message["own"]),
            size_bytes=int(message["bytes"]),
        )
        end.agent.add_peer(base64.b64decode(message["metadata"]))
        return {"metadata": base64.b64encode(end.agent.metadata()).decode(), "address": end.address}

    def _echo(self, end: _End, count: int) -> dict[str, Any]:
        (peer,) = end.agent.peers.values()
        peer.connect()
        self._control.send({})
        while count > 0:
            for found in end.agent.wait_notification():
                end.agent.notify(peer, found.message)
                count -= 1
        return {}

    def _close_end(self) -> None:
        if self._end is not None:
            self._end.close()
            self._end = None


class Initiator:
    """The end that posts.

    Args:
        sock: connected with the target.
        plane: which one to take; ``"any"``: what leads there.
        network: where our network plane listens.
        own: memory from ``Agent.allocate``, or a plain array at both ends.
        size_bytes: of that memory.
        token: what the target printed.

    Raises:
        TransferError: nothing leads there.
    """

    def __init__(
        self, sock: socket.socket, *, plane: Plane, network: str, own: bool, size_bytes: int, token: str | None = None
    ) -> None:
        self._control = Control(sock)
        if token is not None:
            self._control.ask(token=token)
        self._plane: Plane = plane
        self._end = _End("xfer-bench initiator", network=network, plane=plane, own=own, size_bytes=size_bytes)
        try:
            ours = base64.b64encode(self._end.agent.metadata()).decode()
            answer = self._control.ask(do="open", plane=plane, own=own, bytes=size_bytes, metadata=ours)
            self._peer = self._end.agent.add_peer(base64.b64decode(answer["metadata"]))
            self._address = int(answer["address"])
            self._peer.connect()
        except BaseException:
            self._end.close()
            raise

    def measure(self, moves: list[Move], seconds: float) -> Iterator[Measured]:
        """Each of them, one after another, and messages there and back at last.

        Raises:
            TransferError: the wrong bytes arrived, or none.
        """
        for move in moves:
            yield self._measure(move, seconds)
        yield self._messages(seconds)

    def close(self) -> None:
        """Close the agent; the socket belongs to whoever made it."""
        self._end.close()

    def _measure(self, move: Move, seconds: float) -> Measured:
        agent = self._end.agent
        local = agent.prepare(move.table(self._end.address), "DRAM")
        remote = self._peer.prepare(move.table(self._address), "DRAM")
        transfer = agent.transfer(move.operation, local, remote)
        took = _timed(partial(_post, transfer), seconds)
        # Once more with bytes that weren't there before: it is these that have to arrive.
        writing = move.operation == "WRITE"
        sent = self._end.fill(move) if writing else self._remote("fill", move)
        _post(transfer)
        if sent != (self._remote("sum", move) if writing else self._end.sum(move)):
            raise TransferError(f"wrong bytes arrived: {move} over {transfer.transport}; please report this")
        transport = transfer.transport
        transfer.close()
        return self._line(transport, move.operation, move.size_bytes, move.descriptors, took)

    def _messages(self, seconds: float) -> Measured:
        agent, peer = self._end.agent, self._peer
        count = max(_LEAST_POSTS, min(2_000, int(seconds * 10_000)))
        self._control.ask(do="echo", count=count)

        def there_and_back() -> None:
            agent.notify(peer, _PING)
            agent.wait_notification()

        took = _timed(there_and_back, 0.0, least=count)
        self._control.receive()
        transport = str(peer.transport).removesuffix("+process_vm")  # that moves memory only
        return self._line(transport, "NOTIFY", len(_PING), 0, took)

    def _remote(self, what: str, move: Move) -> int:
        return int(self._control.ask(do=what, move=asdict(move))["sum"])

    def _line(self, transport: str, operation: str, size_bytes: int, descriptors: int, took: list[int]) -> Measured:
        p50, p99 = (float(value) for value in np.percentile(took, [50, 99]))
        return Measured(
            plane=self._plane,
            transport=transport,
            operation=operation,
            size_bytes=size_bytes,
            descriptors=descriptors,
            posts=len(took),
            p50_us=p50 / 1e3,
            p99_us=p99 / 1e3,
            bytes_per_s=size_bytes * descriptors / p50 * 1e9,
        )


def _post(transfer: Transfer) -> None:
    if transfer.post() != "DONE":
        transfer.wait()


def _timed(run: Callable[[], None], seconds: float, *, least: int = _LEAST_POSTS) -> list[int]:
    """Nanoseconds of each call, for about so long; one before them isn't counted."""
    clock = time.perf_counter_ns
    took: list[int] = []
    run() if seconds else None
    until = clock() + int(seconds * 1e9)
    while len(took) < _MOST_POSTS and (len(took) < least or clock() < until):
        started = clock()
        run()
        took.append(clock() - started)
    return took
