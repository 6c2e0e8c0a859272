"""What people are shown of a job: true numbers, in a document whose size has a bound."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from immutables import Map

from penstock.coordinator.blocks import join_intervals
from penstock.coordinator.coverage import MAX_CELLS, NOBODY, SEVERAL, coverage_of
from penstock.coordinator.draft import Note
from penstock.coordinator.events import Granted, Heartbeat, Leave, Progress, Register, RequestLease, Tick
from penstock.coordinator.rules import apply, begin
from penstock.coordinator.snapshot import MAX_LEASES, MAX_NODES, Told, reading_of, snapshot_of
from penstock.coordinator.state import Caps, Job, Terms

HASH = "ab" * 32


class Played:
    """A job, and what happens to it."""

    def __init__(self, *, now=100.0, terms=None, **job):
        self.now = now
        self.state = begin(Job(HASH, **job), terms or Terms()).state

    def do(self, event):
        outcome = apply(self.state, event, self.now)
        self.state = outcome.state
        return outcome.reply

    def register(self, *names, cap=0):
        for name in names:
            self.do(Register("job", name, Caps(max_inflight_bytes=cap)))

    def lease(self, name, want=1):
        reply = self.do(RequestLease("job", name, want))
        assert isinstance(reply, Granted)
        return reply.leases

    def report(self, lease, cursor, samples=0, payload_bytes=0):
        return self.do(Progress("job", lease.node_id, lease.lease_id, cursor, samples, payload_bytes))


def test_a_job_that_gathers_says_for_whom_it_waits():
    played = Played(samples=1000, block_samples=100, world_size=3, done=((0, 250),))
    played.register("a", "b")
    played.now += 7
    shown = snapshot_of(played.state, played.now)
    assert [node["rank"] for node in shown["nodes"]["shown"]] == [0, 1], "as it would be now"
    assert (shown["phase"], shown["registered"], shown["world_size"], shown["since_s"]) == ("gathering", 2, 3, 7.0)
    assert (shown["done"], shown["leased"], shown["queued"]) == (250, 0, 750)
    assert shown["left_s"] is None


def test_samples_are_done_leased_or_queued_and_bars_say_by_whom():
    played = Played(samples=1000, block_samples=100, world_size=2)
    played.register("a", "b")
    (first,) = played.lease("a")
    (second,) = played.lease("b")
    played.report(first, 40)
    shown = snapshot_of(played.state, played.now)
    assert (shown["done"], shown["leased"], shown["queued"]) == (40, 160, 800)
    cells = shown["cells"]
    assert cells["width"] == 1
    assert cells["done"] == [1] * 40 + [0] * 960
    assert cells["leased"] == [0] * 40 + [1] * 160 + [0] * 800
    assert cells["rank"] == [NOBODY] * 40 + [0] * 60 + [1] * 100 + [NOBODY] * 800
    assert [(lease["id"], lease["node"], lease["cursor"]) for lease in shown["leases"]["shown"]] == [
        (first.lease_id, "a", 40),
        (second.lease_id, "b", 100),
    ]


def test_a_cell_of_two_nodes_is_severals():
    played = Played(samples=3 * MAX_CELLS, block_samples=4, world_size=2)
    played.register("a", "b")
    played.lease("a"), played.lease("b")
    assert coverage_of(played.state).rank.tolist()[:4] == [0, SEVERAL, 1, NOBODY]


def test_rates_are_counted_from_an_earlier_reading_over_all_epochs():
    played = Played(samples=1000, block_samples=500, world_size=1, epochs=2)
    played.register("a")
    one, two = played.lease("a", 2)
    played.report(one, 500, 500, 5_000)
    before = reading_of(played.state, played.now)
    played.now += 10
    played.report(two, 1000, 500, 5_000)
    (third,) = played.lease("a")
    played.report(third, third.start + 100, 100, 1_000)
    shown = snapshot_of(played.state, played.now, before)
    assert (shown["epoch"], shown["done"], shown["done_of_all_epochs"], shown["left_of_all_epochs"]) == (
        1,
        100,
        1100,
        900,
    )
    assert (shown["samples_per_s"], shown["left_s"]) == (60.0, 15.0)
    (node,) = shown["nodes"]["shown"]
    assert (node["samples_per_s"], node["bytes_per_s"], node["samples"]) == (60.0, 600.0, 1100)


def test_a_node_is_live_then_silent_then_gone():
    played = Played(samples=1000, block_samples=100, world_size=2, terms=Terms(lease_ttl_s=10, heartbeat_interval_s=1))
    played.register("a", "b", cap=1 << 30)
    played.do(Heartbeat("job", "b", Map({"inflight_bytes": 1 << 29, "ram_high_water_bytes": 1 << 29})))
    status = lambda: [node["status"] for node in snapshot_of(played.state, played.now)["nodes"]["shown"]]  # noqa: E731
    assert status() == ["live", "live"]
    played.now += 5
    played.do(Heartbeat("job", "a", Map()))
    assert status() == ["live", "silent"]
    played.now += 5.5
    played.do(Heartbeat("job", "a", Map()))
    assert status() == ["live", "gone"]
    assert snapshot_of(played.state, played.now, rates=(10.0,))["left_s"] == 100.0
    played.now += 5
    assert snapshot_of(played.state, played.now, rates=(10.0,))["left_s"] is None, "nobody works on it"
    played.do(Heartbeat("job", "a", Map()))
    nodes = snapshot_of(played.state, played.now)["nodes"]
    assert (nodes["live"], nodes["gone"]) == (1, 1)
    assert (nodes["inflight_bytes"], nodes["max_inflight_bytes"]) == (0, 1 << 30), "of those that are here"


def test_who_leaves_is_gone_at_once_and_its_work_is_queued():
    played = Played(samples=1000, block_samples=100, world_size=2)
    played.register("a", "b")
    (lease,) = played.lease("a")
    played.report(lease, 30)
    played.do(Leave("job", "a"))
    shown = snapshot_of(played.state, played.now)
    assert [node["status"] for node in shown["nodes"]["shown"]] == ["gone", "live"]
    assert (shown["done"], shown["queued"], shown["given_back"], shown["leases"]["count"]) == (30, 970, 1, 0)


def test_a_drained_job_is_all_done():
    played = Played(samples=10, block_samples=10, world_size=1)
    played.register("a")
    (lease,) = played.lease("a")
    played.report(lease, 10)
    shown = snapshot_of(played.state, played.now)
    assert (shown["phase"], shown["done"], shown["queued"], shown["left_of_all_epochs"]) == ("drained", 10, 0, 0)


def test_a_job_without_samples_has_no_bars():
    played = Played(samples=0, world_size=1)
    played.register("a")
    assert snapshot_of(played.state, played.now)["cells"] == {"width": 0, "done": [], "leased": [], "rank": []}


def test_what_was_told_keeps_its_age():
    played = Played(samples=10, world_size=1)
    told = Told(90.0, Note.of("lease_expired", lease="lease-0", cursor=3))
    assert snapshot_of(played.state, 100.0, told=[told])["events"] == [
        {"ago_s": 10.0, "event": "lease_expired", "fields": {"lease": "lease-0", "cursor": 3}}
    ]


@pytest.mark.parametrize("shuffle", [False, True])
def test_ten_thousand_nodes_and_a_billion_samples_stay_a_small_document(shuffle):
    count = 10_000
    played = Played(samples=10**9, world_size=count, shuffle=shuffle, seed=3)
    ids = [f"node-{number:05}" for number in range(count)]
    played.register(*ids)
    for node_id in ids[::10]:
        played.lease(node_id)
    played.do(Leave("job", ids[0]))
    shown = snapshot_of(played.state, played.now, reading_of(played.state, played.now - 1))
    assert len(json.dumps(shown)) < 150_000
    assert shown["nodes"]["count"] == count and len(shown["nodes"]["shown"]) == MAX_NODES
    assert shown["nodes"]["shown"][0]["id"] == ids[0], "who is gone comes first"
    assert shown["leases"]["count"] == 999 and len(shown["leases"]["shown"]) == MAX_LEASES
    assert len(shown["cells"]["done"]) == MAX_CELLS
    assert (shown["done"], shown["leased"] + shown["queued"]) == (0, 10**9)
    assert shown["leased"] == sum(lease.end - lease.start for lease in played.state.leases.values())


@settings(max_examples=150, deadline=None)
@given(
    samples=st.integers(0, 300),
    block=st.integers(1, 60),
    cells=st.integers(1, 40),
    shuffle=st.booleans(),
    epochs=st.integers(1, 2),
    steal=st.booleans(),
    done=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=3),
    moves=st.lists(
        st.tuples(st.sampled_from(["lease", "report", "leave", "late"]), st.integers(0, 2), st.floats(0, 1))
    ),
)
def test_bars_are_what_a_count_of_samples_gives(samples, block, cells, shuffle, epochs, steal, done, moves):
    taken = sorted({each for start, end in done for each in range(start, min(end, samples))})
    played = Played(
        terms=Terms(steal=steal),
        samples=samples,
        block_samples=block,
        shuffle=shuffle,
        seed=5,
        world_size=3,
        epochs=epochs,
        done=join_intervals([(each, each + 1) for each in taken]),
    )
    _check(played, cells)
    names = "abc"
    played.register(*names)
    held = []
    for move, node, share in moves:
        if move == "lease":
            played.register(names[node])
            held += played.lease(names[node], 1 + int(share * 2))
        elif move == "report" and held:
            lease = held[int(share * len(held)) % len(held)]
            played.report(lease, lease.start + round(share * (lease.end - lease.start)))
        elif move == "leave":
            played.do(Leave("job", names[node]))
        elif move == "late":
            played.now += 11 * share
            played.do(Tick())
        _check(played, cells)


def _check(played, cells):
    """Against sets of sample ids, as the state's own slow way counts them."""
    state, coverage = played.state, coverage_of(played.state, cells)
    assert len(coverage.done) <= cells
    done = {each for start, end in state.done() for each in range(start, end)}
    leased = {each for lease in state.leases.values() for each in range(lease.cursor, lease.end)}
    for cell, (its_done, its_leased, its_queued) in enumerate(
        zip(coverage.done, coverage.leased, coverage.queued, strict=True)
    ):
        inside = set(range(cell * coverage.width, min((cell + 1) * coverage.width, state.job.samples)))
        assert (its_done, its_leased) == (len(inside & done), len(inside & leased))
        assert its_queued == len(inside) - its_done - its_leased
        ranks = {
            state.nodes[lease.node_id].rank
            for lease in state.leases.values()
            if inside & set(range(lease.cursor, lease.end))
        }
        assert coverage.rank[cell] == (NOBODY if not ranks else ranks.pop() if len(ranks) == 1 else SEVERAL)
    shown = snapshot_of(state, played.now)
    assert shown["done"] + shown["leased"] + shown["queued"] == state.job.samples
    json.dumps(shown)
