"""A node becomes one of its job's: it registers, and waits until the others have."""

from __future__ import annotations

import logging
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from penstock.coordinator.client import Client
from penstock.coordinator.events import Leave, Register, Registered
from penstock.coordinator.state import Caps
from penstock.errors import CoordinatorError, DeadlineExceeded

__all__ = ["Member", "join"]

_POLL_S: Final = 0.2  # between questions whether all nodes are there
_POLLS_PER_S: Final = 1000
_MOST_POLL_S: Final = 10.0
_SAY_S: Final = 10.0  # of waiting, until it is said for whom; then six times as rarely

_log = logging.getLogger("penstock")


@dataclass(frozen=True, slots=True)
class Member:
    """Who a node is in its job.

    Attributes:
        job_id: the job.
        node_id: its name there.
        instance: names the process, so that another one under the same name is known as another.
        registered: what the coordinator said.
    """

    job_id: str
    node_id: str
    instance: str
    registered: Registered


def join(
    client: Client, job_id: str, node_id: str, caps: Caps, *, within_s: float, say_after_s: float = _SAY_S
) -> Member:
    """Register, and wait until all nodes of the job have; who waits long says so in the log.

    Raises:
        CoordinatorRefused: the job doesn't want this node, or failed.
        CoordinatorUnreachable: nobody who leads answers.
        DeadlineExceeded: some node didn't come.
    """
    instance = uuid.uuid4().hex
    begun = time.monotonic()
    say_at = begun + say_after_s
    while True:
        registered = client.register(Register(job_id, node_id, caps, instance))
        if registered.ready:
            return Member(job_id, node_id, instance, registered)
        there = f"{registered.registered} of {registered.world_size} nodes registered within"
        now = time.monotonic()
        if now >= begun + within_s:
            with suppress(CoordinatorError):
                client.leave(Leave(job_id, node_id, instance), within_s=0)
            raise DeadlineExceeded(
                f"{there} {within_s:g} s; see why the others don't come, begin the coordinator with a smaller world "
                "size, or wait longer with join_timeout_s"
            )
        if now >= say_at:
            say_at = now + 6 * say_after_s
            _log.warning(
                "%s %.0f s; node %r waits for the others, %.0f s at most", there, now - begun, node_id, within_s
            )
        time.sleep(_pause_s(registered.world_size))


def _pause_s(world_size: int) -> float:
    """Until the next question; many nodes together don't ask oftener than a coordinator can answer."""
    return min(max(_POLL_S, world_size / _POLLS_PER_S), _MOST_POLL_S)
