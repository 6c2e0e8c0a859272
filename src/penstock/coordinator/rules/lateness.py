"""What becomes late as time passes, and what doesn't when somebody else begins to lead."""

from __future__ import annotations

from penstock.coordinator.draft import Draft
from penstock.coordinator.events import Done, Recover, Reply
from penstock.coordinator.rules.leases import end_leases, open_queue
from penstock.coordinator.rules.members import check_job, heard, some_names
from penstock.coordinator.rules.registration import start
from penstock.coordinator.state import Held

__all__ = ["recover", "tick"]


def tick(draft: Draft, now: float) -> tuple[Reply, str]:
    """End what nobody reported in time, and give away what silent nodes had before them."""
    phase = draft.state.course.phase
    if phase == "gathering":
        return Done(), _check_barrier(draft, now)
    if phase != "running":
        return Done(), f"the job is {phase}"
    if now < draft.state.due_s:
        return Done(), "nothing is late"
    ttl_s = draft.state.terms.lease_ttl_s
    late = [lease_id for lease_id, held in draft.state.held.items() if draft.state.ends_s(lease_id, held) <= now]
    expired = end_leases(draft, late, "no report of it was accepted")
    # Sorted: a Map's own order is another one in each process.
    silent = sorted(node_id for node_id, pulse in draft.state.pulses.items() if pulse.heard_s + ttl_s <= now)
    released = sum(open_queue(draft, draft.state.nodes[node_id].rank) for node_id in silent)
    ends = [draft.state.ends_s(lease_id, held) for lease_id, held in draft.state.held.items()]
    ends += [pulse.heard_s + ttl_s for pulse in draft.state.pulses.values() if pulse.heard_s + ttl_s > now]
    draft.due(min([now + ttl_s, *ends]))  # what is heard or granted from now on is due later than that
    if not (expired or released):
        return Done(), "nothing is late"
    return Done(), f"{expired} leases expired, {released} blocks of silent nodes go to whoever asks"


def _check_barrier(draft: Draft, now: float) -> str:
    state = draft.state
    limit_s = state.terms.barrier_timeout_s
    if limit_s is None or state.since_s is None or now < state.since_s + limit_s:
        return f"{len(state.nodes)} of {state.job.world_size} nodes are here"
    if 0 < state.terms.min_world_size <= len(state.nodes):
        start(draft)
        return f"{len(state.nodes)} of {state.job.world_size} nodes came within {limit_s:g} s; it begins with these"
    reason = (
        f"only {len(state.nodes)} of {state.job.world_size} nodes registered within {limit_s:g} s: "
        f"{some_names(state)}; see why the others don't come, allow more time, or a smaller world"
    )
    draft.course(phase="failed", reason=reason)
    draft.note("membership_timeout", registered=len(state.nodes), world_size=state.job.world_size)
    return reason


def recover(draft: Draft, event: Recover, now: float) -> tuple[Reply, str]:
    """Nothing is known of times: everybody gets their whole time again, which is late, and so safe."""
    if event.job_id:
        check_job(draft.state, event.job_id)
    course = draft.state.course
    draft.course(fence=max(course.fence + 1, event.term), job_id=course.job_id or event.job_id)
    for node_id in draft.state.nodes:
        heard(draft, node_id, now)
    draft.due(now)
    for lease_id in draft.state.leases:
        draft.hold(lease_id, Held(now, now))
    if draft.state.nodes and (draft.state.since_s is None or course.phase == "gathering"):
        draft.since(now)
    leases, nodes = len(draft.state.leases), len(draft.state.nodes)
    return Done(), f"took over with {nodes} nodes and {leases} live leases, term {event.term}"
