"""Leases: who gets which samples, how far they are, and where what is left of them goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from penstock.coordinator.blocks import SampleRange
from penstock.coordinator.draft import Draft, Note
from penstock.coordinator.events import Code, Done, Granted, GrantedLease, Progress, Reply, RequestLease
from penstock.coordinator.rules.members import check_begun, check_length, heard, member
from penstock.coordinator.rules.refusal import No
from penstock.coordinator.state import Held, Lease, State

__all__ = ["MAX_WANT", "check_drained", "end_leases", "open_queue", "progress", "request"]

MAX_WANT: Final = 1024
"""Most leases in one answer; who wants more gets so many."""

_ASKS_PER_S: Final = 2000


def request(draft: Draft, event: RequestLease, now: float) -> tuple[Reply, str]:
    """Grant a node as many as it wants, as far as there are any."""
    node = member(draft.state, event.job_id, event.node_id, event.instance)
    if event.want < 1:
        raise No(Code.INVALID_ARGUMENT, f"want is {event.want}; ask for at least 1 lease")
    check_length("request", event.request)
    check_begun(draft.state)
    heard(draft, event.node_id, now)
    if event.request and event.request == node.request:
        again = tuple(lease_id for lease_id in node.granted if lease_id in draft.state.leases)
        return _granted(draft.state, again), f"{event.node_id} gets the answer to {event.request} again"
    granted: list[str] = []
    while len(granted) < min(event.want, MAX_WANT) and (found := _next_range(draft, node.rank)) is not None:
        granted.append(_grant(draft, event.node_id, found, now))
    if event.request and granted:
        node = replace(node, request=event.request, granted=tuple(granted))
        draft.node(event.node_id, node)
    return _granted(draft.state, tuple(granted)), f"{event.node_id} gets {len(granted)} of {event.want} leases"


def _next_range(draft: Draft, rank: int) -> SampleRange | None:
    """What is granted next: what was begun and given back, then the rank's own blocks, then those of the gone."""
    state = draft.state
    if state.spares:
        return draft.pop_spare()
    if not state.unstarted:
        return None
    own = state.queues[rank]
    if own.first < own.end:
        draft.queue(rank, replace(own, first=own.first + 1))
        return state.block_of(rank, own.first)
    if state.open_ranks:
        other = state.open_ranks[0]
        queue = state.queues[other]
        draft.queue(other, replace(queue, first=queue.first + 1))
        return state.block_of(other, queue.first)
    return _steal(draft) if state.terms.steal else None


def _steal(draft: Draft) -> SampleRange:
    """The last block of the longest queue: the one that its owner would come to last."""
    other, queue = max(draft.state.queues.items(), key=lambda item: (item[1].end - item[1].first, -item[0]))
    draft.queue(other, replace(queue, end=queue.end - 1))
    return draft.state.block_of(other, queue.end - 1)


def _grant(draft: Draft, node_id: str, samples: SampleRange, now: float) -> str:
    course = draft.course(issued=draft.state.course.issued + 1, fence=draft.state.course.fence + 1)
    lease_id = f"lease-{course.issued - 1}"
    ttl_s = draft.state.terms.lease_ttl_s
    draft.lease(lease_id, Lease(node_id, samples.start, samples.end, samples.start, course.fence, course.epoch, ttl_s))
    draft.hold(lease_id, Held(now, now))
    draft.note("lease_granted", lease=lease_id, node=node_id, start=samples.start, end=samples.end, epoch=course.epoch)
    return lease_id


def _granted(state: State, lease_ids: tuple[str, ...]) -> Granted:
    def told(lease_id: str, lease: Lease) -> GrantedLease:
        return GrantedLease(
            lease_id,
            lease.node_id,
            lease.start,
            lease.end,
            lease.cursor,
            lease.epoch,
            state.job.seed,
            lease.fence,
            lease.ttl_s or state.terms.lease_ttl_s,
        )

    leases = tuple(told(lease_id, state.leases[lease_id]) for lease_id in lease_ids)
    return Granted(leases, 0.0 if leases else _wait_s(state), state.course.phase == "drained")


def _wait_s(state: State) -> float:
    """Longer where many wait: together they ask often enough for whatever is given back, and no oftener."""
    return max(state.terms.wait_s, min(state.course.world_size / _ASKS_PER_S, state.terms.lease_ttl_s))


def progress(draft: Draft, event: Progress, now: float) -> tuple[Reply, str]:
    """Move a lease's cursor, which renews it; at its end it is completed."""
    node = member(draft.state, event.job_id, event.node_id, event.instance)
    _check_lease_id(event.lease_id)
    check_begun(draft.state)
    lease = draft.state.leases.get(event.lease_id)
    if lease is None and event.fence and (event.lease_id, event.fence) == (node.finished, node.finished_fence):
        return Done(), f"{event.lease_id} was completed before; {event.node_id} says so again"
    lease = _check_holder(lease, event)
    moved = event.cursor > lease.cursor
    moved_s = now if moved else draft.state.held[event.lease_id].moved_s
    if now >= moved_s + draft.state.terms.idle_lease_s:
        raise No(
            Code.FAILED_PRECONDITION,
            f"the cursor of {event.lease_id} has stood still for {now - moved_s:.0f} s, so others will do it; drop "
            "what it was for and ask for another",
        )
    samples, payload_bytes = _news(lease, event)
    heard(draft, event.node_id, now, samples=samples, payload_bytes=payload_bytes)
    if event.cursor == lease.end:
        draft.end_lease(event.lease_id)
        draft.node(event.node_id, replace(node, finished=event.lease_id, finished_fence=lease.fence))
        draft.note("lease_completed", lease=event.lease_id, node=event.node_id, start=lease.start, end=lease.end)
        check_drained(draft)
        return Done(), f"{event.node_id} completed {event.lease_id}"
    draft.hold(event.lease_id, Held(now, moved_s))
    if moved:
        draft.lease(event.lease_id, replace(lease, cursor=event.cursor))
        draft.note("progress", lease=event.lease_id, node=event.node_id, cursor=event.cursor)
    return Done(), f"{event.node_id} is at {event.cursor} of [{lease.start}, {lease.end})"


def _news(lease: Lease, event: Progress) -> tuple[int, int]:
    """Samples and bytes that weren't counted yet: what wasn't answered is said again, with what came since."""
    samples = min(event.samples, event.cursor - lease.cursor)
    return samples, event.payload_bytes * samples // max(event.samples, 1)


def _check_lease_id(lease_id: str) -> None:
    if not lease_id.strip():
        raise No(Code.INVALID_ARGUMENT, "lease_id is blank; give the one that was granted")
    check_length("lease_id", lease_id)


def _check_holder(lease: Lease | None, event: Progress) -> Lease:
    what = event.lease_id
    if lease is None:
        raise No(
            Code.NOT_FOUND, f"{what} is completed or expired, or never was; drop what it was for and ask for another"
        )
    if lease.node_id != event.node_id:
        raise No(Code.FAILED_PRECONDITION, f"{what} is {lease.node_id}'s, not {event.node_id}'s")
    if event.fence and event.fence != lease.fence:
        raise No(Code.FAILED_PRECONDITION, f"{what} has fence {lease.fence}, not {event.fence}; that one has ended")
    if not lease.start <= event.cursor <= lease.end:
        raise No(
            Code.INVALID_ARGUMENT,
            f"cursor {event.cursor} lies outside of {what}, which is [{lease.start}, {lease.end}]",
        )
    if event.cursor < lease.cursor:
        raise No(
            Code.FAILED_PRECONDITION,
            f"cursor {event.cursor} of {what} is before {lease.cursor}, where it was; it never goes back",
            Note.of("cursor_regressed", lease=what, node=event.node_id, cursor=event.cursor, was=lease.cursor),
        )
    return lease


def _end_lease(draft: Draft, lease_id: str, why: str) -> None:
    lease = draft.state.leases[lease_id]
    draft.end_lease(lease_id)
    draft.note("lease_expired", lease=lease_id, node=lease.node_id, cursor=lease.cursor, end=lease.end, why=why)
    draft.push_spare(SampleRange(lease.cursor, lease.end))
    draft.note("range_requeued", lease=lease_id, node=lease.node_id, start=lease.cursor, end=lease.end)


def end_leases(draft: Draft, lease_ids: list[str], why: str) -> int:
    """The lowest samples are pushed last, so they are granted first."""
    for lease_id in sorted(lease_ids, key=lambda each: draft.state.leases[each].start, reverse=True):
        _end_lease(draft, lease_id, why)
    return len(lease_ids)


def open_queue(draft: Draft, rank: int) -> int:
    """Let everybody take from a rank's queue; how many blocks that are."""
    queue = draft.state.queues.get(rank)
    if queue is None or queue.open:
        return 0
    draft.queue(rank, replace(queue, open=True))
    draft.note("rank_released", rank=rank, node=queue.node_id, blocks=queue.end - queue.first)
    return queue.end - queue.first


def check_drained(draft: Draft) -> None:
    """When nothing is left: the next epoch, or the end."""
    state = draft.state
    if state.leases or state.spares or state.unstarted or state.course.phase != "running":
        return
    last = state.job.epoch + state.job.epochs - 1
    if state.course.epoch < last and state.job.samples:
        draft.course(epoch=state.course.epoch + 1)
        draft.deal()
        return
    draft.course(phase="drained", epoch=last)
    draft.note("job_drained", epoch=last, samples=state.job.samples)
