"""Messages of a coordinator: the numbers that MX8's have, and that nothing is lost between event and message."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st
from immutables import Map

from penstock.coordinator import events
from penstock.coordinator.state import Caps
from penstock.coordinator.wire import convert
from penstock.coordinator.wire import coordinator_pb2 as wire

MX8 = {
    "RegisterNodeRequest": "job_id node_id caps",
    "RegisterNodeResponse": "assigned_rank world_size manifest_hash heartbeat_interval_ms lease_ttl_ms "
    "registered_nodes job_ready",
    "HeartbeatRequest": "job_id node_id unix_time_ms stats",
    "HeartbeatResponse": "",
    "RequestLeaseRequest": "job_id node_id want",
    "RequestLeaseResponse": "leases wait_ms",
    "ReportProgressRequest": "job_id node_id lease_id cursor delivered_samples delivered_bytes unix_time_ms",
    "ReportProgressResponse": "",
    "GetManifestRequest": "job_id manifest_hash",
    "GetManifestResponse": "manifest_bytes schema_version",
    "ManifestChunk": "data schema_version",
    "NodeCaps": "max_fetch_concurrency max_decode_concurrency max_inflight_bytes max_ram_bytes",
    "NodeStats": "inflight_bytes ram_high_water_bytes fetch_queue_depth decode_queue_depth pack_queue_depth",
    "WorkRange": "start_id end_id epoch seed",
    "Lease": "lease_id node_id range cursor expires_unix_time_ms",
}
OWN = 16


@pytest.mark.parametrize("name", MX8)
def test_fields_have_mx8s_numbers_and_our_own_begin_at_16(name):
    fields = wire.DESCRIPTOR.message_types_by_name[name].fields
    theirs = {field.number: field.name for field in fields if field.number < OWN}
    assert theirs == dict(enumerate(MX8[name].split(), start=1))


def test_the_service_is_mx8s_with_calls_of_our_own_behind():
    service = wire.DESCRIPTOR.services_by_name["Coordinator"]
    assert service.full_name == "mx8.v0.Coordinator"
    names = [method.name for method in service.methods]
    assert names[:6] == [
        "RegisterNode",
        "Heartbeat",
        "RequestLease",
        "ReportProgress",
        "GetManifest",
        "GetManifestStream",
    ]
    work = wire.DESCRIPTOR.message_types_by_name["WorkRange"].fields_by_name
    assert (work["epoch"].type, work["seed"].type) == (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64)


def test_penstock_is_imported_without_grpc():
    code = "import sys; from penstock.cli.main import main; main(['--help']); sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0


ids = st.text(max_size=20)
wide = st.integers(0, 2**64 - 1)
narrow = st.integers(0, 2**32 - 1)
caps = st.builds(Caps, narrow, narrow, wide, wide)
seconds = st.integers(0, 10**6).map(lambda ms: ms / 1000)


@given(st.builds(events.Register, ids, ids, st.none() | caps, ids))
def test_a_registration_travels(event):
    assert convert.read_register(convert.write_register(event)) == event


@given(st.builds(events.RequestLease, ids, ids, narrow, ids, ids))
def test_a_request_travels(event):
    assert convert.read_request(convert.write_request(event)) == event


@given(st.builds(events.Progress, ids, ids, ids, wide, wide, wide, ids, wide), wide)
def test_progress_travels(event, unix_time_ms):
    assert convert.read_progress(convert.write_progress(event, unix_time_ms=unix_time_ms)) == event


@given(st.builds(events.Leave, ids, ids, ids))
def test_a_goodbye_travels(event):
    assert convert.read_leave(convert.write_leave(event)) == event


@given(st.builds(events.Registered, narrow, narrow, ids, seconds, seconds, narrow, st.booleans()))
def test_what_a_node_is_told_travels(reply):
    assert convert.read_registered(convert.write_registered(reply)) == reply


leases = st.builds(events.GrantedLease, ids, ids, wide, wide, wide, narrow, wide, wide, seconds.filter(bool))


@given(st.builds(events.Granted, st.lists(leases, max_size=3).map(tuple), seconds, st.booleans()))
def test_leases_travel(reply):
    message = convert.write_granted(reply, unix_time_ms=1_000)
    assert convert.read_granted(message, lease_ttl_s=99.0) == reply
    for lease, told in zip(reply.leases, message.leases, strict=True):
        assert told.expires_unix_time_ms == 1_000 + round(lease.ttl_s * 1000)


def test_a_lease_without_a_ttl_has_that_of_the_job():
    message = wire.RequestLeaseResponse(leases=[wire.Lease(lease_id="lease-0", range=wire.WorkRange(end_id=8))])
    assert convert.read_granted(message, lease_ttl_s=2.5).leases[0].ttl_s == 2.5


def test_a_heartbeat_carries_what_the_node_has_in_memory():
    stats = {"inflight_bytes": 1, "ram_high_water_bytes": 2, "fetch_queue_depth": 3}
    event = events.Heartbeat("job", "a", Map(stats), "i")
    read = convert.read_heartbeat(convert.write_heartbeat(event, unix_time_ms=7))
    assert read == replace(event, stats=Map({**stats, "decode_queue_depth": 0, "pack_queue_depth": 0}))
    assert convert.read_heartbeat(wire.HeartbeatRequest(job_id="job", node_id="a")).stats == Map()
