"""The rules from outside: ``begin`` a job, then ``apply`` events to it, one after the other."""

from __future__ import annotations

from typing import NamedTuple

from penstock.coordinator.draft import Changes, Draft, Note
from penstock.coordinator.events import (
    Done,
    Event,
    Heartbeat,
    Leave,
    Progress,
    Recover,
    Refused,
    Register,
    Reply,
    RequestLease,
    Restore,
    Tick,
)
from penstock.coordinator.rules.beginning import check_whole, restore
from penstock.coordinator.rules.lateness import recover, tick
from penstock.coordinator.rules.leases import progress, request
from penstock.coordinator.rules.refusal import No
from penstock.coordinator.rules.registration import heartbeat, leave, register
from penstock.coordinator.state import Job, State, Terms

__all__ = ["Outcome", "apply", "begin"]


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
    check_whole(job)
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
    except No as no:
        return Outcome(state, Refused(no.code, no.reason), no.reason, {}, no.notes)
    return Outcome(draft.state, reply, reason, draft.changes, tuple(draft.notes))


def _decide(draft: Draft, event: Event, now: float) -> tuple[Reply, str]:
    match event:
        case Register():
            return register(draft, event, now)
        case Heartbeat():
            return heartbeat(draft, event, now)
        case RequestLease():
            return request(draft, event, now)
        case Progress():
            return progress(draft, event, now)
        case Leave():
            return leave(draft, event)
        case Restore():
            return restore(draft, event)
        case Recover():
            return recover(draft, event, now)
        case Tick():
            return tick(draft, now)
