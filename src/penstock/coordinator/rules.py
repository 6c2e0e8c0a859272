"""The rules of a job, as one pure function: ``apply(state, event, now)``.

No clock, no randomness, no I/O: the same state, event and time give the same outcome, on every machine. Whoever calls
it keeps ``changes`` safe before it sends ``reply``, so what was answered is never forgotten. Where there are none it
makes sure that it still leads, for a reply renews a lease, and another leader wouldn't know of that.

What always holds, whatever happens in whatever order:

- each sample of the epoch is in exactly one place: done, in a lease, in a queue, or spare;
- a cursor never goes back, and only its holder moves it, with the fence of its lease;
- a lease ends when all of it is done, when its holder leaves, or when ``lease_ttl_s`` have passed since a report of it
  was last accepted; what is left of it is the next to be granted;
- a report isn't accepted any more when the cursor stands still for ``idle_lease_s``, or when its holder's place was
  taken by another process. Neither ends a lease at once, for its holder may believe in it until the ttl has passed;
- a live node's queue is its own, unless ``steal``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

from immutables import Map

from penstock.coordinator.blocks import SampleRange, block_count, join_intervals
from penstock.coordinator.draft import Changes, Draft, Note
from penstock.coordinator.events import (
    Code,
    Done,
    Event,
    Granted,
    GrantedLease,
    Heartbeat,
    Leave,
    Progress,
    Recover,
    Refused,
    Register,
    Registered,
    Reply,
    RequestLease,
    Restore,
    Tick,
)
from penstock.coordinator.state import Held, Job, Lease, Node, Pulse, State, Terms
from penstock.errors import ConfigError

__all__ = ["MAX_BLOCKS", "MAX_WANT", "Outcome", "apply", "begin"]

MAX_BLOCKS: Final = 10_000_000
"""Most blocks of an epoch: their order is kept in memory, 16 bytes each."""

MAX_WANT: Final = 1024
"""Most leases in one answer; who wants more gets so many."""

_MAX_ID: Final = 256
_MAX_FORMER: Final = 8


class Outcome(NamedTuple):
    """What comes of an event.

    Attributes:
        state: afterwards; the same object where nothing changed.
        reply: for whoever caused it.
        reason: a sentence about it, for people.
        changes: durable records that must be kept before the reply is sent.
        notes: proof events.
    """

    state: State
    reply: Reply
    reason: str
    changes: Changes
    notes: tuple[Note, ...]


def begin(job: Job, terms: Terms, *, fence: int = 0) -> Outcome:
    """A new job.

    Args:
        job: what is to be done.
        terms: how long things may take.
        fence: all of the job's are larger. With the microseconds since 1970 they are larger than those of any earlier
            job, so that its output replaces theirs.

    Raises:
        ConfigError: it can't be.
    """
    _check(job)
    state = State(job=job, terms=terms)
    draft = Draft(state)
    draft.job(job)
    draft.course(epoch=job.epoch, fence=fence)
    reason = f"a job of {job.samples} samples waits for {job.world_size} nodes"
    return Outcome(draft.state, Done(), reason, draft.changes, ())


def apply(state: State, event: Event, now: float) -> Outcome:
    """What an event does.

    Args:
        state: before it.
        event: what happened.
        now: seconds, by the coordinator's own clock, which doesn't go back.
    """
    draft = Draft(state)
    try:
        reply, reason = _decide(draft, event, now)
    except _No as no:
        return Outcome(state, Refused(no.code, no.reason), no.reason, {}, no.notes)
    return Outcome(draft.state, reply, reason, draft.changes, tuple(draft.notes))


def _decide(draft: Draft, event: Event, now: float) -> tuple[Reply, str]:
    match event:
        case Register():
            return _register(draft, event, now)
        case Heartbeat():
            return _heartbeat(draft, event, now)
        case RequestLease():
            return _request(draft, event, now)
        case Progress():
            return _progress(draft, event, now)
        case Leave():
            return _leave(draft, event)
        case Restore():
            return _restore(draft, event)
        case Recover():
            return _recover(draft, event, now)
        case Tick():
            return _tick(draft, now)


class _No(Exception):
    def __init__(self, code: Code, reason: str, *notes: Note) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.notes = notes


# Membership.


def _register(draft: Draft, event: Register, now: float) -> tuple[Reply, str]:
    _check_ids(event.job_id, event.node_id)
    if event.caps is None:
        raise _No(Code.INVALID_ARGUMENT, "caps are missing; a node says what it can do when it registers")
    state = draft.state
    _check_job(state, event.job_id)
    known = state.nodes.get(event.node_id)
    if state.course.phase == "failed":
        raise _No(Code.FAILED_PRECONDITION, f"the job failed: {state.course.reason}")
    if known is None and state.course.world_size:
        raise _No(
            Code.FAILED_PRECONDITION,
            f"node {event.node_id!r} isn't one of the {state.course.world_size} nodes that this job began with "
            f"({_some(state)}); register under the id of one that is gone, or begin another job",
        )
    if known is not None and event.instance in known.former:
        raise _taken(event.node_id)
    _heard(draft, event.node_id, now)
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
        _start(draft)
    return f"{event.node_id} is node {count} of {wanted}"


def _start(draft: Draft) -> None:
    for rank, node_id in enumerate(draft.state.names):
        draft.node(node_id, replace(draft.state.nodes[node_id], rank=rank))
    draft.course(phase="running", world_size=len(draft.state.nodes))
    draft.deal()
    _check_drained(draft)


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


def _heartbeat(draft: Draft, event: Heartbeat, now: float) -> tuple[Reply, str]:
    _member(draft.state, event.job_id, event.node_id, event.instance)
    _heard(draft, event.node_id, now, stats=event.stats)
    return Done(), f"{event.node_id} lives"


def _leave(draft: Draft, event: Leave) -> tuple[Reply, str]:
    node = _member(draft.state, event.job_id, event.node_id, event.instance)
    mine = draft.state.holdings.get(event.node_id, ())
    own = [lease_id for lease_id in mine if draft.state.leases[lease_id].fence > node.since]
    ended = _end_leases(draft, own, "its holder left")
    opened = _open_queue(draft, node.rank)
    return Done(), f"{event.node_id} left; {ended} leases and {opened} blocks go to others"


# Leases.


def _request(draft: Draft, event: RequestLease, now: float) -> tuple[Reply, str]:
    node = _member(draft.state, event.job_id, event.node_id, event.instance)
    if event.want < 1:
        raise _No(Code.INVALID_ARGUMENT, f"want is {event.want}; ask for at least 1 lease")
    _check_begun(draft.state)
    _heard(draft, event.node_id, now)
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
    draft.lease(lease_id, Lease(node_id, samples.start, samples.end, samples.start, course.fence, course.epoch))
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
            state.terms.lease_ttl_s,
        )

    leases = tuple(told(lease_id, state.leases[lease_id]) for lease_id in lease_ids)
    return Granted(leases, 0.0 if leases else state.terms.wait_s, state.course.phase == "drained")


def _progress(draft: Draft, event: Progress, now: float) -> tuple[Reply, str]:
    node = _member(draft.state, event.job_id, event.node_id, event.instance)
    _check_lease_id(event.lease_id)
    _check_begun(draft.state)
    lease = draft.state.leases.get(event.lease_id)
    if lease is None and event.fence and (event.lease_id, event.fence) == (node.finished, node.finished_fence):
        return Done(), f"{event.lease_id} was completed before; {event.node_id} says so again"
    lease = _check_holder(lease, event)
    moved = event.cursor > lease.cursor
    moved_s = now if moved else draft.state.held[event.lease_id].moved_s
    if now >= moved_s + draft.state.terms.idle_lease_s:
        raise _No(
            Code.FAILED_PRECONDITION,
            f"the cursor of {event.lease_id} has stood still for {now - moved_s:.0f} s, so others will do it; drop "
            "what it was for and ask for another",
        )
    _heard(draft, event.node_id, now, samples=event.samples, payload_bytes=event.payload_bytes)
    if event.cursor == lease.end:
        draft.end_lease(event.lease_id)
        draft.node(event.node_id, replace(node, finished=event.lease_id, finished_fence=lease.fence))
        draft.note("lease_completed", lease=event.lease_id, node=event.node_id, start=lease.start, end=lease.end)
        _check_drained(draft)
        return Done(), f"{event.node_id} completed {event.lease_id}"
    draft.hold(event.lease_id, Held(now, moved_s))
    if moved:
        draft.lease(event.lease_id, replace(lease, cursor=event.cursor))
        draft.note("progress", lease=event.lease_id, node=event.node_id, cursor=event.cursor)
    return Done(), f"{event.node_id} is at {event.cursor} of [{lease.start}, {lease.end})"


def _check_holder(lease: Lease | None, event: Progress) -> Lease:
    what = event.lease_id
    if lease is None:
        raise _No(
            Code.NOT_FOUND, f"{what} is completed or expired, or never was; drop what it was for and ask for another"
        )
    if lease.node_id != event.node_id:
        raise _No(Code.FAILED_PRECONDITION, f"{what} is {lease.node_id}'s, not {event.node_id}'s")
    if event.fence and event.fence != lease.fence:
        raise _No(Code.FAILED_PRECONDITION, f"{what} has fence {lease.fence}, not {event.fence}; that one has ended")
    if not lease.start <= event.cursor <= lease.end:
        raise _No(
            Code.INVALID_ARGUMENT,
            f"cursor {event.cursor} lies outside of {what}, which is [{lease.start}, {lease.end}]",
        )
    if event.cursor < lease.cursor:
        raise _No(
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


def _end_leases(draft: Draft, lease_ids: list[str], why: str) -> int:
    """The lowest samples are pushed last, so they are granted first."""
    for lease_id in sorted(lease_ids, key=lambda each: draft.state.leases[each].start, reverse=True):
        _end_lease(draft, lease_id, why)
    return len(lease_ids)


def _open_queue(draft: Draft, rank: int) -> int:
    queue = draft.state.queues.get(rank)
    if queue is None or queue.open:
        return 0
    draft.queue(rank, replace(queue, open=True))
    draft.note("rank_released", rank=rank, node=queue.node_id, blocks=queue.end - queue.first)
    return queue.end - queue.first


def _check_drained(draft: Draft) -> None:
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


# Time, and who keeps it.


def _tick(draft: Draft, now: float) -> tuple[Reply, str]:
    phase = draft.state.course.phase
    if phase == "gathering":
        return Done(), _check_barrier(draft, now)
    if phase != "running":
        return Done(), f"the job is {phase}"
    if now < draft.state.due_s:
        return Done(), "nothing is late"
    ttl_s = draft.state.terms.lease_ttl_s
    late = [lease_id for lease_id, held in draft.state.held.items() if held.renewed_s + ttl_s <= now]
    expired = _end_leases(draft, late, "no report of it was accepted")
    # Sorted: a Map's own order is another one in each process.
    silent = sorted(node_id for node_id, pulse in draft.state.pulses.items() if pulse.heard_s + ttl_s <= now)
    released = sum(_open_queue(draft, draft.state.nodes[node_id].rank) for node_id in silent)
    heard = [held.renewed_s for held in draft.state.held.values()]
    heard += [pulse.heard_s for pulse in draft.state.pulses.values() if pulse.heard_s + ttl_s > now]
    draft.due(min(heard, default=now) + ttl_s)  # what is heard from now on is due later than that
    if not (expired or released):
        return Done(), "nothing is late"
    return Done(), f"{expired} leases expired, {released} blocks of silent nodes go to whoever asks"


def _check_barrier(draft: Draft, now: float) -> str:
    state = draft.state
    limit_s = state.terms.barrier_timeout_s
    if limit_s is None or state.since_s is None or now < state.since_s + limit_s:
        return f"{len(state.nodes)} of {state.job.world_size} nodes are here"
    if 0 < state.terms.min_world_size <= len(state.nodes):
        _start(draft)
        return f"{len(state.nodes)} of {state.job.world_size} nodes came within {limit_s:g} s; it begins with these"
    reason = (
        f"only {len(state.nodes)} of {state.job.world_size} nodes registered within {limit_s:g} s: {_some(state)}; "
        "see why the others don't come, allow more time, or a smaller world"
    )
    draft.course(phase="failed", reason=reason)
    draft.note("membership_timeout", registered=len(state.nodes), world_size=state.job.world_size)
    return reason


def _restore(draft: Draft, event: Restore) -> tuple[Reply, str]:
    job, course = draft.state.job, draft.state.course
    try:
        done = join_intervals(event.done)
    except ValueError as error:
        raise _No(Code.INVALID_ARGUMENT, f"the checkpoint's intervals overlap: {error}") from None
    if (event.epoch, done) == (job.epoch, job.done):
        return Done(), "that is where it begins"
    if course.world_size:
        raise _No(
            Code.FAILED_PRECONDITION,
            "the job has begun, from another place; a checkpoint is loaded before the last node registers",
        )
    if job.done:
        raise _No(Code.FAILED_PRECONDITION, "another checkpoint is loaded already; all nodes load the same one")
    if not job.epoch <= event.epoch < job.epoch + job.epochs:
        raise _No(
            Code.FAILED_PRECONDITION,
            f"the checkpoint is of epoch {event.epoch}; this job has epochs {job.epoch} to "
            f"{job.epoch + job.epochs - 1}",
        )
    if done and not (done[0][0] >= 0 and done[-1][1] <= job.samples):
        raise _No(Code.INVALID_ARGUMENT, f"the checkpoint's intervals lie outside of [0, {job.samples})")
    epochs = job.epoch + job.epochs - event.epoch
    draft.job(replace(job, epoch=event.epoch, epochs=epochs, done=done))
    draft.course(epoch=event.epoch)
    return Done(), f"{sum(end - start for start, end in done)} samples of epoch {event.epoch} are done already"


def _recover(draft: Draft, event: Recover, now: float) -> tuple[Reply, str]:
    """Nothing is known of times: everybody gets their whole time again, which is late, and so safe."""
    draft.course(fence=max(draft.state.course.fence + 1, event.term))
    for node_id in draft.state.nodes:
        _heard(draft, node_id, now)
    draft.due(now)
    for lease_id in draft.state.leases:
        draft.hold(lease_id, Held(now, now))
    if draft.state.nodes and draft.state.since_s is None:
        draft.since(now)
    leases, nodes = len(draft.state.leases), len(draft.state.nodes)
    return Done(), f"took over with {nodes} nodes and {leases} live leases, term {event.term}"


# Checks.


def _heard(
    draft: Draft,
    node_id: str,
    now: float,
    *,
    samples: int = 0,
    payload_bytes: int = 0,
    stats: Map[str, int] | None = None,
) -> None:
    known = draft.state.pulses.get(node_id) or Pulse(now)
    stats = known.stats if stats is None else stats
    draft.pulse(node_id, Pulse(now, known.samples + samples, known.payload_bytes + payload_bytes, stats))
    node = draft.state.nodes.get(node_id)
    if node is not None:  # who is back has its queue to itself again
        queue = draft.state.queues.get(node.rank)
        if queue is not None and queue.open:
            draft.queue(node.rank, replace(queue, open=False))


def _member(state: State, job_id: str, node_id: str, instance: str) -> Node:
    _check_ids(job_id, node_id)
    _check_job(state, job_id)
    node = state.nodes.get(node_id)
    if node is None:
        raise _No(Code.FAILED_PRECONDITION, f"node {node_id!r} isn't registered; register it first")
    if node.instance != instance:
        raise _taken(node_id)
    return node


def _taken(node_id: str) -> _No:
    return _No(
        Code.FAILED_PRECONDITION,
        f"another process has registered as {node_id!r} since; give each process a node_id of its own",
    )


def _check_ids(job_id: str, node_id: str) -> None:
    for name, given in (("job_id", job_id), ("node_id", node_id)):
        if not given.strip():
            raise _No(Code.INVALID_ARGUMENT, f"{name} is blank; give it a name")
        if len(given) > _MAX_ID:
            raise _No(Code.INVALID_ARGUMENT, f"{name} has {len(given)} characters; at most {_MAX_ID} are allowed")


def _check_job(state: State, job_id: str) -> None:
    """A coordinator has one job, under any name; but a node of another job would take its samples unnoticed."""
    known = state.course.job_id
    if known and job_id != known:
        raise _No(
            Code.FAILED_PRECONDITION,
            f"this coordinator's job is {known!r}, as its first node called it, not {job_id!r}; give all nodes of a "
            "job the same job_id, and each job a coordinator of its own",
        )


def _check_lease_id(lease_id: str) -> None:
    if not lease_id.strip():
        raise _No(Code.INVALID_ARGUMENT, "lease_id is blank; give the one that was granted")


def _check_begun(state: State) -> None:
    course = state.course
    if course.phase == "failed":
        raise _No(Code.FAILED_PRECONDITION, f"the job failed: {course.reason}")
    if not course.world_size:
        raise _No(
            Code.FAILED_PRECONDITION,
            f"the job waits for {state.job.world_size - len(state.nodes)} more of {state.job.world_size} nodes; "
            "register until job_ready",
        )


def _some(state: State) -> str:
    names = sorted(state.nodes)
    return ", ".join(names[:8]) + (f", and {len(names) - 8} more" if len(names) > 8 else "")


def _check(job: Job) -> None:
    for name, least in (
        ("samples", 0),
        ("block_samples", 1),
        ("epoch", 0),
        ("epochs", 1),
        ("world_size", 1),
        ("seed", 0),
    ):
        value = getattr(job, name)
        if value < least:
            raise ConfigError(f"{name} is {value}; it is at least {least}")
    if -(-job.samples // job.block_samples) > MAX_BLOCKS:
        raise ConfigError(
            f"{job.samples} samples in blocks of {job.block_samples} are more than {MAX_BLOCKS}; make them larger"
        )
    if job.done and (job.done[0][0] < 0 or job.done[-1][1] > job.samples or join_intervals(job.done) != job.done):
        raise ConfigError("the intervals that are done must be ascending, apart, and within the samples")
    block_count(State(job=job).blocks)
