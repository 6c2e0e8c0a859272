from __future__ import annotations

import asyncio
import threading

import pytest

from penstock.store import bridge

WAIT_S = 10.0


def test_a_result_and_an_error_come_back():
    async def add() -> int:
        return 1 + 1

    async def fail() -> int:
        raise KeyError("mine")

    assert bridge.run(add, WAIT_S) == 2
    with pytest.raises(KeyError, match="mine"):
        bridge.run(fail, WAIT_S)


def test_what_is_given_up_is_cancelled():
    cancelled = threading.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(TimeoutError):
        bridge.run(wait, 0.01)
    assert cancelled.wait(WAIT_S)


def test_many_callers_share_one_thread():
    threads = set()
    begin = threading.Barrier(8)

    async def note() -> None:
        threads.add(threading.current_thread().name)

    def call() -> None:
        begin.wait(WAIT_S)
        bridge.run(note, WAIT_S)

    callers = [threading.Thread(target=call) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(WAIT_S)
    assert threads == {"penstock-store"}
