"""What a coordinator answers, over gRPC: MX8's calls with their status codes, one test for each of its rules."""

from __future__ import annotations

import time
from dataclasses import replace

import grpc
import pytest
from tests.coordinators import CAPS, JOB_ID, MANIFEST, Node, nodes, running

from penstock.coordinator.blocks import BlockPlan, block_at
from penstock.coordinator.server import NO_NAME, Settings
from penstock.coordinator.state import Terms
from penstock.coordinator.wire import coordinator_pb2 as wire
from penstock.errors import CoordinatorError

INVALID, PRECONDITION, NOT_FOUND = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
)
SHORT = Terms(lease_ttl_s=0.4, heartbeat_interval_s=0.1)


def refused(code, words, call, *arguments, **fields):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **fields)
    assert caught.value.code() is code, caught.value.details()
    assert words in caught.value.details()


def ranges(leases):
    return [(lease.range.start_id, lease.range.end_id) for lease in leases]


@pytest.fixture(scope="module")
def two():
    """A coordinator of two nodes that have registered."""
    with running(world_size=2, samples=8_000) as coordinator:
        yield coordinator.addr, *nodes(coordinator.addr, "a", "b")


# 53.


def test_blank_ids_missing_caps_and_want_0_are_invalid_arguments(two):
    addr, a, _ = two
    refused(INVALID, "job_id is blank", a.register, job_id=" ")
    refused(INVALID, "node_id is blank", a.register, node_id="")
    refused(INVALID, "caps are missing", a.register, caps=None)
    refused(INVALID, "want is 0", a.request, 0)
    refused(INVALID, "lease_id is blank", a.report, " ", 0)
    for call in (a.heartbeat, a.request, a.leave):
        with pytest.raises(grpc.RpcError) as caught:
            Node.__dict__[call.__name__](Node(addr, " "))
        assert caught.value.code() is INVALID
    for kind, name in ((wire.CheckpointRequest, "Checkpoint"), (wire.SnapshotRequest, "Snapshot")):
        refused(INVALID, "job_id is blank", getattr(a.stub, name), kind())
    refused(INVALID, "job_id is blank", a.stub.GetManifest, wire.GetManifestRequest(manifest_hash=MANIFEST))
    refused(INVALID, "characters", a.register, node_id="n" * 300)


# 54.


def test_nodes_of_another_job_are_failed_preconditions(two):
    _, a, _ = two
    words = f"job is {JOB_ID!r}, as it was first called, not 'other'"
    refused(PRECONDITION, words, a.register, job_id="other")
    refused(PRECONDITION, words, a.request, job_id="other")


def test_a_job_that_was_named_has_no_nodes_of_another(tmp_path):
    named = Settings(addr="127.0.0.1:0", journal=f"file:{tmp_path / 'journal'}", job_id="named")
    for _ in range(2):  # the second one goes on with the journal of the first
        with running(settings=named) as coordinator, Node(coordinator.addr, "a") as a:
            refused(PRECONDITION, f"not {JOB_ID!r}", a.register)
            assert a.register(job_id="named").job_ready


def test_a_job_that_its_nodes_named_is_not_called_otherwise_later(tmp_path):
    nameless = Settings(addr="127.0.0.1:0", journal=f"file:{tmp_path / 'journal'}")
    with running(settings=nameless) as coordinator, Node(coordinator.addr, "a") as a:
        assert a.register().job_ready
    words = f"{JOB_ID!r}, as it was first called, not {NO_NAME!r}"
    with pytest.raises(CoordinatorError, match=words), running(settings=replace(nameless, job_id=NO_NAME)):
        pass


def test_calls_before_registration_and_before_the_barrier_are_failed_preconditions():
    with running(world_size=2) as coordinator, Node(coordinator.addr, "a") as a:
        for call in (a.heartbeat, a.request, a.leave):
            refused(PRECONDITION, "register it first", call)
        refused(PRECONDITION, "register it first", a.report, "lease-0", 1)
        assert not a.register().job_ready
        a.heartbeat()
        refused(PRECONDITION, "waits for 1 more of 2 nodes", a.request)
        refused(PRECONDITION, "waits for 1 more of 2 nodes", a.report, "lease-0", 1)


# 55.


def test_rank_is_the_place_among_sorted_ids_and_stays_after_the_barrier():
    with running(world_size=3) as coordinator:
        c, a, b, d = (Node(coordinator.addr, name) for name in "cabd")
        assert (c.register().assigned_rank, a.register().assigned_rank) == (0, 0)
        assert (told := c.register()).assigned_rank == 1
        assert (told.registered_nodes, told.world_size, told.job_ready) == (2, 3, False)
        assert b.register().job_ready
        for _ in range(2):
            assert [node.register().assigned_rank for node in (a, b, c)] == [0, 1, 2]
        refused(PRECONDITION, "isn't one of the 3 nodes that this job began with (a, b, c)", d.register)
        told = a.register()
        assert (told.manifest_hash, told.heartbeat_interval_ms, told.lease_ttl_ms) == (MANIFEST, 1000, 10_000)


# 56.


def test_two_nodes_have_disjoint_leases_that_cover_all_samples():
    with running(world_size=2) as coordinator:
        a, b = nodes(coordinator.addr, "a", "b")
        assert ranges(a.request(3).leases) == [(0, 8), (16, 24), (32, 40)]
        both = [(0, 8), (16, 24), (32, 40), *b.work(), *a.work(want=5)]
        assert sorted(both) == [(start, start + 8) for start in range(0, 80, 8)]


def test_a_lease_says_all_that_mx8s_says(two):
    _, a, _ = two
    before = time.time_ns() // 1_000_000
    lease = a.request().leases[0]
    assert lease.lease_id.startswith("lease-") and lease.node_id == "a"
    assert lease.cursor == lease.range.start_id and lease.range.epoch == 0
    assert before + 10_000 <= lease.expires_unix_time_ms <= time.time_ns() // 1_000_000 + 10_000
    assert lease.ttl_ms == 10_000 and lease.fence > 0


# 57.


def shuffled(seed, epoch):
    with running(world_size=2, shuffle=True, seed=seed, epoch=epoch) as coordinator:
        a, b = nodes(coordinator.addr, "a", "b")
        leases = a.request(5).leases
        assert all((lease.range.seed, lease.range.epoch) == (seed, epoch) for lease in leases)
        return ranges(leases), b.work()


def test_shuffle_follows_from_seed_and_epoch():
    once, again, other = shuffled(7, 1), shuffled(7, 1), shuffled(7, 2)
    assert once == again != other
    plan = BlockPlan(80, 8, shuffle=True, seed=7, epoch=1)
    assert once == tuple([tuple(block_at(plan, place)) for place in range(rank, 10, 2)] for rank in (0, 1))
    assert sorted(once[0] + once[1]) == sorted(other[0] + other[1])


# 58.


def test_progress_is_refused_backwards_outside_and_from_others_and_ends_at_the_end(two):
    _, a, b = two
    lease = a.request().leases[0]
    start, end = lease.range.start_id, lease.range.end_id
    a.report(lease, start + 4)
    refused(PRECONDITION, "it never goes back", a.report, lease, start + 3)
    refused(INVALID, "lies outside of", a.report, lease, end + 1)
    refused(INVALID, "lies outside of", a.report, lease, max(start - 1, 0) if start else 2**63)
    refused(PRECONDITION, "is a's, not b's", b.report, lease, start + 5)
    refused(NOT_FOUND, "never was", a.report, "lease-999999", 1)
    a.report(lease, start + 4)
    a.report(lease, end)
    refused(NOT_FOUND, "completed or expired", a.report, lease, end)


# 59.


def test_progress_renews_a_lease_and_heartbeats_alone_do_not():
    with running(world_size=2, terms=SHORT) as coordinator:
        a, b = nodes(coordinator.addr, "a", "b")
        kept, lost = a.request().leases[0], b.request().leases[0]
        until = time.monotonic() + 1.2
        while time.monotonic() < until:
            a.report(kept, kept.range.start_id + 2)  # where it was: it says that it lives
            b.heartbeat()
            time.sleep(0.05)
        expired = coordinator.wait_for("lease_expired")
        assert [fields["lease"] for fields in expired] == [lost.lease_id]
        a.report(kept, kept.range.end_id)
        refused(NOT_FOUND, "completed or expired", b.report, lost, lost.range.end_id)


# 60.


def test_what_is_left_of_an_expired_lease_is_the_next_to_be_granted():
    with running(world_size=2, terms=SHORT) as coordinator:
        a, b = nodes(coordinator.addr, "a", "b")
        lease = a.request().leases[0]
        a.report(lease, 5)
        (requeued,) = coordinator.wait_for("range_requeued")
        assert (requeued["lease"], requeued["start"], requeued["end"]) == (lease.lease_id, 5, 8)
        assert ranges(b.request(2).leases) == [(5, 8), (8, 16)]


# 61.


def test_a_dead_nodes_blocks_go_to_others_and_a_live_ones_do_not():
    with running(world_size=3, terms=SHORT, samples=72) as coordinator:
        a, _, c = nodes(coordinator.addr, "a", "b", "c")
        while not coordinator.told("rank_released"):
            a.heartbeat(), c.heartbeat()
            time.sleep(0.02)
        assert [fields["node"] for fields in coordinator.told("rank_released")] == ["b"]
        got = a.work()
        assert sorted(got) == sorted((start, start + 8) for start in range(0, 72, 8) if (start // 8) % 3 != 2)
        c.heartbeat()
        assert len(c.work()) == 3


# 62.


def test_nothing_to_give_is_an_empty_list_and_a_wait_of_500_ms():
    with running(world_size=2) as coordinator:
        a, b = nodes(coordinator.addr, "a", "b")
        a.work()
        nothing = a.request(4)
        assert (len(nothing.leases), nothing.wait_ms, nothing.job_drained) == (0, 500, False)
        b.work()
        nothing = a.request(4)
        assert (len(nothing.leases), nothing.wait_ms, nothing.job_drained) == (0, 500, True)


# 63; with a node that is really killed: test_coordinator_processes.


def test_a_job_drains_once():
    with running(world_size=1, epochs=2) as coordinator:
        (a,) = nodes(coordinator.addr, "a")
        assert sorted(a.work(want=3)) == sorted(2 * [(start, start + 8) for start in range(0, 80, 8)])
        assert a.request().job_drained
        a.register()
        a.heartbeat()
        assert coordinator.told("job_drained") == [{"epoch": 1, "samples": 80}]


def test_a_job_of_nothing_is_drained_at_once():
    with running(samples=0) as coordinator:
        (a,) = nodes(coordinator.addr, "a")
        assert a.request().job_drained


# Our own.


def test_the_same_request_gets_the_same_leases_and_a_stale_fence_is_refused():
    with running(terms=SHORT) as coordinator:
        (a,) = nodes(coordinator.addr, "a", instance="i")
        first = a.request(2, request="r1").leases
        assert ranges(a.request(2, request="r1").leases) == ranges(first) != ranges(a.request(2, request="r2").leases)
        refused(PRECONDITION, "has fence", a.report, first[0], 1, fence=first[0].fence + 1)
        a.report(first[0], 8, fence=first[0].fence)
        a.report(first[0], 8, fence=first[0].fence)  # said twice, as the answer was lost


def test_another_process_under_the_same_id_takes_the_place_of_the_first():
    with running(world_size=2, terms=SHORT) as coordinator:
        (a, _) = nodes(coordinator.addr, "a", "b", instance="1")
        lease = a.request().leases[0]
        a.report(lease, 3)
        again = Node(coordinator.addr, "a", instance="2")
        assert again.register().assigned_rank == 0
        refused(PRECONDITION, "another process has registered", a.report, lease, 4)
        assert ranges(again.request().leases) == [(16, 24)], "the first one may still be in the middle of [3, 8)"
        coordinator.wait_for("range_requeued")
        assert (3, 8) in ranges(again.request(2).leases)


def test_a_node_that_leaves_gives_what_it_has_back_at_once():
    with running(world_size=2) as coordinator:
        a, b = nodes(coordinator.addr, "a", "b")
        lease = a.request().leases[0]
        a.report(lease, 3)
        a.leave()
        assert sorted(b.work()) == [(3, 8), *((start, start + 8) for start in range(8, 80, 8))]
        assert b.request().job_drained


def test_a_job_goes_on_from_a_checkpoint_with_another_world_size():
    with running(world_size=2) as coordinator:
        a, b = nodes(coordinator.addr, "a", "b")
        a.report(lease := a.request().leases[0], lease.range.end_id)
        b.report(b.request().leases[0], 11)
        token = a.stub.Checkpoint(wire.CheckpointRequest(job_id=JOB_ID)).token
        refused(
            PRECONDITION,
            "has begun",
            a.stub.Restore,
            wire.RestoreRequest(job_id=JOB_ID, token=token.replace("11", "12")),
        )
    with running(world_size=1, block_samples=20) as coordinator, Node(coordinator.addr, "c") as c:
        c.stub.Restore(wire.RestoreRequest(job_id=JOB_ID, token=token))
        c.stub.Restore(wire.RestoreRequest(job_id=JOB_ID, token=token))  # each node says it
        c.register()
        assert c.work() == [(11, 20), (20, 40), (40, 60), (60, 80)]
    with running(seed=5) as coordinator, Node(coordinator.addr, "c") as c:
        refused(PRECONDITION, "seed", c.stub.Restore, wire.RestoreRequest(job_id=JOB_ID, token=token))
        refused(PRECONDITION, "JSON", c.stub.Restore, wire.RestoreRequest(job_id=JOB_ID, token="x"))


def test_a_node_of_another_job_cannot_move_the_beginning_of_this_one():
    def restored(job_id):
        return wire.RestoreRequest(job_id=job_id, token=token)

    with running(world_size=1) as coordinator, Node(coordinator.addr, "a") as a:
        a.register()
        a.report(a.request().leases[0], 5)
        token = a.stub.Checkpoint(wire.CheckpointRequest(job_id=JOB_ID)).token
    with running(world_size=2) as coordinator, Node(coordinator.addr, "a") as a:
        a.register()
        refused(PRECONDITION, "not 'other'", a.stub.Restore, restored("other"))
        assert coordinator.server.seat.state.job.done == ()
    with running(world_size=1) as coordinator, Node(coordinator.addr, "a") as a:
        a.stub.Restore(restored(JOB_ID))  # who says so first names the job, as who registers first does
        refused(PRECONDITION, "not 'other'", a.register, job_id="other")
        a.register()
        assert a.work()[0] == (5, 8)


def test_a_snapshot_is_json_about_the_job(two):
    _, a, _ = two
    snapshot = a.stub.Snapshot(wire.SnapshotRequest(job_id=JOB_ID)).snapshot
    assert '"nodes"' in snapshot and "8000" in snapshot


def test_a_job_that_isnt_joined_in_time_fails_or_begins_with_fewer():
    terms = replace(SHORT, barrier_timeout_s=0.3)
    with running(world_size=3, terms=terms) as coordinator:
        (a,) = nodes(coordinator.addr, "a")
        coordinator.wait_for("membership_timeout")
        refused(PRECONDITION, "only 1 of 3 nodes registered within 0.3 s", a.register)
    with running(world_size=3, terms=replace(terms, min_world_size=1)) as coordinator:
        (a,) = nodes(coordinator.addr, "a")
        while not (told := a.register()).job_ready:
            time.sleep(0.02)
        assert told.world_size == 1 and len(a.work()) == 10


def test_caps_of_any_size_are_taken(two):
    _, a, _ = two
    caps = wire.NodeCaps(max_fetch_concurrency=2**32 - 1, max_ram_bytes=2**64 - 1)
    assert a.register(caps=caps).job_ready and a.register(caps=CAPS).job_ready


@pytest.mark.parametrize("call", ["RegisterNode", "ReportProgress", "Snapshot", "GetManifestStream"])
def test_bytes_that_are_no_message_are_invalid_arguments(two, call, caplog):
    with grpc.insecure_channel(two[0]) as channel:
        raw = channel.unary_stream if call == "GetManifestStream" else channel.unary_unary
        for data in (b"\xff" * 50, b"\x0a\x03\xff\xfe\xfd"):
            refused(
                INVALID, "can't be read", lambda data=data: list(raw(f"/mx8.v0.Coordinator/{call}")(data, timeout=10))
            )
    assert not caplog.records, "a stranger writes tracebacks into our log"
