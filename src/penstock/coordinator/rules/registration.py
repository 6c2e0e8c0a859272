"""How nodes come and go, until the job begins and after."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from penstock.coordinator.draft import Draft
from penstock.coordinator.events import Code, Done, Heartbeat, Leave, Register, Registered, Reply
from penstock.coordinator.rules.leases import check_drained, end_leases, open_queue
from penstock.coordinator.rules.members import check_ids, check_job, check_length, heard, member, some_names, taken
from penstock.coordinator.rules.refusal import No
from penstock.coordinator.state import Node, State

__all__ = ["heartbeat", "leave", "register", "start"]

_MAX_FORMER: Final = 8


def register(draft: Draft, event: Register, now: float) -> tuple[Reply, str]:
    """A node takes part, asks again whether all are there, or takes the place of an earlier process."""
    check_ids(event.job_id, event.node_id)
    check_length("instance", event.instance)
    if event.caps is None:
        raise No(Code.INVALID_ARGUMENT, "caps are missing; a node says what it can do when it registers")
    state = draft.state
    check_job(state, event.job_id)
    known = state.nodes.get(event.node_id)
    if state.course.phase == "failed":
        raise No(Code.FAILED_PRECONDITION, f"the job failed: {state.course.reason}")
    if known is None and state.course.world_size:
        raise No(
            Code.FAILED_PRECONDITION,
            f"node {event.node_id!r} isn't one of the {state.course.world_size} nodes that this job began with "
            f"({some_names(state)}); register under the id of one that is gone, or begin another job",
        )
    if known is not None and event.instance in known.former:
        raise taken(event.node_id)
    heard(draft, event.node_id, now)
    if known is None:
        reason = _admit(draft, event, now)
    elif known.instance != event.instance:
        reason = _replace(draft, event, known)
    else:
        reason = f"{event.node_id} asks again"
    return _registered(draft.state, event.node_id), reason


def _admit(draft: Draft, event: Register, now: float) -> str:
    assert event.caps is not None
    if draft.state.since_s is None:
        draft.since(now)
    if not draft.state.course.job_id:
        draft.course(job_id=event.job_id)
    draft.node(event.node_id, Node(rank=0, instance=event.instance, caps=event.caps))
    count, wanted = len(draft.state.nodes), draft.state.job.world_size
    draft.note("membership_wait", registered=count, world_size=wanted)
    if count == wanted:
        start(draft)
    return f"{event.node_id} is node {count} of {wanted}"


def start(draft: Draft) -> None:
    """Rank the nodes that are there, and deal them the blocks."""
    for rank, node_id in enumerate(draft.state.names):
        draft.node(node_id, replace(draft.state.nodes[node_id], rank=rank))
    draft.course(phase="running", world_size=len(draft.state.nodes))
    draft.deal()
    check_drained(draft)


def _replace(draft: Draft, event: Register, known: Node) -> str:
    """Another process under the same id. What the earlier one had ends in its own time, as nobody may report it now."""
    assert event.caps is not None
    former = (*known.former, known.instance)[-_MAX_FORMER:] if known.instance else known.former
    since = draft.state.course.fence
    draft.node(event.node_id, Node(known.rank, event.instance, event.caps, former, since))
    left = len(draft.state.holdings.get(event.node_id, ()))
    return f"{event.node_id} was restarted; {left} leases of its earlier process end when their time is over"


def _registered(state: State, node_id: str) -> Registered:
    return Registered(
        rank=state.rank_of(node_id),
        world_size=state.course.world_size or state.job.world_size,
        manifest_hash=state.job.manifest_hash,
        heartbeat_interval_s=state.terms.heartbeat_interval_s,
        lease_ttl_s=state.terms.lease_ttl_s,
        registered=len(state.nodes),
        ready=state.course.world_size > 0,
        seed=state.job.seed,
    )


def heartbeat(draft: Draft, event: Heartbeat, now: float) -> tuple[Reply, str]:
    """A node lives."""
    member(draft.state, event.job_id, event.node_id, event.instance)
    heard(draft, event.node_id, now, stats=event.stats)
    return Done(), f"{event.node_id} lives"


def leave(draft: Draft, event: Leave) -> tuple[Reply, str]:
    """A node ends: what it has goes to others at once."""
    node = member(draft.state, event.job_id, event.node_id, event.instance)
    mine = draft.state.holdings.get(event.node_id, ())
    own = [lease_id for lease_id in mine if draft.state.leases[lease_id].fence > node.since]
    ended = end_leases(draft, own, "its holder left")
    opened = open_queue(draft, node.rank)
    return Done(), f"{event.node_id} left; {ended} leases and {opened} blocks go to others"
