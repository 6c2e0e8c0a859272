"""The rules of tuning: pure. What a loader was seen doing goes in, at most one change of one knob comes out.

A loop that waits for batches gets more of what makes them; one that never waits gives memory back. Every change is a
trial: what didn't help is taken back. A knob that turns round rests for twice as long as the time before, so a loader
that is fed the same thing for hours comes to rest, whatever that thing is. Nothing goes beyond its range, and nothing
here knows the samples: what is delivered can't depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

__all__ = ["KNOBS", "Decision", "Knob", "Knobs", "Limits", "Observation", "Range", "State", "decide"]

Knob: TypeAlias = Literal["prefetch", "threads", "queue"]

KNOBS: Final[dict[Knob, str]] = {
    "prefetch": "batches built at once",
    "threads": "threads that decode",
    "queue": "finished batches that may wait for next()",
}

HUNGRY: Final = 0.10  # of the time in next(): the loop waits
SERVED: Final = 0.02  # less than this, and it doesn't
READY: Final = 1.0  # finished batches that wait on average, for a loop that is served
BURSTS: Final = 0.25  # of the queue filled on average, though the loop waits
HUNGRY_INTERVALS: Final = 2  # in a row, before more is given
SERVED_INTERVALS: Final = 4  # in a row, before something is taken away
REST_INTERVALS: Final = 1  # after a change, to see what it does
HELPED: Final = 1.05  # times the best rate before, or
LESS_WAITING: Final = 0.05  # less of the time in next()
FORGET: Final = 0.98  # the best rate counts for so much of itself an interval later
FIRST_PAUSE: Final = 8  # intervals before a knob turns round a second time; doubled for each time after that
LONGEST_PAUSE: Final = 512
EVEN: Final = 1.25  # p95 / p50 of batch bytes: above it, room is counted in the larger ones
RSS_ROOM: Final = 0.90  # of the guard's limit


@dataclass(frozen=True, slots=True)
class Range:
    """Least and most of a knob, both allowed."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Knobs:
    """Where the knobs stand; ``threads`` is 0 where nothing is decoded."""

    prefetch: int
    threads: int
    queue: int

    def value(self, knob: Knob) -> int:
        """Of one of them."""
        value: int = getattr(self, knob)
        return value

    def with_value(self, knob: Knob, value: int) -> Knobs:
        """The same but for one of them."""
        return replace(self, **{knob: value})


@dataclass(frozen=True, slots=True)
class Limits:
    """What no decision goes beyond.

    Attributes:
        prefetch: from which to which.
        threads: the same; both 0 where nothing is decoded.
        queue: the same.
        room_bytes: of the cap, what may be planned with.
        rss_limit_bytes: of the guard on the process, or None.
    """

    prefetch: Range
    threads: Range
    queue: Range
    room_bytes: int
    rss_limit_bytes: int | None = None

    def range(self, knob: Knob) -> Range:
        """Of one of the knobs."""
        found: Range = getattr(self, knob)
        return found


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen in an interval.

    Attributes:
        seconds: its length, more than 0.
        batches: that were delivered.
        data_wait_s: in ``next()``.
        queue_wait_s: that finished batches lay there until ``next()`` came, all added up.
        decode_s: that batches were being decoded, all added up.
        p50_bytes: what a recent batch is charged, the median.
        p95_bytes: and one of the larger ones.
        rss_bytes: of the process, 0 when unknown.
    """

    seconds: float
    batches: int
    data_wait_s: float
    queue_wait_s: float
    decode_s: float
    p50_bytes: int
    p95_bytes: int
    rss_bytes: int = 0

    @property
    def waiting(self) -> float:
        """Share of the time in ``next()``."""
        return self.data_wait_s / self.seconds

    @property
    def ready(self) -> float:
        """Finished batches that waited, on average."""
        return self.queue_wait_s / self.seconds

    @property
    def decoding(self) -> float:
        """Batches that were being decoded, on average."""
        return self.decode_s / self.seconds

    @property
    def batches_per_s(self) -> float:
        """Delivered."""
        return self.batches / self.seconds

    @property
    def batch_bytes(self) -> int:
        """What to plan with for a batch."""
        return self.p95_bytes if self.p95_bytes > EVEN * self.p50_bytes else self.p50_bytes


@dataclass(frozen=True, slots=True)
class Decision:
    """One knob, from where to where, and why."""

    knob: Knob
    before: int
    after: int
    reason: str

    @property
    def direction(self) -> int:
        """1 up, -1 down."""
        return 1 if self.after > self.before else -1


@dataclass(frozen=True, slots=True)
class _Move:
    """The last change of a knob, and how often it has turned round."""

    direction: int
    interval: int
    turns: int


@dataclass(frozen=True, slots=True)
class _Trial:
    """A change that hasn't proved itself."""

    decision: Decision
    best_per_s: float
    waiting: float


@dataclass(frozen=True, slots=True)
class State:
    """What the rules remember from one interval to the next."""

    knobs: Knobs
    interval: int = 0
    resting: int = 0
    hungry: int = 0  # intervals in a row
    served: int = 0
    best_per_s: float = 0.0  # batches, of late: what noise can do, a raise has to beat
    trial: _Trial | None = None
    moves: Mapping[Knob, _Move] = field(default_factory=lambda: MappingProxyType({}))


def decide(seen: Observation, state: State, limits: Limits) -> tuple[State, Decision | None]:
    """What to change after an interval, if anything.

    Args:
        seen: in the interval.
        state: that the interval before returned; ``State(knobs)`` at first.
        limits: that the knobs are in now, and stay in.

    Returns:
        The state for the next interval, and the change that has to be made for it to be true.
    """
    state = _counted(seen, state)
    if state.resting:
        return replace(state, resting=state.resting - 1), None
    forced = _fit_the_memory(seen, state, limits) or _take_back(seen, state, limits)
    decision = forced or _feed(seen, state, limits) or _give_back(seen, state, limits)
    if decision is None:
        return replace(state, trial=None), None
    trial = None if forced else _Trial(decision, state.best_per_s, seen.waiting)
    # After a cut, what was possible before it is no measure any more.
    best_per_s = state.best_per_s if decision.direction > 0 else seen.batches_per_s
    return _changed(decision, trial, best_per_s, state), decision


def _near_the_limit(seen: Observation, limits: Limits) -> bool:
    """Whether the process is about as large as its guard allows; nothing is raised then."""
    return limits.rss_limit_bytes is not None and seen.rss_bytes > RSS_ROOM * limits.rss_limit_bytes


def _counted(seen: Observation, state: State) -> State:
    served = seen.waiting < SERVED and seen.ready >= READY
    return replace(
        state,
        interval=state.interval + 1,
        hungry=state.hungry + 1 if seen.waiting > HUNGRY else 0,
        served=state.served + 1 if served else 0,
        best_per_s=max(seen.batches_per_s, FORGET * state.best_per_s),
    )


def _changed(decision: Decision, trial: _Trial | None, best_per_s: float, state: State) -> State:
    last = state.moves.get(decision.knob)
    turns = 0 if last is None else last.turns + (last.direction != decision.direction)
    move = _Move(decision.direction, state.interval, turns)
    return replace(
        state,
        knobs=state.knobs.with_value(decision.knob, decision.after),
        resting=REST_INTERVALS,
        hungry=0,
        served=0,
        best_per_s=best_per_s,
        trial=trial,
        moves=MappingProxyType({**state.moves, decision.knob: move}),
    )


def _may_turn(knob: Knob, direction: int, state: State) -> bool:
    """Whether a knob that was turned the other way has rested for long enough."""
    last = state.moves.get(knob)
    if last is None or last.direction == direction:
        return True
    pause = min(LONGEST_PAUSE, FIRST_PAUSE << min(last.turns, 16))
    return state.interval - last.interval >= pause


def _fit_the_memory(seen: Observation, state: State, limits: Limits) -> Decision | None:
    """Lower what takes memory when the process nears its limit, or when the cap holds less than is built at once."""
    if _near_the_limit(seen, limits):
        return _lower(("queue", "prefetch"), state, limits, "the process nears its limit", now=True)
    if not seen.batch_bytes:
        return None
    before, fitting = state.knobs.prefetch, limits.room_bytes // seen.batch_bytes - 1  # the loop has one
    after = max(limits.prefetch.least, fitting)
    if before <= fitting + 1 or after >= before:  # one too many is nothing: sizes waver
        return None
    return Decision("prefetch", before, after, "the cap has no room for so many batches")


def _take_back(seen: Observation, state: State, limits: Limits) -> Decision | None:
    """Undo the last change when it brought nothing, or took away what was needed."""
    trial = state.trial
    if trial is None:
        return None
    made = trial.decision
    if made.direction > 0:
        served = seen.waiting <= HUNGRY
        faster = seen.batches_per_s >= HELPED * trial.best_per_s
        if served or faster or seen.waiting <= trial.waiting - LESS_WAITING:
            return None
        return Decision(made.knob, made.after, made.before, "more of it brought no more batches")
    if seen.waiting <= HUNGRY or trial.waiting > HUNGRY or _near_the_limit(seen, limits):
        return None
    return Decision(made.knob, made.after, made.before, "with less of it next() waited")


def _feed(seen: Observation, state: State, limits: Limits) -> Decision | None:
    """Raise what a waiting loop lacks."""
    if state.hungry < HUNGRY_INTERVALS or _near_the_limit(seen, limits):
        return None
    for knob, reason in _lacking(seen, state):
        now, most = state.knobs.value(knob), limits.range(knob).most
        after = min(most, now + max(1, now // 2), _fitting(knob, seen, state, limits))
        if after > now and _may_turn(knob, 1, state):
            return Decision(knob, now, after, f"next() waited {seen.waiting:.0%} of the time and {reason}")
    return None


def _lacking(seen: Observation, state: State) -> Iterator[tuple[Knob, str]]:
    """What might help, the likeliest first."""
    if seen.ready > BURSTS * state.knobs.queue:
        yield "queue", f"{seen.ready:.1f} batches were ready on average: it comes in bursts"
    decoders_are_busy = state.knobs.threads > 0 and seen.decoding >= 1
    if decoders_are_busy:
        yield "threads", f"{seen.decoding:.1f} batches were being decoded"
    else:
        yield "prefetch", "builders could begin more"


def _fitting(knob: Knob, seen: Observation, state: State, limits: Limits) -> int:
    """The most of a knob that memory has room for."""
    if knob == "threads" or not seen.batch_bytes:
        return limits.range(knob).most
    knobs, room_bytes = state.knobs, limits.room_bytes
    others = knobs.prefetch if knob == "queue" else 0  # a queue is only of use beside those being built
    in_cap = room_bytes // seen.batch_bytes - others - 1  # the loop has one
    if limits.rss_limit_bytes is None:
        return in_cap
    left_bytes = RSS_ROOM * limits.rss_limit_bytes - seen.rss_bytes
    return min(in_cap, knobs.value(knob) + int(left_bytes // seen.batch_bytes))


def _give_back(seen: Observation, state: State, limits: Limits) -> Decision | None:
    """Lower what a loop that never waits doesn't need."""
    if state.served < SERVED_INTERVALS:
        return None
    reason = f"next() hardly waited, and {seen.ready:.1f} batches were ready on average"
    return _lower(("queue", "prefetch"), state, limits, reason)


def _lower(knobs: tuple[Knob, ...], state: State, limits: Limits, reason: str, *, now: bool = False) -> Decision | None:
    """Halve the first of the knobs that can go down, and may: ``now`` says that it can't wait."""
    for knob in knobs:
        before = state.knobs.value(knob)
        after = max(limits.range(knob).least, before // 2)
        if after < before and (now or _may_turn(knob, -1, state)):
            return Decision(knob, before, after, reason)
    return None
