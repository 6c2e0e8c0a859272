"""The pipeline: units of work, admitted in order under a budget, built side by side, handed out in order.

Threads: one producer plans, charges and starts each unit; a crew of builders builds them (where there is never more
than one, the producer builds itself); any consumer thread calls ``next()``. They meet at one condition and at the
budget. The producer charges a unit before anything of it exists, and in delivery order, so a later batch can never
hold memory that an earlier one waits for.
"""

from __future__ import annotations

import atexit
import gc
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, NoReturn, TypeAlias, TypeVar

from penstock.budget import Budget, Charge
from penstock.errors import BudgetHeld, ClosedError, DeadlineExceeded, UnitTooLarge
from penstock.loader.crew import Crew
from penstock.loader.plan import Unit
from penstock.loader.work import CostChanged, Delivery, PipelineStatistics, Shared, Work
from penstock.observe.stages import StageClock
from penstock.sizes import format_bytes

__all__ = ["Pipeline"]

T = TypeVar("T")
_Built: TypeAlias = tuple[Delivery[T], float]  # a result, and when it was ready
_Slot: TypeAlias = tuple[Unit, Future[tuple[Delivery[T], float]]]

_SLICE_S = 1.0  # how long one wait lasts before it looks again whether it is still wanted
_HELD_POLL_S = 0.005  # how often a hungry consumer asks the budget whether only it can free memory
_HELD_GRACE_S = 5.0  # how long other threads of the user's get to let go of batches before that is an error
_JOIN_S = 10.0
_RECENT = 64  # units whose sizes are remembered
_THREAD_PREFIX = "penstock-"


class _Mine(threading.local):
    """What one consumer thread was given and hasn't taken yet."""

    undelivered: _Slot[Any] | None = None


class Pipeline(Generic[T]):
    """See the module. ``peek()`` gives the results in order, then raises StopIteration for ever.

    Args:
        units: what to build, planned as it goes.
        work: how to build it.
        budget: this pipeline's own; closed with it.
        builders: builds at once, at least 1.
        most_builders: what ``resize`` may raise that to.
        depth: results that may wait for the consumer, at least 1.
        first_alone: the first unit is built with nothing beside it that would take processor time from it.
        cancel: ends what builds are waiting for; called when the pipeline stops.
        release: lets go of what belongs to the owner, when it was dropped instead of closed, or the program ends.
        stall_timeout_s: how long ``next()`` waits for a batch before it raises DeadlineExceeded.
        clock: is told how long each batch was in which stage; the pipeline's own by default.
        statistics: what whoever hands results out counts in; the same.
        shared: memory that units share, where they do.
        waits: whether it is units that are waited for, which has a deadline of its own.
    """

    def __init__(
        self,
        units: Iterator[Unit],
        work: Work[T],
        budget: Budget,
        *,
        builders: int,
        depth: int,
        cancel: Callable[[], None],
        release: Callable[[], None],
        stall_timeout_s: float,
        clock: StageClock | None = None,
        statistics: PipelineStatistics | None = None,
        most_builders: int = 1,
        first_alone: bool = False,
        shared: Shared | None = None,
        waits: Callable[[], bool] = bool,
    ) -> None:
        self._units = units
        self._waits = waits
        self._work = work
        self._budget = budget
        self._shared = shared
        self._builders = builders
        self._depth = depth
        self._cancel = cancel
        self._release = release
        self._stall_timeout_s = stall_timeout_s
        self._clock = clock or StageClock()
        self._changed = threading.Condition()
        self._slots: deque[_Slot[T]] = deque()
        self.mine = _Mine()
        self._reserving = False
        self._building: Unit | None = None  # by the producer itself
        self._finished = False
        self._closed = False  # by its owner
        self._stopping = False  # by its owner or by an error
        self._abandoned = False  # its owner was dropped without closing it
        self._failure: BaseException | None = None
        self.statistics = statistics or PipelineStatistics()
        self.recent_bytes: deque[int] = deque(maxlen=_RECENT)
        self._crew: Crew | None = None
        self._first_built = not first_alone
        if max(builders, most_builders) > 1:
            self._crew = Crew(1 if first_alone else builders, f"{_THREAD_PREFIX}build")
        self._owner_pid = os.getpid()
        self._producer = threading.Thread(target=self._produce, name=f"{_THREAD_PREFIX}producer", daemon=True)
        self._producer.start()
        _live.add(self)

    # The consumer's side

    @property
    def finished(self) -> bool:
        """Whether the last batch was handed out."""
        return self._finished and not self._slots and self._failure is None

    @property
    def promising(self) -> bool:
        """Whether a batch is ready or on its way, for which ``peek()`` waits up to a deadline, or no more will come."""
        on_its_way = bool(self._slots) or self._reserving or self._building is not None
        return on_its_way or self._finished or self.mine.undelivered is not None

    def peek(self) -> Delivery[T]:
        """Wait for the next result and return it without counting it as handed out.

        Whoever hands it out adds to ``statistics`` and then sets ``mine.undelivered`` to None, by plain assignments
        right before its own return: Python runs signal handlers at calls and loops, so Ctrl-C can't come in between,
        and a result that didn't reach its caller is what this thread's next ``peek()`` returns.
        """
        started = time.monotonic()
        with self._changed:
            self.check_usable()
            again = self.mine.undelivered
            self.mine.undelivered = again or self._head(started)
            unit, slot = self.mine.undelivered
            if self._slots and self._slots[0][1] is slot:
                self._slots.popleft()
                self._changed.notify_all()  # the producer may be waiting for room in the queue
        error = slot.exception()
        if error is not None:
            self.give_up(error)
        delivery, built_at = slot.result()
        if again is None:
            now = time.monotonic()
            self._clock.record("queue_wait", unit.index, built_at, now)
            self._clock.record("data_wait", unit.index, started, now)
        return delivery

    def give_up(self, error: BaseException) -> NoReturn:
        """Raise instead of handing out what ``peek()`` gave; that was the end."""
        self._stop()
        self.mine.undelivered = None
        raise error

    def _head(self, started: float) -> _Slot[T]:
        """Wait until the next batch in order is there."""
        hungry_since: float | None = None
        while True:
            self.check_usable()
            if self._slots and self._slots[0][1].done():
                return self._slots[0]
            if not self._slots and self._finished:
                self._end()
            now = time.monotonic()
            started = now if self._waits() else started
            waited_s = now - started
            if waited_s > self._stall_timeout_s:
                raise DeadlineExceeded(
                    f"no batch within {self._stall_timeout_s:g} s: {self._waiting_for()}; "
                    "raise timeout_seconds, or PENSTOCK_STALL_TIMEOUT_S, if the source is that slow"
                )
            if self._reserving and not self._slots:
                hungry_since = hungry_since or now
                if now - hungry_since >= _HELD_POLL_S:  # a thread of ours that is done may still be letting go
                    self._check_held(waited_s)
                self._changed.wait(_HELD_POLL_S)
            else:
                hungry_since = None
                self._changed.wait(_SLICE_S)

    def check_usable(self) -> None:
        """Raise ClosedError after ``close()``, and in a forked child."""
        if self._closed:
            raise ClosedError("the loader is closed; make a new one")
        if os.getpid() != self._owner_pid:
            raise ClosedError("a loader doesn't survive fork(); make a new one in the child process")

    def _end(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        raise StopIteration

    def _check_held(self, waited_s: float) -> None:
        """Raise when the next batch can't be admitted until this consumer lets go of something."""
        if not self._budget.waiting_count:
            return
        if waited_s < _HELD_GRACE_S and _user_threads():
            return  # one of them may be about to drop a batch: that is back-pressure, not an error
        gc.collect()  # batches in dead reference cycles are held by nobody
        needed, total = self._budget.waiting_bytes, self._budget.total_bytes
        ours = self._shared.held_bytes if self._shared is not None else 0
        held = self._budget.charged_bytes - ours
        if not needed:
            return
        beside = f", and {ours} ({format_bytes(ours)}) are held for the windows of its shuffle" if ours else ""
        raise BudgetHeld(
            f"the next batch needs {needed} bytes ({format_bytes(needed)}), but this program still holds {held} of the "
            f"{total} bytes ({format_bytes(held)} of {format_bytes(total)}) of max_inflight_bytes in batches, "
            f"tensors or views that it took from the loader{beside}. Let go of them before next() (a loop variable "
            "holds its batch until the next one is bound: `del batch`, or batch.release()), copy what must stay, or "
            f"raise max_inflight_bytes to at least two batches{' and two windows' if ours else ''}",
            held_bytes=held,
            needed_bytes=needed,
            total_bytes=total,
        )

    def _waiting_for(self) -> str:
        building = self._slots[0][0] if self._slots else self._building
        if building is not None and not self._reserving:
            return f"batch {building.index} is still being read or transformed"
        return "waiting for memory" if self._reserving else "the next batch is still being planned"

    # The producer's side

    def _produce(self) -> None:
        try:
            for unit in self._planned():
                if not self._wait_for_room() or not self._start(unit):
                    break
        except BaseException as error:
            self._failure = None if self._stopping or self._abandoned else error
        with self._changed:
            self._finished = True
            self._changed.notify_all()
            while not self._stopping and not self._abandoned:
                self._changed.wait(_SLICE_S)
        if self._abandoned:
            self._stop()
            self._release()
            _live.discard(self)

    def _planned(self) -> Iterator[Unit]:
        while True:
            started = time.monotonic()
            unit = next(self._units, None)
            if unit is None:
                return
            self._clock.record("plan", unit.index, started)
            yield unit

    def _wait_for_room(self) -> bool:
        with self._changed:
            while not self._stopping and not self._abandoned and len(self._slots) >= self._room():
                self._changed.wait(_SLICE_S)
            return not self._stopping and not self._abandoned

    def _room(self) -> int:
        """Units that may be under way or finished."""
        return self._depth + (self._builders if self._crew is not None else 0)

    def resize(self, *, builders: int | None = None, depth: int | None = None) -> None:
        """Build so many units at once, or let so many results wait; what is under way or waits already stays."""
        with self._changed:
            self._builders = builders or self._builders
            self._depth = depth or self._depth
            self._changed.notify_all()
        if self._crew is not None and self._first_built:
            self._crew.resize(self._builders)

    def _start(self, unit: Unit) -> bool:
        """Charge a unit and build it, here or on the pool; False when the build failed here."""
        charge = self._reserve(self._work.cost_bytes(unit), unit, unit.begun_bytes)
        if self._shared is not None:
            self._shared.begin(unit, charge)
        if self._crew is not None:
            slot = self._crew.submit(partial(self._build, unit, charge))
            del charge
            self._enqueue(unit, slot)
            slot.add_done_callback(self._wake)
            return True
        slot = Future()
        self._building = unit
        try:
            slot.set_result(self._build_here(unit, charge))
        except BaseException as error:
            slot.set_exception(error)
        self._building = None
        self._enqueue(unit, slot)
        return slot.exception() is None

    def _build(self, unit: Unit, charge: Charge) -> _Built[T]:
        delivery = self._work.build(unit, charge)
        if self._shared is not None:
            self._shared.done(unit)
        return delivery, time.monotonic()

    def _build_here(self, unit: Unit, charge: Charge) -> _Built[T]:
        while True:
            try:
                return self._build(unit, charge)
            except CostChanged as changed:
                cost_bytes = changed.cost_bytes
            # Only here is the exception gone, and with it the frames that hold the first attempt's memory.
            charge.release()
            charge = self._reserve(cost_bytes, unit)

    def _reserve(self, size: int, unit: Unit, begun_bytes: int = 0) -> Charge:
        """Charge what a unit costs, and what it shares with later ones and begins with it."""
        windows_bytes = unit.begun_bytes + unit.kept_bytes
        if size + windows_bytes > self._budget.total_bytes:
            raise self._too_large(size, windows_bytes, unit)
        self.recent_bytes.append(size)
        started = time.monotonic()
        charge = self._budget.try_reserve(size + begun_bytes) or self._wait_for_budget(size + begun_bytes)
        self._clock.record("budget_wait", unit.index, started)
        return charge

    def _too_large(self, size: int, windows_bytes: int, unit: Unit) -> UnitTooLarge:
        needed, total = size + windows_bytes, self._budget.total_bytes
        beside, smaller = "", "batch_size_samples, or ask for smaller pixels"
        if windows_bytes:
            beside = (
                f", and the windows of its shuffle {windows_bytes} ({format_bytes(windows_bytes)}), together {needed}"
            )
            smaller = "window_bytes of the sampler, or batch_size_samples"
        return UnitTooLarge(
            f"batch {unit.index} needs {size} bytes ({format_bytes(size)}: {unit.payload_bytes} to read, the rest for "
            f"what they become){beside}, which exceeds max_inflight_bytes {total} ({format_bytes(total)}); raise it, "
            f"lower {smaller}",
            needed_bytes=needed,
            total_bytes=total,
        )

    def _wait_for_budget(self, size: int) -> Charge:
        with self._changed:
            self._reserving = True
            self._changed.notify_all()
        try:
            while True:
                try:
                    return self._budget.reserve(size, _SLICE_S)
                except DeadlineExceeded:
                    continue  # a slow consumer is no error; close() ends the wait through the budget
        finally:
            self._reserving = False

    def _enqueue(self, unit: Unit, slot: Future[_Built[T]]) -> None:
        with self._changed:
            if not self._stopping:
                self._slots.append((unit, slot))
            self._changed.notify_all()

    def _wake(self, _: Future[_Built[T]]) -> None:
        with self._changed:
            self._changed.notify_all()
        if self._crew is not None and not self._first_built:
            self._first_built = True
            self._crew.resize(self._builders)

    # The end

    def _stop(self) -> None:
        """Produce nothing more and drop what is queued; from now on the iterator is at its end."""
        with self._changed:
            self._stopping = self._finished = True
            slots = list(self._slots)
            self._slots.clear()
            self._changed.notify_all()
        self._cancel()
        self._budget.close()
        for _, slot in slots:
            slot.cancel()
        if self._crew is not None:
            self._crew.stop()

    def close(self) -> None:
        """Stop all threads, wait for them until a deadline, and drop what is queued.

        Safe at any time, from any thread, and twice. Batches and views that were handed out stay valid.
        """
        if os.getpid() != self._owner_pid:
            return  # the threads are in the parent
        self._closed = True
        self._stop()
        self.mine.undelivered = None
        if self._crew is not None:
            self._crew.join(_JOIN_S)
        if self._producer is not threading.current_thread():
            self._producer.join(_JOIN_S)
        _live.discard(self)

    def abandon(self) -> None:
        """Have the producer stop everything and call ``release``. For finalizers: takes no lock that may be held.

        The garbage collector runs finalizers in any thread at any moment, also one that is inside of an executor or
        holds this pipeline's condition; waiting there for anything can be waiting for ever.
        """
        if os.getpid() != self._owner_pid:
            return  # in a forked child nobody would ever let go of the budget's lock
        self._abandoned = True
        self._budget.close()
        if self._changed.acquire(blocking=False):
            self._changed.notify_all()
            self._changed.release()


def _user_threads() -> bool:
    """Whether any Python thread lives that is neither this one nor Penstock's own."""
    me = threading.current_thread()
    return any(t is not me and not t.name.startswith(_THREAD_PREFIX) for t in threading.enumerate())


_live: weakref.WeakSet[Pipeline[Any]] = weakref.WeakSet()


def _close_all() -> None:
    for pipeline in list(_live):
        pipeline.close()
        pipeline._release()


# Threads that come out of the core while the interpreter is being torn down would crash it, and those that wait for a
# store would hold up the exit: all loaders are closed first. Python joins the threads of executors before it runs what
# is registered with atexit; its own hook for that comes earlier.
getattr(threading, "_register_atexit", atexit.register)(_close_all)
