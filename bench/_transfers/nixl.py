"""NIXL's Python API over its UCX backend, as it comes and tuned for one host."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import numpy as np

from .side import Operation, Side

_LOCAL = "NIXL_INIT_AGENT"


class Nixl(Side):
    """As it comes: progress thread on, a peer's failure handled, UCX chooses."""

    progress_thread = True
    parameters: ClassVar[dict[str, str]] = {}
    tls: str | None = None

    def __init__(self, name: str, address: str | None, memory: str) -> None:
        super().__init__(name, address, memory)
        os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")
        if address is not None:
            os.environ["UCX_TLS"] = "tcp,self"
        elif self.tls is not None:
            os.environ["UCX_TLS"] = self.tls
        from nixl_cu12._api import nixl_agent, nixl_agent_config

        # As NIXL itself makes its backend, where there are no parameters.
        config = nixl_agent_config(enable_prog_thread=self.progress_thread, backends=[])
        self._agent = nixl_agent(name, config)
        self._kept: list[Any] = []
        self._agent.create_backend("UCX", self.parameters)
        self.transport = f"UCX_TLS={os.environ.get('UCX_TLS', '(default)')}"

    def allocate(self, nbytes: int) -> np.ndarray:
        self._own = super().allocate(nbytes)
        self._agent.register_memory([(self._own.ctypes.data, nbytes, 0, "")], "DRAM")
        return self._own

    def hello(self) -> Any:
        return {"metadata": self._agent.get_agent_metadata(), "address": self._own.ctypes.data}

    def meet(self, hello: Any) -> None:
        self._peer = self._agent.add_remote_agent(hello["metadata"])
        self._peer = self._peer.decode() if isinstance(self._peer, bytes) else self._peer
        self._agent.make_connection(self._peer)
        self._base = hello["address"]

    def operation(self, kind: str, rows: np.ndarray) -> Operation:
        handle, transfer, check = self._handle(kind, rows)

        def run() -> None:
            state = transfer(handle)
            while state == "PROC":
                state = check(handle)
            if state != "DONE":
                raise RuntimeError(f"NIXL says {state}")

        return run

    def halves(self, kind: str, rows: np.ndarray) -> tuple[Operation, Operation]:
        handle, transfer, check = self._handle(kind, rows)

        def finish() -> None:
            while (state := check(handle)) == "PROC":
                pass
            if state != "DONE":
                raise RuntimeError(f"NIXL says {state}")

        return lambda: transfer(handle), finish

    def one_shot(self, kind: str, rows: np.ndarray) -> Operation:
        local, remote = (
            self._prepared(_LOCAL, self._own.ctypes.data, rows),
            self._prepared(self._peer, self._base, rows),
        )
        indices = np.arange(len(rows), dtype=np.int32)
        agent = self._agent

        def run(keep: Any = (local, remote)) -> None:
            handle = agent.make_prepped_xfer(kind, local, indices, remote, indices)
            state = agent.transfer(handle)
            while state == "PROC":
                state = agent.check_xfer_state(handle)
            if state != "DONE":
                raise RuntimeError(f"NIXL says {state}")
            agent.release_xfer_handle(handle)

        return run

    def progress(self) -> None:
        self._agent.get_new_notifs()

    def send(self, message: bytes) -> None:
        self._agent.send_notif(self._peer, message)

    def receive(self) -> list[bytes]:
        found = self._agent.get_new_notifs()
        return found.get(self._peer, [])

    def register_many(self, arrays: list[Any]) -> Operation:
        registered = self._agent.register_memory(arrays)
        return lambda: self._agent.deregister_memory(registered)

    def _handle(self, kind: str, rows: np.ndarray) -> tuple[Any, Any, Any]:
        # A prepared list lets go of what it holds when it dies, so it has to live as long as the handle.
        local, remote = (
            self._prepared(_LOCAL, self._own.ctypes.data, rows),
            self._prepared(self._peer, self._base, rows),
        )
        self._kept += [local, remote]
        indices = np.arange(len(rows), dtype=np.int32)
        handle = self._agent.make_prepped_xfer(kind, local, indices, remote, indices)
        return handle, self._agent.transfer, self._agent.check_xfer_state

    def _prepared(self, owner: str, base: int, rows: np.ndarray) -> Any:
        table = np.column_stack([base + rows[:, 0], rows[:, 1], np.zeros(len(rows))]).astype(np.uint64)
        return self._agent.prep_xfer_dlist(owner, table, "DRAM")


class TunedNixl(Nixl):
    """For one host: no progress thread, no handling of a lost peer, shared memory only (no CMA), a polling target."""

    progress_thread = False
    parameters: ClassVar[dict[str, str]] = {"ucx_error_handling_mode": "none"}
    tls = "posix,sysv,self"
    polling = True
