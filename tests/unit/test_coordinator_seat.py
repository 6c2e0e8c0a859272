"""Where a job is led: nobody is answered before the journal has it, and whoever doesn't lead says so."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import replace

import pytest

from penstock.coordinator.audit import audit
from penstock.coordinator.events import (
    Code,
    Done,
    Granted,
    Heartbeat,
    Progress,
    Refused,
    Register,
    RequestLease,
    Restore,
    Tick,
)
from penstock.coordinator.journal import MemoryJournal, MemoryRecords
from penstock.coordinator.seat import Seat
from penstock.coordinator.state import Caps, Job, Lease, State, Terms
from penstock.errors import ConfigError, CoordinatorError, JournalUnavailable, NotLeader

JOB = Job("m" * 64, 80, 8)
REGISTER = Register("job", "a", Caps())
REQUEST = RequestLease("job", "a", 1)


class Watched(MemoryJournal):
    """A journal in memory that counts, can be stopped in the middle of a commit, and can fail."""

    def __init__(self, records=None):
        self.records = records or MemoryRecords()
        super().__init__(self.records, address="host:1")
        self.commits = []
        self.entered = threading.Event()
        self.free = threading.Event()
        self.free.set()
        self.failing = False

    def commit(self, changes):
        self.entered.set()
        assert self.free.wait(10)
        if self.failing:
            self.failing = False
            self.records.depose()  # after any error nobody leads
            raise JournalUnavailable("the disk is full")
        super().commit(changes)
        self.commits.append(dict(changes))


@contextlib.asynccontextmanager
async def seated(journal=None, job=JOB, terms=None, **options):
    seat = Seat(journal or Watched(), job, terms or Terms(), **options)
    running = asyncio.ensure_future(seat.run())
    try:
        await leading(seat, running)
        yield seat
    finally:
        await seat.close()
        await running


async def leading(seat, running=None):
    while not seat.leads:
        if running is not None and running.done():
            await running
        await asyncio.sleep(0.002)


def test_what_waits_while_the_journal_writes_is_kept_together():
    async def run():
        journal = Watched()
        async with seated(journal) as seat:
            await seat.do(REGISTER)
            before = len(journal.commits)
            journal.free.clear()
            journal.entered.clear()
            first = asyncio.ensure_future(seat.do(REQUEST))
            await asyncio.to_thread(journal.entered.wait, 10)
            others = [asyncio.ensure_future(seat.do(REQUEST)) for _ in range(7)]
            await asyncio.sleep(0.02)
            assert not any(each.done() for each in (first, *others)), "answered before it was kept"
            assert not seat.state.leases, "shown before it was kept"
            journal.free.set()
            granted = await asyncio.gather(first, *others)
            assert len({reply.leases[0].lease_id for reply in granted}) == 8
            assert len(journal.commits) - before == 2
            assert set(journal.load()) >= {f"lease/{lease_id}" for lease_id in seat.state.leases}

    asyncio.run(run())


def test_what_changes_nothing_isnt_written():
    async def run():
        journal = Watched()
        async with seated(journal) as seat:
            await seat.do(REGISTER)
            before = len(journal.commits)
            assert await seat.do(Heartbeat("job", "a", {})) == Done()
            reply = await seat.do(RequestLease("job", "b", 1))
            assert isinstance(reply, Refused) and reply.code is Code.FAILED_PRECONDITION
            assert len(journal.commits) == before

    asyncio.run(run())


def test_a_commit_that_fails_answers_nobody_with_yes_and_what_was_kept_is_read_again():
    async def run():
        journal = Watched()
        async with seated(journal) as seat:
            await seat.do(REGISTER)
            journal.failing = True
            with pytest.raises(JournalUnavailable, match="disk is full"):
                await seat.do(REQUEST)
            await leading(seat)
            assert not seat.state.leases
            reply = await seat.do(REQUEST)
            assert isinstance(reply, Granted) and reply.leases[0].start == 0

    asyncio.run(run())


@pytest.mark.parametrize("event", [REQUEST, Heartbeat("job", "a", {})], ids=["that writes", "that writes nothing"])
def test_a_leader_that_was_deposed_answers_nobody_any_more(event):
    async def run():
        records = MemoryRecords()
        async with seated(Watched(records)) as first:
            await first.do(REGISTER)
            lease = (await first.do(REQUEST)).leases[0]
            records.depose()
            async with seated(Watched(records)) as second:
                with pytest.raises(NotLeader):
                    await first.do(event)
                assert not first.leads
                report = Progress("job", "a", lease.lease_id, 8, fence=lease.fence)
                assert await second.do(report) == Done()
                assert second.state.course.fence > lease.fence
                assert await first.leader() == "host:1"
            await leading(first)
            assert first.state.course.issued == 1 and not first.state.leases

    asyncio.run(run())


def test_who_was_asleep_itself_blames_nobody():
    async def run():
        now = [100.0]
        async with seated(terms=Terms(lease_ttl_s=0.4), clock=lambda: now[0]) as seat:
            await seat.do(REGISTER)
            (lease,) = (await seat.do(REQUEST)).leases
            fence = seat.state.course.fence
            now[0] += 50.0  # the whole process stood still
            async with asyncio.timeout(5):
                while seat.state.course.fence == fence:
                    await asyncio.sleep(0.01)
            assert lease.lease_id in seat.state.leases

    asyncio.run(run())


def test_a_report_that_waited_while_we_were_asleep_is_as_good_as_before():
    """It is decided before any tick, and by a clock that says that its cursor has stood still for very long."""

    async def run():
        now = [100.0]
        async with seated(clock=lambda: now[0]) as seat:
            await seat.do(REGISTER)
            (lease,) = (await seat.do(REQUEST)).leases
            now[0] += 2 * Terms().idle_lease_s
            assert await seat.do(Progress("job", "a", lease.lease_id, lease.start)) == Done()

    asyncio.run(run())


def test_a_journal_that_was_long_in_answering_ends_no_lease():
    async def run():
        journal = Watched()
        async with seated(journal, terms=Terms(lease_ttl_s=0.4)) as seat:
            await seat.do(REGISTER)
            (lease,) = (await seat.do(REQUEST)).leases
            journal.free.clear()
            fence = seat.state.course.fence
            asking = asyncio.ensure_future(seat.do(REQUEST))
            await asyncio.sleep(0.1)
            tick = asyncio.ensure_future(seat.do(Tick()))  # it waits before the report, and is decided too late
            report = asyncio.ensure_future(seat.do(Progress("job", "a", lease.lease_id, lease.start)))
            await asyncio.sleep(0.6)
            journal.free.set()
            await asyncio.gather(asking, tick)
            assert await report == Done()
            assert seat.state.course.fence > fence

    asyncio.run(run())


def test_a_journal_that_was_long_in_being_taken_over_ends_no_lease():
    now = [100.0]

    class Slow(Watched):
        def commit(self, changes):
            super().commit(changes)
            now[0] += self.takes_s

    async def run():
        records, terms = MemoryRecords(), Terms(lease_ttl_s=10.0)
        async with seated(Watched(records), terms=terms, clock=lambda: now[0]) as seat:
            await seat.do(REGISTER)
            (lease,) = (await seat.do(REQUEST)).leases
        journal = Slow(records)
        journal.takes_s = 2 * terms.lease_ttl_s
        async with seated(journal, terms=terms, clock=lambda: now[0]) as seat:
            journal.takes_s = 0.0
            await seat.do(Tick())
            assert await seat.do(Progress("job", "a", lease.lease_id, lease.start)) == Done()

    asyncio.run(run())


def test_a_lease_that_is_late_by_our_clock_ends():
    async def run():
        async with seated(terms=Terms(lease_ttl_s=0.2)) as seat:
            notes = []
            seat.listen(lambda now, note: notes.append(note.event))
            await seat.do(REGISTER)
            await seat.do(REQUEST)
            while seat.state.leases:
                await asyncio.sleep(0.01)
            assert "lease_expired" in notes and "live_leases" in notes and "no_overlap_ok" in notes
            assert notes.index("lease_granted") < notes.index("lease_expired") < notes.index("range_requeued")

    asyncio.run(run())


def test_a_request_that_cant_be_decided_ends_nothing():
    async def run():
        async with seated() as seat:
            await seat.do(REGISTER)
            with pytest.raises(CoordinatorError, match="couldn't be decided"):
                await seat.do(RequestLease("job", "a", None))
            assert (await seat.do(REQUEST)).leases

    asyncio.run(run())


def test_a_job_goes_on_anew_or_from_a_checkpoint():
    async def run():
        records = MemoryRecords()
        async with seated(Watched(records)) as seat:
            await seat.do(REGISTER)
            await seat.do(REQUEST)
        async with seated(Watched(records)) as seat:
            assert set(seat.state.leases) == {"lease-0"} and "a" in seat.state.nodes
        for other in (
            replace(JOB, samples=81),
            replace(JOB, seed=1),
            replace(JOB, epochs=2),
            replace(JOB, world_size=2),
        ):
            with pytest.raises(ConfigError, match="another job"):
                async with seated(Watched(records), other):
                    pass
        checkpoint = Restore(((0, 16),), 0)
        with pytest.raises(CoordinatorError, match="has begun"):
            async with seated(Watched(records), checkpoint=checkpoint):
                pass
        for anew in (True, False):  # the second time it is there already
            async with seated(Watched(records), checkpoint=checkpoint, anew=anew) as seat:
                assert not seat.state.leases and seat.state.done() == ((0, 16),)
        assert not any(key.startswith("lease/") for key in records.records)

    asyncio.run(run())


def test_a_new_job_has_larger_fences_than_an_earlier_one():
    async def run():
        fences = []
        records = MemoryRecords()
        for _ in range(2):
            async with seated(Watched(records), anew=True) as seat:
                await seat.do(REGISTER)
                fences += [(await seat.do(REQUEST)).leases[0].fence for _ in range(5)]
        assert fences == sorted(set(fences))

    asyncio.run(run())


def test_closing_keeps_what_was_asked_and_is_safe_twice():
    async def run():
        journal = Watched()
        seat = Seat(journal, JOB, Terms())
        with pytest.raises(NotLeader):
            await seat.do(REGISTER)
        running = asyncio.ensure_future(seat.run())
        await leading(seat)
        asked = asyncio.ensure_future(seat.do(REGISTER))
        await asyncio.sleep(0)
        await seat.close()
        await seat.close()
        await running
        assert (await asked).ready
        assert any("node/a" in changes for changes in journal.commits)
        with pytest.raises(NotLeader):
            await seat.do(REQUEST)

    asyncio.run(run())


def test_who_asks_hears_why_nobody_leads():
    class Full(Watched):
        def lead(self, timeout_s):
            raise JournalUnavailable("the disk is full")

    async def run():
        seat = Seat(Full(), JOB, Terms())
        running = asyncio.ensure_future(seat.run())
        try:
            with pytest.raises(NotLeader, match="the disk is full"):
                await asyncio.wait_for(asked(seat), 5)
        finally:
            await seat.close()
            await running

    async def asked(seat):
        while True:
            try:
                await seat.do(REGISTER)
            except NotLeader as error:
                if "full" in str(error):
                    raise
            await asyncio.sleep(0.002)

    asyncio.run(run())


def test_closing_wakes_who_waits_to_lead():
    async def run():
        records = MemoryRecords()
        async with seated(Watched(records)):
            second = Seat(Watched(records), JOB, Terms())
            running = asyncio.ensure_future(second.run())
            await asyncio.sleep(0.02)
            assert not second.leads
            await asyncio.wait_for(second.close(), 5)
            await asyncio.wait_for(running, 5)

    asyncio.run(run())


def test_a_journal_that_doesnt_say_who_leads_is_asked_by_one_thread_at_most():
    class Silent(Watched):
        asked = 0

        def leader(self):
            self.asked += 1
            assert self.free.wait(10)
            return super().leader()

    async def run():
        now = [100.0]
        journal = Silent()
        seat = Seat(journal, JOB, Terms(), clock=lambda: now[0])
        journal.free.clear()
        for _ in range(4):
            now[0] += 60.0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):  # as a node's call has one
                    await seat.leader()
        assert journal.asked == 1
        journal.lead(0)
        journal.free.set()
        assert await seat.leader() == "host:1"
        await seat.close()

    asyncio.run(run())


def test_an_audit_sees_two_that_hold_the_same_sample():
    state = State(JOB)
    apart = {"lease-0": Lease("a", 0, 8, 2, 1, 0), "lease-1": Lease("b", 8, 16, 8, 2, 0)}
    told = audit(replace(state, leases=state.leases.update(apart)))
    assert dict(told[0].fields)["leases"] == "2-8:lease-0@a,8-16:lease-1@b"
    assert told[1].event == "no_overlap_ok"
    with pytest.raises(CoordinatorError, match="both hold sample 7"):
        audit(replace(state, leases=state.leases.update(apart | {"lease-2": Lease("b", 7, 9, 7, 3, 0)})))
