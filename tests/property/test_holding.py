"""A node's leases against the rules: whatever is lost, late or repeated, two nodes never have one sample."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.coordinator.events import (
    Done,
    Granted,
    GrantedLease,
    Leave,
    Progress,
    Refused,
    Register,
    RequestLease,
    Tick,
)
from penstock.coordinator.holding import Answer, Holding, Portion
from penstock.coordinator.rules import apply, begin
from penstock.coordinator.state import Caps, Job, Terms

SAMPLES, BATCH, TTL_S = 60, 4, 10.0


class Node:
    """A node with a clock that goes as fast as it likes within the margin, and messages that may be lost or late."""

    def __init__(self, world: World, name: str, rate: float, shift_s: float) -> None:
        self.world, self.name, self.rate, self.shift_s = world, name, rate, shift_s
        self.holding = Holding()
        self.ready: list[Portion] = []
        self.in_hand: Portion | None = None
        self.requests = 0
        world.say(Register("job", name, Caps(), name))

    def now(self) -> float:
        return self.shift_s + self.world.now * self.rate

    def ask(self, way_s: float, lost: bool) -> None:
        asked_s = self.now()
        self.world.pass_by(way_s)
        self.requests += 1
        reply = self.world.say(RequestLease("job", self.name, 1, self.name, f"{self.name}-{self.requests}"))
        self.world.pass_by(way_s)
        if lost or not isinstance(reply, Granted):
            return
        for number, lease in self.holding.grant(reply.leases, asked_s):
            cuts = [*range(lease.cursor, lease.end, BATCH), lease.end]
            self.ready += [Portion(number, start, end, lease.fence) for start, end in zip(cuts, cuts[1:], strict=False)]

    def step(self) -> None:
        """The consumer comes for the next."""
        if self.in_hand is not None:
            self.holding.take(self.in_hand)
            self.in_hand = None
        while self.ready:
            portion = self.ready[0]
            answer = self.holding.ask(portion, self.now())
            if answer is Answer.IN_DOUBT:
                return
            self.ready.pop(0)
            if answer is Answer.YES:
                self.holding.hand_out(portion, portion.end - portion.start, 0)
                self.in_hand = portion
                self.world.was_given(self, portion)
                return

    def report(self, way_s: float, lost: bool, twice: bool) -> None:
        for report in self.holding.reports():
            sent_s = self.now()
            self.world.pass_by(way_s)
            event = Progress(
                "job", self.name, report.lease_id, report.cursor, report.samples, 0, self.name, report.fence
            )
            reply = self.world.say(event)
            if twice:
                reply = self.world.say(event)
            self.world.pass_by(way_s)
            if lost:
                continue
            if isinstance(reply, Refused):
                self.holding.lose(report.lease)
            else:
                assert isinstance(reply, Done)
                self.holding.confirm(report, sent_s)


class World:
    def __init__(self) -> None:
        self.now = 0.0
        terms = Terms(lease_ttl_s=TTL_S, idle_lease_s=1e9, steal=True)
        self.state = begin(Job("h", SAMPLES, block_samples=15, world_size=2), terms).state
        self.committed: Counter[int] = Counter()

    def pass_by(self, seconds: float) -> None:
        for _ in range(int(4 * seconds)):
            self.now += 0.25
            self.say(Tick())

    def say(self, event):
        before = self.state
        outcome = apply(before, event, self.now)
        self.state = outcome.state
        if isinstance(event, Progress) and isinstance(outcome.reply, Done):
            lease = before.leases.get(event.lease_id)
            if lease is not None:
                self.committed.update(range(lease.cursor, event.cursor))
        return outcome.reply

    def was_given(self, node: Node, portion: Portion) -> None:
        """At this moment the coordinator, too, holds it to be this node's, and not done."""
        holders = [
            lease for lease in self.state.leases.values() if lease.fence == portion.fence and lease.node_id == node.name
        ]
        assert holders, f"{node.name} handed out {portion} without a lease"
        assert holders[0].cursor <= portion.start < portion.end <= holders[0].end


delays = st.sampled_from([0.0, 0.5, 2.0, 9.0, 12.0])
rare = st.integers(0, 4).map(lambda number: number == 0)
actions = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 1), delays, rare),
    st.tuples(st.just("step"), st.integers(0, 1)),
    st.tuples(st.just("step"), st.integers(0, 1)),
    st.tuples(st.just("report"), st.integers(0, 1), delays, rare, rare),
    st.tuples(st.just("wait"), delays),
)


@settings(max_examples=400)
@given(
    st.lists(actions, max_size=60),
    st.tuples(st.floats(0.97, 1.04), st.floats(0.97, 1.04)),
    st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)),
)
def test_what_is_handed_out_is_the_nodes_own_and_all_is_done_once(steps, rates, shifts):
    world = World()
    nodes = [Node(world, f"n{index}", rates[index], shifts[index]) for index in range(2)]
    for what, *rest in steps:
        match what:
            case "ask":
                nodes[rest[0]].ask(*rest[1:])
            case "step":
                nodes[rest[0]].step()
            case "report":
                nodes[rest[0]].report(*rest[1:])
            case "wait":
                world.pass_by(rest[0])
    for _ in range(200):  # and then all goes well
        for node in nodes:
            node.step()
            node.report(0, False, False)
            if not len(node.holding):
                node.ask(0, False)
        world.pass_by(1)
        if world.state.course.phase == "drained":
            break
    assert world.state.course.phase == "drained"
    assert world.committed == Counter(range(SAMPLES))


def granted(start: int, end: int, name: str = "lease-0") -> GrantedLease:
    return GrantedLease(name, "n", start, end, start, 0, 0, 1, TTL_S)


@given(st.permutations(range(5)), st.permutations(range(5)))
def test_a_cursor_stops_at_what_somebody_still_has(handed, order):
    holding = Holding()
    ((number, _),) = holding.grant([granted(0, 20)], 0.0)
    portions = [Portion(number, start, start + 4) for start in range(0, 20, 4)]
    for place in [*handed, *handed]:
        holding.hand_out(portions[place], 4, 40)
    done: set[int] = set()
    for place in order:
        complete = holding.take(portions[place])
        done.add(place)
        first_missing = min(set(range(5)) - done, default=5)
        (report,) = holding.reports()
        assert report.cursor == 4 * first_missing
        assert (report.samples, report.payload_bytes) == (4 * first_missing, 40 * first_missing)
        assert complete == (first_missing == 5)


def test_the_time_of_a_lease_counts_from_before_the_request():
    holding = Holding()
    ((number, _),) = holding.grant([granted(0, 20)], asked_s=100.0)
    portion = Portion(number, 0, 4)
    assert holding.ask(portion, 109.0) is Answer.YES
    assert holding.ask(portion, 109.6) is Answer.IN_DOUBT
    (report,) = holding.reports()
    holding.confirm(report, sent_s=109.0)
    assert holding.ask(portion, 109.6) is Answer.YES
    assert holding.ask(portion, 118.6) is Answer.IN_DOUBT
    holding.lose(number)
    assert holding.ask(portion, 109.6) is Answer.NO


def test_a_lease_that_is_told_of_twice_is_held_once():
    holding = Holding()
    assert len(holding.grant([granted(0, 20)], 0.0)) == 1
    assert holding.grant([granted(0, 20)], 5.0) == []
    assert len(holding) == 1


def test_leaving_gives_back_what_is_left():
    world = World()
    nodes = [Node(world, f"n{index}", 1.0, 0.0) for index in range(2)]
    nodes[0].ask(0, False)
    for _ in range(3):
        nodes[0].step()
    nodes[0].report(0, False, False)
    world.say(Leave("job", "n0", "n0"))
    assert not world.state.leases
    assert world.state.spares[0] == (8, 15)
