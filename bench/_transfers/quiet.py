"""Other work on the machine: how much of it there was during a run, and another run when it was too much.

Two processes that poll need two cores. With a third at work the figures tell of the scheduler's time slices.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import _common as common

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_LOOK_S = 1.0


def quietest(run: Callable[[], common.Outcome], tries: int, allowed_cores: float) -> common.Outcome:
    """The run with the least other work, of at most so many; its result says how many cores that took."""
    found: list[tuple[float, common.Outcome]] = []
    while len(found) < tries and not any(others <= allowed_cores for others, _ in found):
        if found:
            _wait_for_quiet(allowed_cores)
        before_s, own_before_s, started = _busy_s(), _own_s(), time.monotonic()
        outcome = run()
        elapsed_s = time.monotonic() - started
        others = max(0.0, (_busy_s() - before_s - (_own_s() - own_before_s)) / elapsed_s)
        if outcome.result is not None:
            outcome = dataclasses.replace(outcome, result=outcome.result | {"other_cores": round(others, 2)})
        found.append((others, outcome))
    return min(found, key=lambda one: (one[1].result is None, one[0]))[1]


def _wait_for_quiet(allowed_cores: float, most_s: float = 30.0) -> None:
    until = time.monotonic() + most_s
    while time.monotonic() < until:
        before_s = _busy_s()
        time.sleep(_LOOK_S)
        if (_busy_s() - before_s) / _LOOK_S <= allowed_cores:
            return


def _busy_s() -> float:
    """Seconds that all cores together have worked, for anybody."""
    user, nice, system, _, _, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) * _TICK_S


def _own_s() -> float:
    """The same for us and for children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
