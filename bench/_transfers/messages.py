"""Peers that pass messages: a transfer is a message that the other end puts into its memory and acknowledges."""

from __future__ import annotations

import os
import socket
import tempfile
from datetime import timedelta
from typing import Any

import numpy as np

from .side import Operation, Side, Unsupported

_TIMEOUT_S = 30


def _whole(rows: np.ndarray) -> int:
    if len(rows) != 1 or rows[0, 0] != 0:
        raise Unsupported("one message is one piece")
    return int(rows[0, 1])


class _Messages(Side):
    one_sided = False

    def allocate(self, nbytes: int) -> np.ndarray:
        self._own = super().allocate(nbytes)
        return self._own

    def _put(self, nbytes: int) -> None:
        raise NotImplementedError

    def _take(self, nbytes: int) -> None:
        raise NotImplementedError

    def operation(self, kind: str, rows: np.ndarray) -> Operation:
        if kind == "READ":
            raise Unsupported("only sends")
        nbytes = _whole(rows)

        def run() -> None:
            self._put(nbytes)
            self._acknowledged()

        return run

    def serve(self, kind: str, nbytes: int, count: int) -> None:
        for _ in range(count):
            self._take(nbytes)
            self._acknowledge()

    def _acknowledge(self) -> None:
        self.send(b"!")

    def _acknowledged(self) -> None:
        self.receive_asleep(_TIMEOUT_S)


class Gloo(_Messages):
    """torch.distributed's send and recv."""

    transport = "gloo tcp"
    waits_for_ever = True

    def __init__(self, name: str, address: str | None, memory: str) -> None:
        super().__init__(name, address, memory)
        import torch

        self._torch = torch
        self._other = 1 if name == "initiator" else 0
        self._byte = torch.zeros(1, dtype=torch.uint8)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]

    def hello(self) -> Any:
        return {"port": self._port}

    def meet(self, hello: Any) -> None:
        import torch.distributed

        rank = 1 - self._other
        port = self._port if rank == 0 else hello["port"]
        torch.distributed.init_process_group(
            "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=_TIMEOUT_S)
        )
        self._put_one, self._take_one = torch.distributed.send, torch.distributed.recv

    def _put(self, nbytes: int) -> None:
        self._put_one(self._torch.from_numpy(self._own[:nbytes]), self._other)

    def _take(self, nbytes: int) -> None:
        self._take_one(self._torch.from_numpy(self._own[:nbytes]), self._other)

    def send(self, message: bytes) -> None:
        self._byte[0] = message[0]
        self._put_one(self._byte, self._other)

    def receive_asleep(self, timeout_s: float) -> list[bytes]:
        self._take_one(self._byte, self._other)
        return [bytes(self._byte.tolist())]


class Zmq(_Messages):
    """A pair of ZeroMQ sockets; the receiver copies each message into its memory."""

    scheme = "ipc"

    def __init__(self, name: str, address: str | None, memory: str) -> None:
        super().__init__(name, address, memory)
        import zmq

        self._zmq = zmq
        self._socket = zmq.Context.instance().socket(zmq.PAIR)
        if self.scheme == "ipc":
            self._socket.bind(f"ipc://{tempfile.gettempdir()}/bench-{os.getpid()}.socket")
        else:
            self._socket.bind("tcp://127.0.0.1:*")
        self._place = self._socket.getsockopt(zmq.LAST_ENDPOINT).decode()
        self.transport = f"zmq {self.scheme}"

    def hello(self) -> Any:
        return {"place": self._place}

    def meet(self, hello: Any) -> None:
        if self.name == "initiator":
            self._socket.unbind(self._place)
            self._socket.connect(hello["place"])

    def _put(self, nbytes: int) -> None:
        self._socket.send(memoryview(self._own[:nbytes]), copy=False)

    def _take(self, nbytes: int) -> None:
        self._own[:nbytes] = np.frombuffer(self._socket.recv(copy=False).buffer, np.uint8)

    def send(self, message: bytes) -> None:
        self._socket.send(message)

    def receive(self) -> list[bytes]:
        try:
            return [self._socket.recv(self._zmq.NOBLOCK)]
        except self._zmq.Again:
            return []

    def receive_asleep(self, timeout_s: float) -> list[bytes]:
        return [self._socket.recv()] if self._socket.poll(timeout_s * 1000) else []

    def close(self) -> None:
        self._socket.close(linger=0)


class ZmqTcp(Zmq):
    scheme = "tcp"


class Sockets(_Messages):
    """One TCP connection and nothing else: sendall, recv_into, one byte as an answer. A floor for networks."""

    transport = "tcp socket"

    def __init__(self, name: str, address: str | None, memory: str) -> None:
        super().__init__(name, address, memory)
        self._listener = socket.create_server((address or "127.0.0.1", 0))

    def hello(self) -> Any:
        return self._listener.getsockname()

    def meet(self, hello: Any) -> None:
        if self.name == "target":
            self._socket = socket.create_connection(hello)
        else:
            self._socket, _ = self._listener.accept()
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def operation(self, kind: str, rows: np.ndarray) -> Operation:
        if kind == "WRITE":
            return super().operation(kind, rows)
        nbytes = _whole(rows)

        def run() -> None:
            self.send(b"?")
            self._take(nbytes)

        return run

    def serve(self, kind: str, nbytes: int, count: int) -> None:
        if kind == "WRITE":
            super().serve(kind, nbytes, count)
            return
        for _ in range(count):
            self.receive_asleep(_TIMEOUT_S)
            self._put(nbytes)

    def _put(self, nbytes: int) -> None:
        self._socket.sendall(self._own[:nbytes])

    def _take(self, nbytes: int) -> None:
        left = memoryview(self._own[:nbytes])
        while left:
            left = left[self._socket.recv_into(left) :]

    def send(self, message: bytes) -> None:
        self._socket.sendall(message)

    def receive_asleep(self, timeout_s: float) -> list[bytes]:
        self._socket.settimeout(timeout_s)
        try:
            return [self._socket.recv(1)]
        except (TimeoutError, BlockingIOError):
            return []
        finally:
            self._socket.settimeout(None)
