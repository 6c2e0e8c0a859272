"""A crew of builders where the machine has no more threads to give."""

import subprocess
import sys
import threading

import pytest

from penstock.loader.crew import Crew

_POOL_WITHOUT_ROOM = """
import resource
from penstock import _core
used_bytes = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used_bytes + (40 << 20), -1))  # the stacks of a few threads
pool = _core.DecodePool(64)
pool.resize(96)
del pool
print("alive")
"""


def test_a_crew_does_with_the_threads_that_it_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def start_one(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_one)
    crew = Crew(4, "crew")
    gate = threading.Event()
    crew.submit(lambda: gate.wait(10))  # so that a failure ends, too
    results = [crew.submit(lambda number=number: number) for number in range(20)]  # type: ignore[misc]
    crew.resize(8)
    gate.set()
    assert [result.result(10) for result in results] == list(range(20))
    crew.stop()
    crew.join(10)
    assert not started[0].is_alive()


def test_a_crew_without_any_thread_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        Crew(2, "crew").submit(list)


def test_a_pool_of_decoders_does_with_the_threads_that_it_gets() -> None:
    done = subprocess.run([sys.executable, "-c", _POOL_WITHOUT_ROOM], capture_output=True, text=True, timeout=60)
    assert done.stdout == "alive\n", done.stderr
