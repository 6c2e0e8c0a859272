"""Penstock's own agent."""

from __future__ import annotations

from typing import Any

import numpy as np

from .side import Operation, Side


class Penstock(Side):
    def __init__(self, name: str, address: str | None, memory: str) -> None:
        super().__init__(name, address, memory)
        from penstock.transfer import Agent

        self._agent = Agent(name) if address is None else Agent(name, network=address)

    def allocate(self, nbytes: int) -> np.ndarray:
        if self.memory == "own":
            self._region = self._agent.allocate(nbytes)
            self._own = np.asarray(self._region)
            self._own.fill(0)
        else:
            self._own = super().allocate(nbytes)
        self._registration = self._agent.register(self._own if self.memory == "user" else self._region)
        return self._own

    def hello(self) -> Any:
        return {"metadata": self._agent.metadata(), "address": self._own.ctypes.data}

    def meet(self, hello: Any) -> None:
        self._base = hello["address"]
        self._peer = self._agent.add_peer(hello["metadata"])
        self._peer.connect()
        self.transport = self._peer.transport or "?"

    def operation(self, kind: str, rows: np.ndarray) -> Operation:
        local, remote = self._prepared(rows)
        transfer = self._agent.transfer(kind, local, remote)
        self.transport = transfer.transport
        post, wait = transfer.post, transfer.wait

        def run() -> None:
            if post() != "DONE":
                wait()

        return run

    def halves(self, kind: str, rows: np.ndarray) -> tuple[Operation, Operation]:
        transfer = self._agent.transfer(kind, *self._prepared(rows))
        return transfer.post, transfer.wait

    def one_shot(self, kind: str, rows: np.ndarray) -> Operation:
        local, remote = self._prepared(rows)
        start = self._agent.write if kind == "WRITE" else self._agent.read

        def run() -> None:
            transfer = start(local, remote)
            transfer.wait()
            transfer.close()

        return run

    def send(self, message: bytes) -> None:
        self._agent.notify(self._peer, message)

    def receive(self) -> list[bytes]:
        return [found.message for found in self._agent.notifications()]

    def receive_asleep(self, timeout_s: float) -> list[bytes]:
        from penstock.errors import DeadlineExceeded

        try:
            return [found.message for found in self._agent.wait_notification(timeout_s)]
        except DeadlineExceeded:
            return []

    def register_many(self, arrays: list[Any]) -> Operation:
        return self._agent.register(arrays).close

    def close(self) -> None:
        self._agent.close()

    def _prepared(self, rows: np.ndarray) -> tuple[Any, Any]:
        tables = [
            np.column_stack([base + rows[:, 0], rows[:, 1]]).astype(np.uint64)
            for base in (self._own.ctypes.data, self._base)
        ]
        return self._agent.prepare(tables[0], "DRAM"), self._peer.prepare(tables[1], "DRAM")
