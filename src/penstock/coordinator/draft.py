"""A state in the making: what one event changes, and what of it must be kept."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, replace
from typing import Any

from immutables import Map

from penstock.coordinator.blocks import SampleRange, block_count, dealt_count
from penstock.coordinator.state import Course, Held, Job, Lease, Node, Pulse, Queue, Record, State

__all__ = ["Changes", "Draft", "Note"]

Changes = dict[str, Record | None]
"""Durable records by key; None = it is gone."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth telling: the name of a proof event and its fields."""

    event: str
    fields: tuple[tuple[str, str | int], ...] = ()

    @classmethod
    def of(cls, event: str, **fields: str | int) -> Note:
        """With these fields."""
        return cls(event, tuple(fields.items()))


class Draft:
    """Changes to a state, which itself stays as it is: the first one makes a copy, which all of them then share."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._before = state
        self.changes: Changes = {}
        self.notes: list[Note] = []

    def note(self, event: str, **fields: str | int) -> None:
        """Tell of something."""
        self.notes.append(Note.of(event, **fields))

    def _set(self, **fields: Any) -> None:
        if self.state is self._before:
            self.state = replace(self.state, **fields)
            return
        for name, value in fields.items():
            object.__setattr__(self.state, name, value)  # nobody else has it yet

    # Durable records.

    def job(self, job: Job) -> None:
        """Replace it."""
        self._set(job=job)
        self.changes["job"] = job

    def course(self, **fields: Any) -> Course:
        """Change some fields of it."""
        course = replace(self.state.course, **fields)
        self._set(course=course)
        self.changes["course"] = course
        return course

    def node(self, node_id: str, node: Node) -> None:
        """Add or replace it."""
        if node_id not in self.state.nodes:
            at = bisect.bisect_left(self.state.names, node_id)
            self._set(names=(*self.state.names[:at], node_id, *self.state.names[at:]))
        self._set(nodes=self.state.nodes.set(node_id, node))
        self.changes[f"node/{node_id}"] = node

    def queue(self, rank: int, queue: Queue) -> None:
        """Add or replace it; which ones are open, and how many blocks there are, follows."""
        before = self.state.queues.get(rank)
        unstarted = self.state.unstarted + (queue.end - queue.first) - (before.end - before.first if before else 0)
        free = queue.open and queue.first < queue.end
        open_ranks = self.state.open_ranks
        if free != (rank in open_ranks):
            open_ranks = (*open_ranks, rank) if free else tuple(each for each in open_ranks if each != rank)
        self._set(queues=self.state.queues.set(rank, queue), unstarted=unstarted, open_ranks=open_ranks)
        self.changes[f"queue/{rank}"] = queue

    def lease(self, lease_id: str, lease: Lease) -> None:
        """Add or replace it."""
        if lease_id not in self.state.leases:
            mine = self.state.holdings.get(lease.node_id, ())
            self._set(holdings=self.state.holdings.set(lease.node_id, (*mine, lease_id)))
        self._set(leases=self.state.leases.set(lease_id, lease))
        self.changes[f"lease/{lease_id}"] = lease

    def end_lease(self, lease_id: str) -> None:
        """It is nobody's any more."""
        node_id = self.state.leases[lease_id].node_id
        mine = tuple(each for each in self.state.holdings[node_id] if each != lease_id)
        self._set(
            leases=self.state.leases.delete(lease_id),
            held=self.state.held.delete(lease_id),
            holdings=self.state.holdings.set(node_id, mine),
        )
        self.changes[f"lease/{lease_id}"] = None

    def push_spare(self, spare: SampleRange) -> None:
        """Samples that whoever asks next gets first."""
        number = len(self.state.spares)
        self._set(spares=self.state.spares.set(number, spare))
        self.changes[f"spare/{number}"] = spare

    def pop_spare(self) -> SampleRange:
        """What was pushed last."""
        number = len(self.state.spares) - 1
        spare = self.state.spares[number]
        self._set(spares=self.state.spares.delete(number))
        self.changes[f"spare/{number}"] = None
        return spare

    def deal(self) -> None:
        """All blocks of the epoch, to the ranks of the job."""
        state = self.state
        count, world_size = block_count(state.blocks), state.course.world_size
        owners = {node.rank: node_id for node_id, node in state.nodes.items()}
        queues = {
            rank: Queue(owners[rank], 0, dealt_count(count, rank, world_size), self._is_open(rank))
            for rank in range(world_size)
        }
        self._set(
            queues=Map(queues),
            unstarted=count,
            open_ranks=tuple(rank for rank, queue in queues.items() if queue.open and queue.end),
        )
        self.changes.update({f"queue/{rank}": queue for rank, queue in queues.items()})

    def _is_open(self, rank: int) -> bool:
        queue = self.state.queues.get(rank)
        return queue is not None and queue.open

    # What isn't durable.

    def hold(self, lease_id: str, held: Held) -> None:
        """When a lease was renewed."""
        self._set(held=self.state.held.set(lease_id, held))

    def pulse(self, node_id: str, pulse: Pulse) -> None:
        """What was heard of a node."""
        self._set(pulses=self.state.pulses.set(node_id, pulse))

    def due(self, when_s: float) -> None:
        """Nobody is late before that."""
        self._set(due_s=when_s)

    def since(self, now: float) -> None:
        """The first node has registered."""
        self._set(since_s=now)
