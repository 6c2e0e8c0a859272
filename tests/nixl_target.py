"""Another process with a NIXL agent in it, which does what a test says."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from penstock.compat.nixl import nixl_agent, nixl_agent_config

ANSWER_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Kept:
    """Something that stays in the other process, such as a handle, under a name."""

    name: str


class OtherProcess:
    """A process that keeps one agent at a time, and one buffer of bytes."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def agent(
        self, name: str, size: int = 0, params: dict[str, str] | None = None, **config: Any
    ) -> tuple[int, int, int]:
        """Makes an agent, in place of the last one, and a buffer of zeros.

        Args:
            name: the agent's.
            size: bytes of the buffer.
            params: of its backend.
            config: of the agent.

        Returns:
            Address, length and device of the buffer.
        """
        return self._ask("make", name, size, params or {}, config)

    def __call__(self, method: str, *args: Any, keep: str | None = None, **options: Any) -> Any:
        """Calls a method of the agent; what it returns or raises, or ``Kept(keep)``."""
        return self._ask("call", method, args, options, keep)

    def run(self, code: str, **names: Any) -> None:
        """Runs a program, or a part of one: among the names it finds are its agent as ``agent``, and those given."""
        self._ask("run", code, names)

    def begin(self, code: str, **names: Any) -> None:
        """As ``run``, without waiting; ``finish`` waits."""
        self._pipe.send(("run", code, names))

    def finish(self) -> None:
        self._answer("run")

    def value(self, name: str) -> Any:
        """What a name stands for after ``run``."""
        return self._ask("value", name)

    def read(self) -> bytes:
        """What is in the buffer."""
        return self._ask("read")

    def write(self, data: bytes) -> None:
        """Puts something at the buffer's beginning."""
        self._ask("write", data)

    def stop(self) -> None:
        """Stops it in the middle of what it does, and waits until it stands."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._process.join()

    def end(self) -> None:
        if self._process.is_alive():
            self._pipe.close()
            self._process.join(10)
        assert not self._process.is_alive()

    def _ask(self, *request: Any) -> Any:
        self._pipe.send(request)
        return self._answer(request[:2])

    def _answer(self, request: Any) -> Any:
        assert self._pipe.poll(ANSWER_TIMEOUT_S), f"no answer to {request}"
        fine, answer = self._pipe.recv()
        if fine:
            return answer
        raise answer


def _serve(pipe: Connection) -> None:
    there = _There()
    while True:
        try:
            what, *args = pipe.recv()
        except EOFError:
            there.close()
            return
        try:
            pipe.send((True, getattr(there, what)(*args)))
        except Exception as error:
            pipe.send((False, error))


def agent_with(name: str, params: dict[str, str], config: dict[str, Any]) -> nixl_agent:
    """An agent whose backend has parameters."""
    agent = nixl_agent(name, nixl_agent_config(**config, backends=[]))
    agent.create_backend("UCX", params)
    return agent


class _There:
    def __init__(self) -> None:
        self._agent: nixl_agent | None = None
        self._kept: dict[str, Any] = {}
        self._names: dict[str, Any] = {}
        self._buffer = np.zeros(0, np.uint8)

    def make(self, name: str, size: int, params: dict[str, str], config: dict[str, Any]) -> tuple[int, int, int]:
        self.close()
        self._agent = agent_with(name, params, config)
        self._buffer = np.zeros(size, np.uint8)
        self._names = {"agent": self._agent, "buffer": self._buffer}
        return self._buffer.ctypes.data, size, 0

    def call(self, method: str, args: Any, options: Any, keep: str | None) -> Any:
        args = [self._kept[each.name] if isinstance(each, Kept) else each for each in args]
        found = getattr(self._agent, method)(*args, **options)
        if keep is None:
            return found
        self._kept[keep] = found
        return Kept(keep)

    def run(self, code: str, names: dict[str, Any]) -> None:
        self._names.update(names)
        exec(compile(code, "<other process>", "exec"), self._names)

    def value(self, name: str) -> Any:
        return self._names[name]

    def read(self) -> bytes:
        return self._buffer.tobytes()

    def write(self, data: bytes) -> None:
        self._buffer[: len(data)] = np.frombuffer(data, np.uint8)

    def close(self) -> None:
        self._kept.clear()
        self._names.clear()
        if self._agent is not None:
            self._agent.close()
