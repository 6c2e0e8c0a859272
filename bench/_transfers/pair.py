"""A contestant at work: the target serves what the initiator asks for, over a socket of theirs that isn't measured.

The initiator is a process of its own and starts the target, in another network where it is told to. Both end with
os._exit, for NIXL crashes when an interpreter that loaded it ends in order.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from . import work
from .contestants import CONTESTANTS
from .copies import clock_cost_ns
from .side import Side, Unsupported

_SCRIPT = Path(__file__).parent.parent / "transfers.py"
_ANSWER_S = 60.0
_PROGRESS_CALLS = 64  # of a polling target, between two looks at the socket
_STOP = b"!"
_FALL_ASLEEP_S = 0.0005  # the other end sleeps by then
_TENSORS, _TENSOR_BYTES = 5_000, 4 * work.KIB
_MESSAGES = {work.KIB: 200, 64 * work.KIB: 200, work.MIB: 100, 1 << 40: 8}  # at most so large: so many are timed


def initiate(options: Any) -> None:
    """What the initiator's process does: measure the groups asked for, and print what they came to."""
    ours, theirs = Pipe()
    names = [options.contestant, "--side", "target", "--link", str(theirs.fileno())]
    addressed = ["--address", options.target_address] if options.target_address else []
    command = [*options.target_prefix.split(), sys.executable, str(_SCRIPT), "--contestant", *names, *addressed]
    command += ["--pin"] if options.pin else []
    target = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=sys.stderr)
    theirs.close()
    if options.pin:
        _pin(-1)
    side = make(options.contestant, "initiator", options.address)
    initiator = _Initiator(side, ours, options.budget_s)
    found = initiator.measure(options.groups.split(","))
    side.close()
    ours.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        target.wait(10)
    print(json.dumps(found), flush=True)
    os._exit(0)


def attend(options: Any) -> None:
    """What the target's process does until the initiator hangs up."""
    if options.pin:
        _pin(0)
    link = Connection(options.link)
    target = _Target(make(options.contestant, "target", options.address), link)
    with contextlib.suppress(EOFError, ConnectionResetError):
        target.run()
    target.side.close()
    os._exit(0)


def _pin(which: int) -> None:
    """One core for each end: they never take turns on one, whatever else runs."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[which]})


def make(contestant: str, name: str, address: str | None) -> Side:
    entry = CONTESTANTS[contestant]
    return entry.load()(name, address, entry.memory)


class _Initiator:
    def __init__(self, side: Side, link: Connection, budget_s: float) -> None:
        self.side, self._link, self._budget_s = side, link, budget_s
        self._memory = side.allocate(work.ARENA_BYTES)
        hello = self._ask("hello")
        self._tell("meet", side.hello())
        side.meet(hello)
        self._answer()

    def measure(self, groups: Sequence[str]) -> dict[str, Any]:
        items: dict[str, Callable[[], dict[str, Any]]] = {}
        if "notify" in groups:
            items |= {"notification, both polling": partial(self._notify, "echo", asleep=False)}
            items |= {"notification, sleeping consumer": partial(self._notify, "echo_asleep", asleep=False)}
            items |= {"notification, both asleep": partial(self._notify, "echo_asleep", asleep=True)}
            items |= {"idle, asleep": self._idle}
        items |= {move.name: partial(self._move, move) for move in work.MOVES if move.group in groups}
        if "register" in groups:
            items |= {"register 5,000 tensors": self._register}
        found: dict[str, Any] = {}
        for name, run in items.items():
            try:
                found[name] = run()
            except Unsupported as reason:
                found[name] = {"skipped": str(reason)}
        return {"items": found, "transport": self.side.transport, "clock_ns": clock_cost_ns()}

    def _move(self, move: work.Move) -> dict[str, Any]:
        side = self.side
        run = self._operation(move)
        self._prepare(move, seed=1)
        if side.one_sided:
            self._ask("attend" if side.polling else "rest")
            times = work.timed(run, self._budget_s)
        else:
            count = next(count for most, count in _MESSAGES.items() if move.total_bytes <= most)
            self._ask("serve", move.kind, move.total_bytes, count + 2)
            times = work.timed(run, 0.0, least=count)
            self._answer()
        self._verify(move, seed=1)
        # What arrived before could hide that later ones did nothing: other bytes, and one more.
        self._prepare(move, seed=2)
        if not side.one_sided:
            self._ask("serve", move.kind, move.total_bytes, 1)
            run()
            self._answer()
        else:
            if side.polling:
                self._ask("attend")
            run()
        self._verify(move, seed=2)
        return work.summary(times) | {"bytes": move.total_bytes}

    def _operation(self, move: work.Move) -> Callable[[], None]:
        if move.one_shot:
            return self.side.one_shot(move.kind, move.rows)
        if move.at_once == 1:
            return self.side.operation(move.kind, move.rows)
        starts, finishes = zip(*(self.side.halves(move.kind, row[None]) for row in move.rows), strict=True)

        def run() -> None:
            for start in starts:
                start()
            for finish in finishes:
                finish()

        return run

    def _prepare(self, move: work.Move, seed: int) -> None:
        writing = move.kind == "WRITE"
        (work.fill if writing else _clear)(self._memory, move, seed)
        self._ask("clear" if writing else "fill", move, seed)

    def _verify(self, move: work.Move, seed: int) -> None:
        wrong = self._ask("check", move, seed) if move.kind == "WRITE" else work.check(self._memory, move, seed)
        if wrong:
            raise RuntimeError(wrong)

    def _notify(self, how: str, *, asleep: bool) -> dict[str, Any]:
        side = self.side
        take = partial(side.receive_asleep, 10.0) if asleep else side.receive
        # What this side can't do is said here, before the target begins.
        if not asleep:
            take()
        if how == "echo_asleep" and not side.waits_for_ever:
            side.receive_asleep(0.0)
        self._ask(how)

        def run() -> None:
            side.send(b"x")
            while not take():
                pass

        times = work.timed(run, self._budget_s, pause_s=_FALL_ASLEEP_S if how == "echo_asleep" else 0.0)
        side.send(_STOP)
        self._answer()
        return work.summary(times)

    def _idle(self) -> dict[str, Any]:
        """Share of a core that a target takes which sleeps until a notification comes that doesn't."""
        if self.side.waits_for_ever:
            raise Unsupported("can't wait for a while only")
        self.side.receive_asleep(0.0)
        return {"cpu_share": self._ask("idle", max(0.5, self._budget_s))}

    def _register(self) -> dict[str, Any]:
        import torch

        arena = torch.zeros(_TENSORS * _TENSOR_BYTES, dtype=torch.uint8)
        tensors = list(arena.view(_TENSORS, _TENSOR_BYTES))
        times = []
        for _ in range(7):
            started = time.perf_counter_ns()
            undo = self.side.register_many(tensors)
            times.append(time.perf_counter_ns() - started)
            undo()
        return work.summary(times)

    def _tell(self, *message: Any) -> None:
        self._link.send(message)

    def _answer(self) -> Any:
        if not self._link.poll(_ANSWER_S):
            raise RuntimeError("the target doesn't answer")
        return self._link.recv()

    def _ask(self, *message: Any) -> Any:
        self._tell(*message)
        return self._answer()


class _Target:
    def __init__(self, side: Side, link: Connection) -> None:
        self.side, self._link = side, link
        self._memory = side.allocate(work.ARENA_BYTES)
        self._attentive = False

    def run(self) -> None:
        while True:
            while self._attentive and not self._link.poll():
                for _ in range(_PROGRESS_CALLS):
                    self.side.progress()
            name, *arguments = self._link.recv()
            self._attentive = False
            getattr(self, f"_{name}")(*arguments)

    def _hello(self) -> None:
        self._link.send(self.side.hello())

    def _meet(self, hello: Any) -> None:
        self.side.meet(hello)
        self._link.send(None)

    def _attend(self) -> None:
        self._link.send(None)
        self._attentive = True

    def _rest(self) -> None:
        self._link.send(None)

    def _fill(self, move: work.Move, seed: int) -> None:
        work.fill(self._memory, move, seed)
        self._link.send(None)

    def _clear(self, move: work.Move, seed: int) -> None:
        work.clear(self._memory, move)
        self._link.send(None)

    def _check(self, move: work.Move, seed: int) -> None:
        self._link.send(work.check(self._memory, move, seed))

    def _serve(self, kind: str, nbytes: int, count: int) -> None:
        self._link.send(None)
        self.side.serve(kind, nbytes, count)
        self._link.send(None)

    def _echo(self) -> None:
        self._echo_with(self.side.receive)

    def _echo_asleep(self) -> None:
        self._echo_with(partial(self.side.receive_asleep, 10.0))

    def _echo_with(self, take: Callable[[], list[bytes]]) -> None:
        self._link.send(None)
        while True:
            for message in take():
                if message == _STOP:
                    self._link.send(None)
                    return
                self.side.send(message)

    def _idle(self, seconds: float) -> None:
        process = psutil.Process()
        before, started = process.cpu_times(), time.monotonic()
        self.side.receive_asleep(seconds)
        after, elapsed = process.cpu_times(), time.monotonic() - started
        self._link.send((after.user + after.system - before.user - before.system) / elapsed)


def _clear(memory: np.ndarray, move: work.Move, seed: int) -> None:
    work.clear(memory, move)
