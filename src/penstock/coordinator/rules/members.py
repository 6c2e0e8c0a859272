"""Who is a member, and what was heard of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from immutables import Map

from penstock.coordinator.draft import Draft
from penstock.coordinator.events import Code
from penstock.coordinator.rules.refusal import No
from penstock.coordinator.state import Node, Pulse, State

__all__ = ["MAX_ID", "check_begun", "check_ids", "check_job", "check_length", "heard", "member", "some_names", "taken"]

MAX_ID: Final = 256


def member(state: State, job_id: str, node_id: str, instance: str) -> Node:
    """The node that says this, if it is one of this job's and no later process took its place."""
    check_ids(job_id, node_id)
    check_length("instance", instance)
    check_job(state, job_id)
    node = state.nodes.get(node_id)
    if node is None:
        raise No(Code.FAILED_PRECONDITION, f"node {node_id!r} isn't registered; register it first")
    if node.instance != instance:
        raise taken(node_id)
    return node


def heard(
    draft: Draft,
    node_id: str,
    now: float,
    *,
    samples: int = 0,
    payload_bytes: int = 0,
    stats: Map[str, int] | None = None,
) -> None:
    """It lives, and says so much of itself."""
    known = draft.state.pulses.get(node_id) or Pulse(now)
    stats = known.stats if stats is None else stats
    draft.pulse(node_id, Pulse(now, known.samples + samples, known.payload_bytes + payload_bytes, stats))
    node = draft.state.nodes.get(node_id)
    if node is not None:  # who is back has its queue to itself again
        queue = draft.state.queues.get(node.rank)
        if queue is not None and queue.open:
            draft.queue(node.rank, replace(queue, open=False))


def taken(node_id: str) -> No:
    """The refusal of a process whose place another one has."""
    return No(
        Code.FAILED_PRECONDITION,
        f"another process has registered as {node_id!r} since; give each process a node_id of its own",
    )


def check_ids(job_id: str, node_id: str) -> None:
    """Refuse names that are blank or too long."""
    for name, given in (("job_id", job_id), ("node_id", node_id)):
        if not given.strip():
            raise No(Code.INVALID_ARGUMENT, f"{name} is blank; give it a name")
        check_length(name, given)


def check_length(name: str, given: str) -> None:
    """Refuse what would fill the journal, or an answer that repeats it."""
    if len(given) > MAX_ID:
        raise No(Code.INVALID_ARGUMENT, f"{name} has {len(given)} characters; at most {MAX_ID} are allowed")


def check_job(state: State, job_id: str) -> None:
    """A coordinator has one job, under any name; but a node of another job would take its samples unnoticed."""
    known = state.course.job_id
    if known and job_id != known:
        raise No(
            Code.FAILED_PRECONDITION,
            f"this coordinator's job is {known!r}, as it was first called, not {job_id!r}; give all nodes of a job the "
            "same job_id, and each job a coordinator and a journal of its own",
        )


def check_begun(state: State) -> None:
    """Refuse what can't be asked before all nodes are there."""
    course = state.course
    if course.phase == "failed":
        raise No(Code.FAILED_PRECONDITION, f"the job failed: {course.reason}")
    if not course.world_size:
        raise No(
            Code.FAILED_PRECONDITION,
            f"the job waits for {state.job.world_size - len(state.nodes)} more of {state.job.world_size} nodes; "
            "register until job_ready",
        )


def some_names(state: State) -> str:
    """A few of the nodes, for people."""
    names = sorted(state.nodes)
    return ", ".join(names[:8]) + (f", and {len(names) - 8} more" if len(names) > 8 else "")
