"""Messages into events and replies, and back. Pure.

``read_x`` takes a message, ``write_x`` makes one. A coordinator reads requests and writes responses; a node does the
opposite.
"""

from __future__ import annotations

from typing import Final

from immutables import Map

from penstock.coordinator import events
from penstock.coordinator.state import Caps
from penstock.coordinator.wire import coordinator_pb2 as wire

__all__ = [
    "CALLS",
    "LEADER_METADATA",
    "read_granted",
    "read_heartbeat",
    "read_leave",
    "read_progress",
    "read_register",
    "read_registered",
    "read_request",
    "read_saying",
    "write_granted",
    "write_heartbeat",
    "write_leave",
    "write_progress",
    "write_register",
    "write_registered",
    "write_request",
]

LEADER_METADATA: Final = "penstock-leader"
"""Trailing metadata of UNAVAILABLE: host:port of the coordinator to ask instead."""

CALLS: Final = {"heartbeat": "Heartbeat", "request": "RequestLease", "progress": "ReportProgress"}
"""What is said in a conversation, and the call that says the same."""

_MOST_32 = 2**32 - 1
_STATS = ("inflight_bytes", "ram_high_water_bytes", "fetch_queue_depth", "decode_queue_depth", "pack_queue_depth")


def _ms(seconds: float) -> int:
    return min(round(seconds * 1000), _MOST_32)


# Requests.


def read_register(message: wire.RegisterNodeRequest) -> events.Register:
    """A node wants to take part."""
    return events.Register(
        job_id=message.job_id,
        node_id=message.node_id,
        caps=_read_caps(message.caps) if message.HasField("caps") else None,
        instance=message.instance,
    )


def write_register(event: events.Register) -> wire.RegisterNodeRequest:
    """The same, as a message."""
    return wire.RegisterNodeRequest(
        job_id=event.job_id,
        node_id=event.node_id,
        caps=None if event.caps is None else _write_caps(event.caps),
        instance=event.instance,
    )


def _read_caps(caps: wire.NodeCaps) -> Caps:
    return Caps(caps.max_fetch_concurrency, caps.max_decode_concurrency, caps.max_inflight_bytes, caps.max_ram_bytes)


def _write_caps(caps: Caps) -> wire.NodeCaps:
    return wire.NodeCaps(
        max_fetch_concurrency=min(caps.max_fetch_concurrency, _MOST_32),
        max_decode_concurrency=min(caps.max_decode_concurrency, _MOST_32),
        max_inflight_bytes=caps.max_inflight_bytes,
        max_ram_bytes=caps.max_ram_bytes,
    )


def read_heartbeat(message: wire.HeartbeatRequest) -> events.Heartbeat:
    """A node lives. What its clock says isn't asked."""
    stats = message.stats
    told = Map({name: getattr(stats, name) for name in _STATS}) if message.HasField("stats") else Map[str, int]()
    return events.Heartbeat(message.job_id, message.node_id, told, message.instance)


def write_heartbeat(event: events.Heartbeat, *, unix_time_ms: int) -> wire.HeartbeatRequest:
    """The same, as a message, with the node's time."""
    told = {name: event.stats[name] for name in _STATS if name in event.stats}
    return wire.HeartbeatRequest(
        job_id=event.job_id,
        node_id=event.node_id,
        unix_time_ms=unix_time_ms,
        stats=wire.NodeStats(**told),
        instance=event.instance,
    )


def read_request(message: wire.RequestLeaseRequest) -> events.RequestLease:
    """A node wants leases."""
    return events.RequestLease(message.job_id, message.node_id, message.want, message.instance, message.request)


def write_request(event: events.RequestLease) -> wire.RequestLeaseRequest:
    """The same, as a message."""
    return wire.RequestLeaseRequest(
        job_id=event.job_id, node_id=event.node_id, want=event.want, instance=event.instance, request=event.request
    )


def read_progress(message: wire.ReportProgressRequest) -> events.Progress:
    """A node has come further. What its clock says isn't asked."""
    return events.Progress(
        message.job_id,
        message.node_id,
        message.lease_id,
        message.cursor,
        message.delivered_samples,
        message.delivered_bytes,
        message.instance,
        message.fence,
    )


def write_progress(event: events.Progress, *, unix_time_ms: int) -> wire.ReportProgressRequest:
    """The same, as a message, with the node's time."""
    return wire.ReportProgressRequest(
        job_id=event.job_id,
        node_id=event.node_id,
        lease_id=event.lease_id,
        cursor=event.cursor,
        delivered_samples=event.samples,
        delivered_bytes=event.payload_bytes,
        unix_time_ms=unix_time_ms,
        instance=event.instance,
        fence=event.fence,
    )


def read_saying(message: wire.Saying) -> events.Heartbeat | events.RequestLease | events.Progress | None:
    """What a node says in a conversation; None = something that isn't known here."""
    match message.WhichOneof("said"):
        case "heartbeat":
            return read_heartbeat(message.heartbeat)
        case "request":
            return read_request(message.request)
        case "progress":
            return read_progress(message.progress)
    return None


def read_leave(message: wire.LeaveNodeRequest) -> events.Leave:
    """A node ends."""
    return events.Leave(message.job_id, message.node_id, message.instance)


def write_leave(event: events.Leave) -> wire.LeaveNodeRequest:
    """The same, as a message."""
    return wire.LeaveNodeRequest(job_id=event.job_id, node_id=event.node_id, instance=event.instance)


# Responses.


def write_registered(reply: events.Registered) -> wire.RegisterNodeResponse:
    """A node is one of the job's."""
    return wire.RegisterNodeResponse(
        assigned_rank=reply.rank,
        world_size=reply.world_size,
        manifest_hash=reply.manifest_hash,
        heartbeat_interval_ms=_ms(reply.heartbeat_interval_s),
        lease_ttl_ms=_ms(reply.lease_ttl_s),
        registered_nodes=reply.registered,
        job_ready=reply.ready,
        dataset_base=reply.dataset_base,
        seed=reply.seed,
    )


def read_registered(message: wire.RegisterNodeResponse) -> events.Registered:
    """The same, as its node reads it."""
    return events.Registered(
        rank=message.assigned_rank,
        world_size=message.world_size,
        manifest_hash=message.manifest_hash,
        heartbeat_interval_s=message.heartbeat_interval_ms / 1000,
        lease_ttl_s=message.lease_ttl_ms / 1000,
        registered=message.registered_nodes,
        ready=message.job_ready,
        dataset_base=message.dataset_base,
        seed=message.seed,
    )


def write_granted(reply: events.Granted, *, unix_time_ms: int) -> wire.RequestLeaseResponse:
    """What a node got.

    Args:
        reply: it.
        unix_time_ms: now, by the coordinator's clock; MX8's nodes are told when a lease ends by this clock, ours count
            its ``ttl_ms`` by their own.
    """
    leases = [
        wire.Lease(
            lease_id=lease.lease_id,
            node_id=lease.node_id,
            range=wire.WorkRange(start_id=lease.start, end_id=lease.end, epoch=lease.epoch, seed=lease.seed),
            cursor=lease.cursor,
            expires_unix_time_ms=unix_time_ms + _ms(lease.ttl_s),
            fence=lease.fence,
            ttl_ms=_ms(lease.ttl_s),
        )
        for lease in reply.leases
    ]
    return wire.RequestLeaseResponse(leases=leases, wait_ms=_ms(reply.wait_s), job_drained=reply.drained)


def read_granted(message: wire.RequestLeaseResponse, *, lease_ttl_s: float) -> events.Granted:
    """The same, as its node reads it.

    Args:
        message: it.
        lease_ttl_s: what the coordinator said at registration, for leases that don't say it themselves.
    """
    leases = tuple(
        events.GrantedLease(
            lease_id=lease.lease_id,
            node_id=lease.node_id,
            start=lease.range.start_id,
            end=lease.range.end_id,
            cursor=lease.cursor,
            epoch=lease.range.epoch,
            seed=lease.range.seed,
            fence=lease.fence,
            ttl_s=lease.ttl_ms / 1000 or lease_ttl_s,
        )
        for lease in message.leases
    )
    return events.Granted(leases, message.wait_ms / 1000, message.job_drained)
