"""What a coordinator knows of its job: values only, and how each record is written down.

Durable records are kept by name, each small, so that a change writes only what changed: ``job``, ``course``,
``node/<id>``, ``queue/<rank>``, ``lease/<id>``, ``spare/<number>``. Times aren't durable: whoever takes over gives
every lease and node its whole time again, which is late and so always safe.
"""

from __future__ import annotations

import bisect
import json
import math
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from immutables import Map

from penstock.coordinator.blocks import (
    BlockPlan,
    SampleRange,
    block_at,
    block_bounds,
    bounds_of,
    dealt_bounds,
    join_bounds,
)
from penstock.errors import CoordinatorError
from penstock.order.order import Int64Array

__all__ = [
    "Caps",
    "Course",
    "Job",
    "Lease",
    "Node",
    "Phase",
    "Pulse",
    "Queue",
    "Record",
    "State",
    "Terms",
    "load_records",
    "read_record",
    "write_record",
]

Phase: TypeAlias = Literal["gathering", "running", "drained", "failed"]

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done; never changes.

    Attributes:
        manifest_hash: of the samples.
        samples: how many there are.
        block_samples: most in a lease.
        shuffle: whether blocks come in a random order.
        seed: of that order.
        epoch: the first.
        epochs: how many.
        world_size: nodes that share it.
        done: samples of the first epoch that an earlier run did, as half-open intervals.
    """

    manifest_hash: str
    samples: int
    block_samples: int = 65536
    shuffle: bool = False
    seed: int = 0
    epoch: int = 0
    epochs: int = 1
    world_size: int = 1
    done: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Terms:
    """How long things may take; another coordinator of the same job may have others.

    Attributes:
        lease_ttl_s: a lease whose holder isn't heard of for so long ends; those that are granted from now on. So does a
            node's claim to its queue.
        heartbeat_interval_s: how often nodes are to say that they live.
        idle_lease_s: a lease whose cursor doesn't move for so long ends, although its holder reports.
        barrier_timeout_s: how long the first node waits for the others, until the job fails or begins with fewer; None
            = for ever.
        min_world_size: with how many it may then begin; 0 = only with all.
        steal: whether nodes that have nothing left take blocks out of the longest queue of another.
        wait_s: what a node that gets nothing is told to wait, at least; more where there are thousands.
    """

    lease_ttl_s: float = 10.0
    heartbeat_interval_s: float = 1.0
    idle_lease_s: float = 600.0
    barrier_timeout_s: float | None = None
    min_world_size: int = 0
    steal: bool = False
    wait_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Course:
    """How far the job is.

    Attributes:
        phase: ``gathering`` nodes, ``running``, ``drained`` or ``failed``.
        epoch: which one is running.
        world_size: nodes that blocks were dealt to; 0 before that.
        issued: leases that were granted.
        fence: of the last one; grows with every grant, and with every change of leader.
        reason: why it failed.
        job_id: what its nodes call it: all of them as the first one did.
    """

    phase: Phase = "gathering"
    epoch: int = 0
    world_size: int = 0
    issued: int = 0
    fence: int = 0
    reason: str = ""
    job_id: str = ""


@dataclass(frozen=True, slots=True)
class Caps:
    """What a node says it can do."""

    max_fetch_concurrency: int = 0
    max_decode_concurrency: int = 0
    max_inflight_bytes: int = 0
    max_ram_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """A member.

    Attributes:
        rank: its place among the sorted ids, from when the job begins; see ``State.rank_of`` before that.
        instance: which process it is; another one that registers under the same id takes its place.
        caps: what it can do.
        former: the processes before it, latest last; a message of theirs that comes late doesn't bring them back.
        since: the fence when this process came; leases with a larger one are its own.
        request: the last request for leases that it numbered, and what it got, so that asking twice gives the same.
        granted: ids of those leases.
        finished: the last lease that it completed, so that saying so twice is no error.
        finished_fence: of that lease.
    """

    rank: int
    instance: str
    caps: Caps
    former: tuple[str, ...] = ()
    since: int = 0
    request: str = ""
    granted: tuple[str, ...] = ()
    finished: str = ""
    finished_fence: int = 0


@dataclass(frozen=True, slots=True)
class Queue:
    """Blocks that were dealt to a rank and that nobody has begun: its cards ``first`` to ``end`` - 1.

    Attributes:
        node_id: whose it is.
        first: card that is next.
        end: behind the last.
        open: whether everybody may take from it, as its owner is gone.
    """

    node_id: str
    first: int
    end: int
    open: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """Samples that one node has for a while.

    Attributes:
        node_id: the holder.
        start: first sample id.
        end: behind the last.
        cursor: all before it are done.
        fence: grows from lease to lease: of two that ever held a sample, the later one's is larger.
        epoch: of the job.
        ttl_s: how long it lasts without a report, as its holder was told; 0 = not written down, so as the terms say.
    """

    node_id: str
    start: int
    end: int
    cursor: int
    fence: int
    epoch: int
    ttl_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Pulse:
    """What was last heard of a node; not durable.

    Attributes:
        heard_s: when, by the coordinator's clock.
        samples: delivered, as it says.
        payload_bytes: delivered, as it says.
        stats: what its heartbeat said of memory and queues.
    """

    heard_s: float
    samples: int = 0
    payload_bytes: int = 0
    stats: Map[str, int] = field(default_factory=Map)


@dataclass(frozen=True, slots=True)
class Held:
    """When a lease was last reported, and when its cursor last moved; not durable."""

    renewed_s: float
    moved_s: float


Record: TypeAlias = Job | Course | Node | Queue | Lease | SampleRange


@dataclass(frozen=True, slots=True)
class State:
    """All of it. Immutable: ``rules.apply`` gives another one."""

    job: Job
    terms: Terms = Terms()
    course: Course = Course()
    nodes: Map[str, Node] = field(default_factory=Map)
    queues: Map[int, Queue] = field(default_factory=Map)
    leases: Map[str, Lease] = field(default_factory=Map)
    spares: Map[int, SampleRange] = field(default_factory=Map)  # a stack: the highest number is served first
    # Not durable:
    names: tuple[str, ...] = ()  # of all nodes, sorted
    pulses: Map[str, Pulse] = field(default_factory=Map)
    held: Map[str, Held] = field(default_factory=Map)
    holdings: Map[str, tuple[str, ...]] = field(default_factory=Map)  # node -> its leases
    due_s: float = -math.inf  # before this time nobody is late
    open_ranks: tuple[int, ...] = ()  # of queues that everybody may take from, and that have something
    unstarted: int = 0  # blocks in all queues
    since_s: float | None = None  # when the first node registered; anew where others led

    @property
    def blocks(self) -> BlockPlan:
        """Those of the epoch that is running."""
        job, epoch = self.job, self.course.epoch
        done = job.done if epoch == job.epoch else ()
        return BlockPlan(job.samples, job.block_samples, job.shuffle, job.seed, epoch, done)

    def ends_s(self, lease_id: str, held: Held) -> float:
        """When a lease ends unless it is reported; another leader's terms may have been others when it was granted."""
        return held.renewed_s + (self.leases[lease_id].ttl_s or self.terms.lease_ttl_s)

    def rank_of(self, node_id: str) -> int:
        """A node's place among those that are there; final once the job has begun."""
        return self.nodes[node_id].rank if self.course.world_size else bisect.bisect_left(self.names, node_id)

    def block_of(self, rank: int, card: int) -> SampleRange:
        """The block that a card of a rank's is."""
        return block_at(self.blocks, rank + card * self.course.world_size)

    def done(self) -> tuple[tuple[int, int], ...]:
        """Samples of this epoch that are done: half-open intervals, ascending."""
        if self.course.phase == "drained":
            return ((0, self.job.samples),) if self.job.samples else ()
        if not self.course.world_size:
            return self.job.done
        return self._without(self.left())

    def left(self) -> tuple[tuple[int, int], ...]:
        """Samples of this epoch that are not done, leased ones included: half-open intervals, ascending."""
        queued, leased = self.queued(), self.leased()
        return join_bounds(np.concatenate([queued[0], leased[0]]), np.concatenate([queued[1], leased[1]]))

    def queued(self) -> tuple[Int64Array, Int64Array]:
        """What nobody has begun, and what was begun and given back; as ``blocks.bounds_of`` gives it."""
        if self.course.world_size:
            cards = [(queue.first, queue.end) for _, queue in sorted(self.queues.items())]
            starts, ends = dealt_bounds(self.blocks, cards)
        else:
            starts, ends = block_bounds(self.blocks)
        spare_starts, spare_ends = bounds_of(list(self.spares.values()))
        return np.concatenate([starts, spare_starts]), np.concatenate([ends, spare_ends])

    def leased(self) -> tuple[Int64Array, Int64Array]:
        """What somebody has, and hasn't done; as ``blocks.bounds_of`` gives it."""
        return bounds_of([(lease.cursor, lease.end) for lease in self.leases.values()])

    def _without(self, left: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        starts = [0, *(end for _, end in left)]
        ends = [*(start for start, _ in left), self.job.samples]
        return tuple((start, end) for start, end in zip(starts, ends, strict=True) if start < end)


_KINDS: Final[dict[str, type[Any]]] = {
    "job": Job,
    "course": Course,
    "node": Node,
    "queue": Queue,
    "lease": Lease,
    "spare": SampleRange,
}


def write_record(record: Record) -> str:
    """A record as text, for a journal."""
    return _ENCODER.encode(record._asdict() if isinstance(record, SampleRange) else _fields(record))


def _fields(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}


_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), default=_fields)


def read_record(key: str, text: str) -> Record:
    """What ``write_record`` wrote under this key.

    Raises:
        CoordinatorError: it can't be that.
    """
    kind = _KINDS.get(key.partition("/")[0])
    try:
        fields = json.loads(text)
        if kind is None or not isinstance(fields, dict):
            raise TypeError("no such record")
        if kind is Job:
            fields["done"] = tuple((int(start), int(end)) for start, end in fields["done"])
        if kind is Node:
            fields["caps"], fields["granted"] = Caps(**fields["caps"]), tuple(fields["granted"])
            fields["former"] = tuple(fields["former"])
        record: Record = kind(**fields)
    except (ValueError, TypeError, KeyError) as error:
        raise CoordinatorError(
            f"the journal's record {key!r} doesn't parse ({error}): {text[:80]!r}; another version wrote it, or it is "
            "damaged. Begin with an empty journal, from a checkpoint if there is one"
        ) from None
    return record


def load_records(records: dict[str, Record], terms: Terms) -> State | None:
    """The state that these durable records are of; None = there is none yet."""
    if not records:
        return None
    state = State(job=_the(records, "job", Job), terms=terms, course=_the(records, "course", Course))
    of: dict[str, dict[str, Any]] = {kind: {} for kind in _KINDS}
    for key, record in records.items():
        kind, _, name = key.partition("/")
        of[kind][name] = record
    queues = {int(rank): queue for rank, queue in of["queue"].items()}
    holdings: dict[str, tuple[str, ...]] = {}
    for lease_id, lease in of["lease"].items():
        holdings[lease.node_id] = (*holdings.get(lease.node_id, ()), lease_id)
    return replace(
        state,
        nodes=Map(of["node"]),
        names=tuple(sorted(of["node"])),
        holdings=Map(holdings),
        queues=Map(queues),
        leases=Map(of["lease"]),
        spares=Map({int(number): spare for number, spare in of["spare"].items()}),
        open_ranks=tuple(rank for rank, queue in sorted(queues.items()) if queue.open and queue.first < queue.end),
        unstarted=sum(queue.end - queue.first for queue in queues.values()),
    )


def _the(records: dict[str, Record], key: str, kind: type[Any]) -> Any:
    record = records.get(key)
    if not isinstance(record, kind):
        raise CoordinatorError(f"the journal has no record {key!r}; it is damaged, or of something else")
    return record
