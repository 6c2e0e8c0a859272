"""The rules of a job against a plain model: whatever happens, each sample is done once, and the job drains."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from penstock.coordinator.blocks import join_intervals
from penstock.coordinator.events import (
    Code,
    Done,
    Granted,
    GrantedLease,
    Heartbeat,
    Leave,
    Progress,
    Recover,
    Refused,
    Register,
    RequestLease,
    Tick,
)
from penstock.coordinator.rules import apply, begin
from penstock.coordinator.state import Caps, Job, Terms, load_records, read_record, write_record

NODES = ("a", "b", "c")
TTL_S = 10.0


class JobMachine(RuleBasedStateMachine):
    held = Bundle("held")

    @initialize(
        samples=st.integers(0, 40),
        block=st.integers(1, 7),
        shuffle=st.booleans(),
        epochs=st.integers(1, 2),
        steal=st.booleans(),
        first_done=st.integers(0, 10),
        gathered=st.sampled_from([True, True, True, False]),
    )
    def start(self, samples, block, shuffle, epochs, steal, first_done, gathered):
        done = join_intervals([(0, min(first_done, samples))])
        job = Job("m" * 64, samples, block, shuffle, 7, 0, epochs, len(NODES), done)
        self.now = 100.0
        self.term = 1
        self.journal = {}
        self.drained = 0
        self.take(begin(job, Terms(lease_ttl_s=TTL_S, idle_lease_s=60.0, steal=steal)))
        self.instances = dict.fromkeys(NODES, "0")
        self.committed = {epoch: set() for epoch in range(epochs)}
        self.committed[0].update(range(min(first_done, samples)))
        self.cursors = {}
        self.fences = []
        self.events = 0
        for node in NODES if gathered else ():
            self.register(node)

    def take(self, outcome):
        self.state = outcome.state
        for key, record in outcome.changes.items():
            if record is None:
                del self.journal[key]
            else:
                self.journal[key] = write_record(record)
        self.drained += sum(note.event == "job_drained" for note in outcome.notes)
        assert outcome.reason
        return outcome.reply

    def do(self, event):
        before = self.state
        outcome = apply(before, event, self.now)
        assert apply(before, event, self.now) == outcome  # nothing in it but what it was given
        if isinstance(outcome.reply, Refused):
            assert outcome.state is before and not outcome.changes
        return self.take(outcome)

    def register(self, node):
        return self.do(Register("job", node, Caps(), self.instances[node]))

    @rule(node=st.sampled_from(NODES), restarted=st.booleans())
    def joins(self, node, restarted):
        if restarted:
            self.instances[node] = str(int(self.instances[node]) + 1)
        self.register(node)

    @rule(node=st.sampled_from(NODES))
    def beats(self, node):
        self.do(Heartbeat("job", node, {}, self.instances[node]))

    @rule(target=held, node=st.sampled_from(NODES), want=st.integers(0, 3), lost=st.booleans(), twice=st.booleans())
    def asks(self, node, want, lost, twice):
        self.events += 1
        event = RequestLease("job", node, want, self.instances[node], f"r{self.events}")
        reply = self.do(event)
        if isinstance(reply, Refused):
            assert want == 0 or not self.state.course.world_size or node not in self.state.nodes
            return multiple()
        if twice:
            assert self.do(event) == reply
        assert isinstance(reply, Granted) and len(reply.leases) <= want
        assert bool(reply.leases) == (reply.wait_s == 0)
        for lease in reply.leases:
            assert lease.cursor == lease.start < lease.end and lease.node_id == node
            self.fences.append(lease.fence)
            self.cursors[lease.lease_id] = lease.start
        return multiple() if lost else multiple(*reply.leases)

    @rule(lease=held, share=st.floats(0, 1), fenced=st.booleans(), lost=st.booleans())
    def reports(self, lease: GrantedLease, share, fenced, lost):
        cursor = lease.start + round(share * (lease.end - lease.start))
        self.report(lease, cursor, fenced)
        if lost:
            self.report(lease, cursor, fenced)

    @rule(lease=consumes(held))
    def completes(self, lease):
        self.report(lease, lease.end, fenced=True)

    def report(self, lease, cursor, fenced):
        live = self.state.leases.get(lease.lease_id)
        instance = self.instances[lease.node_id]
        fence = lease.fence if fenced else 0
        reply = self.do(Progress("job", lease.node_id, lease.lease_id, cursor, instance=instance, fence=fence))
        if isinstance(reply, Done) and live is not None:
            assert live.fence == lease.fence and cursor >= self.cursors[lease.lease_id]
            for sample in range(self.cursors[lease.lease_id], cursor):
                assert sample not in self.committed[lease.epoch], "done twice"
                self.committed[lease.epoch].add(sample)
            self.cursors[lease.lease_id] = cursor
        elif isinstance(reply, Refused) and live is None:
            assert reply.code in (Code.NOT_FOUND, Code.FAILED_PRECONDITION)

    @rule(lease=held, other=st.sampled_from(NODES), fence_off=st.sampled_from([-1, 0, 1]), by=st.integers(-2, 2))
    def forges(self, lease, other, fence_off, by):
        """Somebody else's lease, another fence, a cursor that goes back or leaves the range."""
        live = self.state.leases.get(lease.lease_id)
        if live is None:
            return
        cursor = live.cursor + by
        right = other == live.node_id and not fence_off and live.cursor <= cursor <= live.end
        if right or other not in self.state.nodes:
            return
        event = Progress("job", other, lease.lease_id, cursor, 0, 0, self.instances[other], lease.fence + fence_off)
        if not lease.fence + fence_off and other == live.node_id and live.cursor <= cursor <= live.end:
            return  # it doesn't say a fence
        assert isinstance(self.do(event), Refused)

    @rule(seconds=st.sampled_from([0.0, 1.0, TTL_S / 2, TTL_S, 61.0]))
    def passes(self, seconds):
        self.now += seconds
        self.do(Tick())

    @rule(node=st.sampled_from(NODES))
    def leaves(self, node):
        self.do(Leave("job", node, self.instances[node]))

    @rule(skew=st.floats(-1e6, 1e6))
    def another_leads(self, skew):
        """It has the journal, and a clock of its own."""
        records = {key: read_record(key, text) for key, text in self.journal.items()}
        before, self.state = self.state, load_records(records, self.state.terms)
        for name in ("job", "course", "nodes", "queues", "leases", "spares", "unstarted"):
            assert getattr(self.state, name) == getattr(before, name), name
        assert set(self.state.open_ranks) == set(before.open_ranks)
        self.now += skew
        self.term += 1000
        self.do(Recover(self.term))

    @invariant()
    def every_sample_is_in_one_place(self):
        if not hasattr(self, "committed"):
            return
        samples = range(self.state.job.samples)
        left = [sample for start, end in self.state.left() for sample in range(start, end)]  # raises on an overlap
        if self.state.course.phase == "drained":
            assert not left
            assert all(done == set(samples) for done in self.committed.values())
        else:
            done = self.committed[self.state.course.epoch]
            assert sorted(left) == [sample for sample in samples if sample not in done]
            assert {each for start, end in self.state.done() for each in range(start, end)} == done

    @invariant()
    def fences_grow(self):
        if hasattr(self, "fences"):
            assert self.fences == sorted(set(self.fences))

    def teardown(self):
        """Somebody comes back and does the rest: it drains, and says so once."""
        if not hasattr(self, "committed"):
            return
        for node in NODES:
            assert not isinstance(self.register(node), Refused)
        for _ in range(2000):
            if self.state.course.phase == "drained":
                break
            for node in NODES:
                for lease in self.asks_for_one(node):
                    self.report(lease, lease.end, fenced=False)
            self.now += TTL_S
            self.do(Tick())
        assert self.state.course.phase == "drained" and self.drained == 1
        self.every_sample_is_in_one_place()

    def asks_for_one(self, node):
        reply = self.do(RequestLease("job", node, 2, self.instances[node]))
        for lease in reply.leases:
            self.cursors[lease.lease_id] = lease.cursor
        return reply.leases


JobMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestJob = JobMachine.TestCase
