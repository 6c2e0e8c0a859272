"""What can happen to a job, and what is answered. Values only.

Names and meanings are those of MX8's coordinator protocol; what has no name there is our own.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

from immutables import Map

from penstock.coordinator.blocks import Intervals
from penstock.coordinator.state import Caps

__all__ = [
    "Code",
    "Done",
    "Event",
    "Granted",
    "GrantedLease",
    "Heartbeat",
    "Leave",
    "Progress",
    "Recover",
    "Refused",
    "Register",
    "Registered",
    "Reply",
    "RequestLease",
    "Restore",
    "Tick",
]


@dataclass(frozen=True, slots=True)
class Register:
    """A node wants to take part, or asks whether all are there.

    ``instance`` names the process; a node that registers with another one has been restarted.
    """

    job_id: str
    node_id: str
    caps: Caps | None
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A node lives."""

    job_id: str
    node_id: str
    stats: Map[str, int]
    instance: str = ""


@dataclass(frozen=True, slots=True)
class RequestLease:
    """A node wants up to ``want`` leases more. The same ``request`` again gets the same ones."""

    job_id: str
    node_id: str
    want: int
    instance: str = ""
    request: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """All samples of a lease before ``cursor`` are done. ``fence`` 0: the node doesn't know of fences."""

    job_id: str
    node_id: str
    lease_id: str
    cursor: int
    samples: int = 0
    payload_bytes: int = 0
    instance: str = ""
    fence: int = 0


@dataclass(frozen=True, slots=True)
class Leave:
    """A node ends in order: what it has goes back at once."""

    job_id: str
    node_id: str
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Restore:
    """Before the job begins: these samples of its first epoch are done already. A node that says so names its job."""

    done: Intervals
    epoch: int
    job_id: str = ""


@dataclass(frozen=True, slots=True)
class Recover:
    """Somebody leads, or leads again.

    Attributes:
        term: larger than any before.
        job_id: what nodes have to call the job; empty = as the first of them does.
    """

    term: int
    job_id: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event: TypeAlias = Register | Heartbeat | RequestLease | Progress | Leave | Restore | Recover | Tick


class Code(enum.Enum):
    """Why something is refused: the names of gRPC's status codes."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    NOT_FOUND = "NOT_FOUND"


@dataclass(frozen=True, slots=True)
class Refused:
    """No. ``reason`` says what was given, what is allowed, and what to do."""

    code: Code
    reason: str


@dataclass(frozen=True, slots=True)
class Done:
    """Yes, and there is nothing to say."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A node is one of the job's. Ranks may change until ``ready``.

    ``dataset_base`` is what the manifest's relative locations are joined to; the rules don't know it.
    """

    rank: int
    world_size: int
    manifest_hash: str
    heartbeat_interval_s: float
    lease_ttl_s: float
    registered: int
    ready: bool
    seed: int = 0
    dataset_base: str = ""


@dataclass(frozen=True, slots=True)
class GrantedLease:
    """See ``state.Lease``. It holds for ``ttl_s`` from when it was asked for, and after each report of progress."""

    lease_id: str
    node_id: str
    start: int
    end: int
    cursor: int
    epoch: int
    seed: int
    fence: int
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Granted:
    """What a node got. Nothing: ask again after ``wait_s``, or never, if the job is ``drained``."""

    leases: tuple[GrantedLease, ...]
    wait_s: float
    drained: bool


Reply: TypeAlias = Done | Refused | Registered | Granted
