"""What a job looks like at a moment, for people: one small document of plain values. Pure.

Its size has a bound, whatever the job's: ``MAX_CELLS`` bars, ``MAX_NODES`` nodes, ``MAX_LEASES`` leases. Sums and
counts are over all of them.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from immutables import Map

from penstock.coordinator.coverage import Coverage, coverage_of
from penstock.coordinator.draft import Note
from penstock.coordinator.state import Held, Lease, Node, Pulse, State

__all__ = ["FORMAT", "MAX_LEASES", "MAX_NODES", "Reading", "Snapshot", "Told", "reading_of", "snapshot_of"]

FORMAT: Final = 1
MAX_NODES: Final = 200
MAX_LEASES: Final = 200
_SILENT_BEATS: Final = 3.0  # heartbeats that may be missed before a node is called silent

Snapshot: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reading:
    """What rates are counted from: how far things were at an earlier moment.

    Attributes:
        at_s: when, by the coordinator's clock.
        done: samples that were done by then, over all epochs.
        pulses: what had been heard of nodes.
    """

    at_s: float
    done: int
    pulses: Map[str, Pulse] = field(default_factory=Map)


@dataclass(frozen=True, slots=True)
class Told:
    """A note, and when it was told, by the coordinator's clock."""

    at_s: float
    note: Note


def snapshot_of(
    state: State, now: float, before: Reading | None = None, told: Sequence[Told] = (), rates: Sequence[float] = ()
) -> Snapshot:
    """The document.

    Args:
        state: of the job.
        now: seconds, by the coordinator's clock.
        before: what rates are counted from; without it they are 0.
        told: what happened lately, oldest first.
        rates: samples/s of the job lately, oldest first; the time left follows from their mean.
    """
    coverage = coverage_of(state)
    done, leased, queued = (int(part.sum()) for part in (coverage.done, coverage.leased, coverage.queued))
    past, to_come = _epochs(state)
    rate = _rate(past + done, before.done, now - before.at_s) if before else 0.0
    left = leased + queued + to_come
    nodes = _nodes(state, now, before)
    return {
        "format": FORMAT,
        **_about(state, now),
        "done": done,
        "leased": leased,
        "queued": queued,
        "done_of_all_epochs": past + done,
        "left_of_all_epochs": left,
        "samples_per_s": rate,
        "left_s": _left_s(state, left, rates or (rate,)) if nodes["live"] else None,
        "rates": [round(each, 1) for each in rates],
        "cells": _cells(coverage),
        "nodes": nodes,
        "leases": _leases(state, now),
        "events": [_event(each, now) for each in told],
    }


def reading_of(state: State, now: float) -> Reading:
    """To count rates from, later."""
    return Reading(now, _epochs(state)[0] + int(coverage_of(state, 1).done.sum()), state.pulses)


def _about(state: State, now: float) -> Snapshot:
    job, course, terms = state.job, state.course, state.terms
    return {
        "phase": course.phase,
        "reason": course.reason,
        "manifest_hash": job.manifest_hash,
        "samples": job.samples,
        "block_samples": job.block_samples,
        "shuffle": job.shuffle,
        "seed": job.seed,
        "epoch": course.epoch,
        "first_epoch": job.epoch,
        "epochs": job.epochs,
        "world_size": course.world_size or job.world_size,
        "registered": len(state.nodes),
        "since_s": None if state.since_s is None else _s(now - state.since_s),
        "granted": course.issued,
        "fence": course.fence,
        "given_back": len(state.spares),
        "lease_ttl_s": terms.lease_ttl_s,
        "heartbeat_interval_s": terms.heartbeat_interval_s,
        "barrier_timeout_s": terms.barrier_timeout_s,
    }


def _epochs(state: State) -> tuple[int, int]:
    """Samples of the epochs before this one, and of those after it."""
    job, course = state.job, state.course
    gone = course.epoch - job.epoch
    return gone * job.samples, (job.epochs - gone - 1) * job.samples


def _left_s(state: State, left: int, rates: Sequence[float]) -> float | None:
    """As it went lately, on the whole: what the last seconds say jumps with every report."""
    mean = sum(rates) / len(rates)
    return _s(left / mean) if mean and state.course.phase == "running" else None


def _cells(coverage: Coverage) -> Snapshot:
    return {
        "width": coverage.width,
        "done": coverage.done.tolist(),
        "leased": coverage.leased.tolist(),
        "rank": coverage.rank.tolist(),
    }


# Nodes.


def _nodes(state: State, now: float, before: Reading | None) -> Snapshot:
    """Few nodes: all, by rank. Many: those that want a look, the silent ones and then the slowest."""
    leases = Counter(lease.node_id for lease in state.leases.values())
    rows = [
        {**_node(state, node_id, node, now, before), "leases": leases[node_id]} for node_id, node in state.nodes.items()
    ]
    status = Counter(row["status"] for row in rows)
    if len(rows) > MAX_NODES:
        shown = heapq.nsmallest(MAX_NODES, rows, key=lambda row: (row["status"] == "live", row["samples_per_s"]))
    else:
        shown = sorted(rows, key=lambda row: row["rank"])
    summed = ("samples_per_s", "bytes_per_s", "samples", "bytes")
    here = [row for row in rows if row["status"] != "gone"]  # what the others had in memory is gone as well
    return {
        "count": len(rows),
        **{name: status[name] for name in ("live", "silent", "gone")},
        **{name: sum(row[name] for row in rows) for name in summed},
        **{name: sum(row[name] for row in here) for name in ("inflight_bytes", "max_inflight_bytes")},
        "shown": shown,
    }


def _node(state: State, node_id: str, node: Node, now: float, before: Reading | None) -> Snapshot:
    pulse = state.pulses.get(node_id, Pulse(now))
    earlier = before.pulses.get(node_id, Pulse(before.at_s)) if before else pulse
    span_s = now - before.at_s if before else 0.0
    queue = state.queues.get(node.rank)
    return {
        "id": node_id,
        "rank": state.rank_of(node_id),
        "status": _status(state, now - pulse.heard_s, queue is not None and queue.open),
        "heard_s": _s(now - pulse.heard_s),
        "samples_per_s": _rate(pulse.samples, earlier.samples, span_s),
        "bytes_per_s": _rate(pulse.payload_bytes, earlier.payload_bytes, span_s),
        "samples": pulse.samples,
        "bytes": pulse.payload_bytes,
        "inflight_bytes": pulse.stats.get("inflight_bytes", 0),
        "ram_high_water_bytes": pulse.stats.get("ram_high_water_bytes", 0),
        "max_inflight_bytes": node.caps.max_inflight_bytes,
        "queued_blocks": queue.end - queue.first if queue is not None else 0,
    }


def _status(state: State, silence_s: float, released: bool) -> str:
    if released or silence_s > state.terms.lease_ttl_s:
        return "gone"
    return "silent" if silence_s > _SILENT_BEATS * state.terms.heartbeat_interval_s else "live"


# Leases.


def _leases(state: State, now: float) -> Snapshot:
    """Few leases: all. Many: those that end soonest. Either way in the order of their samples."""
    leases: Iterable[tuple[str, Lease]] = state.leases.items()
    if len(state.leases) > MAX_LEASES:
        leases = heapq.nsmallest(MAX_LEASES, leases, key=lambda each: _held(state, each[0], now).renewed_s)
    shown = sorted(leases, key=lambda each: each[1].start)
    return {"count": len(state.leases), "shown": [_lease(state, lease_id, lease, now) for lease_id, lease in shown]}


def _lease(state: State, lease_id: str, lease: Lease, now: float) -> Snapshot:
    held = _held(state, lease_id, now)
    return {
        "id": lease_id,
        "node": lease.node_id,
        "rank": state.nodes[lease.node_id].rank,
        "start": lease.start,
        "end": lease.end,
        "cursor": lease.cursor,
        "fence": lease.fence,
        "ends_in_s": _s(state.ends_s(lease_id, held) - now),
        "still_s": _s(now - held.moved_s),
    }


def _held(state: State, lease_id: str, now: float) -> Held:
    return state.held.get(lease_id) or Held(now, now)


# Numbers.


def _rate(now: int, before: int, span_s: float) -> float:
    """Per second; a count that went back belongs to another process, so it says nothing."""
    return round(max(0, now - before) / span_s, 3) if span_s > 0 else 0.0


def _s(seconds: float) -> float:
    return round(seconds, 3)


def _event(told: Told, now: float) -> Snapshot:
    return {"ago_s": _s(now - told.at_s), "event": told.note.event, "fields": dict(told.note.fields)}
