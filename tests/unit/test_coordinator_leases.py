"""Whose a lease is, to the second: what a holder may still believe, nobody else is given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from penstock.coordinator.events import (
    Code,
    Done,
    Granted,
    GrantedLease,
    Leave,
    Progress,
    Recover,
    Refused,
    Register,
    Registered,
    RequestLease,
    Restore,
    Tick,
)
from penstock.coordinator.rules import apply, begin
from penstock.coordinator.state import Caps, Job, Terms, load_records, read_record, write_record
from penstock.coordinator.wire import convert
from penstock.errors import ConfigError

TERMS = Terms(lease_ttl_s=10.0, idle_lease_s=60.0)


class Shell:
    """A state, the time, and a journal."""

    def __init__(self, world_size: int = 1, samples: int = 20, terms: Terms = TERMS) -> None:
        self.now = 0.0
        outcome = begin(Job("m" * 64, samples, 10, world_size=world_size), terms)
        self.state, self.journal = outcome.state, dict(outcome.changes)

    def do(self, event: Any, after_s: float = 0.0) -> Any:
        self.now += after_s
        outcome = apply(self.state, event, self.now)
        self.state = outcome.state
        for key, record in outcome.changes.items():
            self.journal[key] = record
        return outcome.reply

    def register(self, node: str = "a", instance: str = "0") -> Any:
        return self.do(Register("job", node, Caps(), instance))

    def ask(self, node: str = "a", instance: str = "0", want: int = 1, after_s: float = 0.0) -> Any:
        reply = self.do(RequestLease("job", node, want, instance), after_s)
        return reply.leases if isinstance(reply, Granted) else reply

    def report(
        self, lease: GrantedLease, cursor: int, after_s: float, instance: str = "0", counts: tuple[int, int] = (0, 0)
    ) -> Any:
        event = Progress("job", lease.node_id, lease.lease_id, cursor, *counts, instance=instance, fence=lease.fence)
        return self.do(event, after_s)

    def reload(self) -> None:
        texts = {key: write_record(record) for key, record in self.journal.items() if record is not None}
        loaded = load_records({key: read_record(key, text) for key, text in texts.items()}, TERMS)
        assert loaded is not None
        for name in ("nodes", "names", "leases", "queues", "spares", "unstarted"):
            assert getattr(loaded, name) == getattr(self.state, name)
        held = {node: set(leases) for node, leases in self.state.holdings.items() if leases}
        assert {node: set(leases) for node, leases in loaded.holdings.items()} == held
        self.state = loaded


def test_what_is_said_again_with_what_came_since_counts_once():
    job = Shell()
    job.register()
    (lease,) = job.ask()
    for cursor, counts in ((4, (4, 400)), (4, (4, 400)), (6, (6, 600)), (8, (1, 90)), (8, (0, 0))):
        assert isinstance(job.report(lease, cursor, 1.0, counts=counts), Done)
    pulse = job.state.pulses["a"]
    assert (pulse.samples, pulse.payload_bytes) == (7, 690), "of the last two samples one was left out"


def test_a_lease_of_a_process_that_was_replaced_waits_until_its_time_is_over():
    job = Shell()
    job.register()
    (lease,) = job.ask()
    job.register(instance="1")
    assert [each.start for each in job.ask(instance="1", want=2)] == [10]
    assert job.report(lease, 5, 1.0).code is Code.FAILED_PRECONDITION
    job.do(Tick(), 8.9)
    assert job.ask(instance="1") == ()
    job.do(Tick(), 0.2)
    assert [(each.start, each.end) for each in job.ask(instance="1")] == [(0, 10)]


def test_the_more_nodes_there_are_the_longer_those_wait_that_get_nothing():
    waits = []
    for world_size in (1, 1000, 4000, 30_000):
        job = Shell(samples=0)
        job.register("n")
        job.state = replace(job.state, course=replace(job.state.course, phase="running", world_size=world_size))
        waits.append(job.do(RequestLease("job", "n", 1, "0")).wait_s)
    assert waits == [0.5, 0.5, 2.0, TERMS.lease_ttl_s]


def test_a_process_that_was_replaced_does_not_come_back_by_a_late_message():
    job = Shell()
    for instance in "012":
        assert isinstance(job.register(instance=instance), Registered)
    for instance in "01":
        refused = job.register(instance=instance)
        assert isinstance(refused, Refused) and "another process" in refused.reason
    job.reload()
    assert isinstance(job.register(instance="0"), Refused)
    assert job.state.nodes["a"].instance == "2"


def test_leaving_gives_back_only_what_the_process_itself_held():
    job = Shell()
    job.register()
    job.ask()
    job.register(instance="1")
    job.ask(instance="1")
    assert isinstance(job.do(Leave("job", "a", "1")), Done)
    assert [lease.start for lease in job.state.leases.values()] == [0]
    assert [spare.start for spare in job.state.spares.values()] == [10]


def test_a_cursor_that_stands_still_is_refused_before_its_samples_are_given_to_others():
    job = Shell(world_size=2)
    job.register("a")
    job.register("b")
    (lease,) = job.ask("a")
    for _ in range(11):
        assert isinstance(job.report(lease, 0, 5.0), Done)
        job.do(Tick())
    refused = job.report(lease, 0, 5.0)
    assert isinstance(refused, Refused) and "stood still for 60 s" in refused.reason
    job.do(Tick(), 4.9)
    assert lease.lease_id in job.state.leases  # the last report that was accepted is 9.9 s ago
    job.do(Tick(), 0.1)
    assert lease.lease_id not in job.state.leases


def test_a_tick_finds_who_is_late_on_time_though_it_looks_only_when_somebody_can_be():
    job = Shell(world_size=2)
    job.register("a")
    job.register("b")
    (lease,) = job.ask("a")
    for _ in range(7):
        job.report(lease, 0, 1.0)
        job.do(Tick())
    job.do(Tick(), 9.99)
    assert job.state.leases and job.state.queues[1].open  # b hasn't been heard of since it registered
    job.do(Tick(), 0.01)
    assert not job.state.leases and job.state.queues[0].open
    job.register("b")
    assert not job.state.queues[1].open and job.state.queues[0].open  # who is back has its blocks to itself


def test_a_lease_lasts_as_long_as_its_holder_was_told_whatever_the_next_leaders_terms():
    job = Shell(samples=30)
    job.register()
    (old,) = job.ask()
    job.reload()
    job.state = replace(job.state, terms=replace(TERMS, lease_ttl_s=2.0))  # started again with other options
    job.do(Recover(5))
    (new,) = job.ask()
    assert (old.ttl_s, new.ttl_s) == (10.0, 2.0)
    job.do(Tick(), after_s=1.0)
    job.do(Tick(), after_s=1.1)
    assert set(job.state.leases) == {old.lease_id}, "its holder may believe in it for 10 s"
    assert isinstance(job.report(old, old.start + 1, after_s=7.0), Done)
    job.do(Tick(), after_s=9.9)
    assert set(job.state.leases) == {old.lease_id}
    job.do(Tick(), after_s=0.1)
    assert not job.state.leases


def test_ranks_are_places_among_those_who_came_and_final_when_the_job_begins():
    job = Shell(world_size=3)
    assert [job.register(node).rank for node in ("b", "c", "b", "a", "b")] == [0, 1, 0, 0, 1]
    job.reload()
    job.do(Recover(5))
    assert [job.register(node).rank for node in "abc"] == [0, 1, 2]


def test_who_stood_still_itself_gives_nodes_their_whole_time_to_come():
    job = Shell(world_size=2, terms=replace(TERMS, barrier_timeout_s=30.0))
    job.register("a")
    job.do(Recover(0), after_s=100.0)
    job.do(Tick())
    assert job.register("b").ready


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"world_size": 1 << 32}, "world_size is 4294967296; it is from 1 to 4294967295"),
        ({"seed": 1 << 64}, "seed is 18446744073709551616; it is from 0 to 18446744073709551615"),
        ({"epoch": (1 << 32) - 1, "epochs": 2}, "epochs is 2; it is from 1 to 1"),
        ({"samples": 1 << 63, "block_samples": 1 << 62}, "samples is 9223372036854775808"),
        ({"samples": 1 << 62, "block_samples": (1 << 63) - 1}, "block_samples is 9223372036854775807"),
        ({"epoch": 1 << 32}, "epoch is 4294967296; it is from 0 to 4294967295"),
        ({"block_samples": 0}, "block_samples is 0"),
    ],
)
def test_a_job_of_numbers_that_no_message_can_hold_is_refused_before_it_begins(given, words):
    with pytest.raises(ConfigError, match=words):
        begin(replace(Job("m" * 64, 20, 10), **given), TERMS)


def test_a_job_of_the_largest_numbers_is_told_to_its_nodes():
    most = Job("m" * 64, 1 << 62, 1 << 62, epoch=(1 << 32) - 1, seed=(1 << 64) - 1)
    state = begin(most, TERMS).state
    outcome = apply(state, Register("job", "a", Caps()), 0.0)
    assert convert.write_registered(outcome.reply).seed == most.seed
    outcome = apply(outcome.state, RequestLease("job", "a", 1), 0.0)
    (lease,) = convert.write_granted(outcome.reply, unix_time_ms=0).leases
    assert (lease.range.start_id, lease.range.end_id, lease.range.epoch) == (0, most.samples, most.epoch)


def test_one_checkpoint_may_be_written_in_two_ways():
    job = Shell()
    assert isinstance(job.do(Restore(((0, 5), (5, 8)), 0)), Done)
    assert isinstance(job.do(Restore(((0, 5), (5, 8)), 0)), Done)
    assert isinstance(job.do(Restore(((0, 8),), 0)), Done)
    assert isinstance(job.do(Restore(((0, 9),), 0)), Refused)
