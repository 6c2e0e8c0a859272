"""Where a job is led: events come in, ``rules`` decides, the journal keeps it, and only then anybody is answered.

Events that come while the journal is busy are decided and kept together, so a slow disk makes groups larger, not the
job slower.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeAlias, TypeVar

from penstock.coordinator.audit import audit
from penstock.coordinator.draft import Changes, Note
from penstock.coordinator.events import Event, Recover, Refused, Reply, Restore, Tick
from penstock.coordinator.journal.base import Journal
from penstock.coordinator.rules import apply, begin
from penstock.coordinator.state import Job, State, Terms, load_records, read_record, write_record
from penstock.errors import ClosedError, ConfigError, CoordinatorError, JournalUnavailable, NotLeader
from penstock.proof import prove

__all__ = ["Seat"]

_log = logging.getLogger("penstock.coordinator")

_MOST_AT_ONCE: Final = 1024
_TICK_S: Final = 1.0
_RETRY_S: Final = 0.5
_LEADER_HOLDS_S: Final = 0.25
_LEADER_TOLD_S: Final = 1.0  # then it is told as it was last known; a node's call waits for 5 s

Result = TypeVar("Result")
_Waiting: TypeAlias = "tuple[Event, asyncio.Future[Reply]]"


class Seat:
    """The place from which one job is led; whether somebody sits in it is the journal's word.

    All of it belongs to one event loop.

    Args:
        journal: where decisions are kept. The seat owns it.
        job: what is to be done, if the journal doesn't hold it yet.
        terms: how long things may take.
        clock: seconds; never goes back.
        checkpoint: where a new job begins.
        anew: forget what the journal holds.
        job_id: what nodes have to call the job; empty = as the first of them does.
    """

    def __init__(
        self,
        journal: Journal,
        job: Job,
        terms: Terms,
        *,
        clock: Callable[[], float] = time.monotonic,
        checkpoint: Restore | None = None,
        anew: bool = False,
        job_id: str = "",
    ) -> None:
        self._journal = journal
        self._job = job
        self._terms = terms
        self._clock = clock
        self._checkpoint = checkpoint
        self._anew = anew
        self._job_id = job_id
        self._state: State | None = None
        self._waiting: deque[_Waiting] = deque()
        self._woken = asyncio.Event()
        self._closing = False
        self._ended = asyncio.Event()
        self._ended.set()  # run() hasn't begun
        self._complaint = ""
        self._listeners: list[Callable[[float, Note], None]] = []
        self._awake_s = 0.0  # when something was last decided
        self._leader: str | None = None
        self._leader_until_s = 0.0
        self._asking: asyncio.Future[None] | None = None  # who leads
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="penstock-journal")  # keeps what is kept in order

    @property
    def state(self) -> State | None:
        """What is decided and kept; None while somebody else leads. Immutable."""
        return self._state

    def now(self) -> float:
        """Seconds, by the clock that all times of the state are of."""
        return self._clock()

    def listen(self, listener: Callable[[float, Note], None]) -> None:
        """Let somebody know of every note, with its time, once what it tells of is kept. It must not block."""
        self._listeners.append(listener)

    @property
    def leads(self) -> bool:
        """Whether we lead, and can be sure of it."""
        return self._state is not None and not self._journal.lost

    async def leader(self) -> str | None:
        """The address of whoever leads, as of a moment ago; None while nobody does, or nobody knows."""
        now = self._clock()
        if now >= self._leader_until_s and (self._asking is None or self._asking.done()):
            self._leader_until_s = now + _LEADER_HOLDS_S
            self._asking = asyncio.ensure_future(self._ask_for_leader())
        if self._asking is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._asking), _LEADER_TOLD_S)
        return self._leader

    async def _ask_for_leader(self) -> None:
        """One at a time: a journal that doesn't answer would take all threads, those of manifests and the page too."""
        with contextlib.suppress(CoordinatorError, ClosedError):
            self._leader = await asyncio.get_running_loop().run_in_executor(None, self._journal.leader)

    async def do(self, event: Event) -> Reply:
        """Let something happen.

        Returns:
            The answer; what it says is kept.

        Raises:
            NotLeader: somebody else leads, or nobody yet.
            JournalUnavailable: it couldn't be kept. It may have happened or not; say it again.
        """
        if self._state is None:
            why = f" ({self._complaint})" if self._complaint else ""
            raise NotLeader(f"this coordinator doesn't lead the job{why}")
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((event, future))
        self._woken.set()
        return await future

    async def run(self) -> None:
        """Lead whenever nobody else does, until ``close()``.

        Raises:
            CoordinatorError: the journal is damaged, or of another job.
            ConfigError: there can't be such a job, or the journal holds another one under the same name.
        """
        self._ended.clear()
        try:
            while not self._closing:
                try:
                    term = await self._in_writer(self._journal.lead, None)
                    assert term is not None
                    await self._lead(term)
                except (NotLeader, JournalUnavailable) as error:
                    self._complain(str(error))
                    await asyncio.sleep(_RETRY_S)
                except ClosedError:
                    return
        finally:
            self._ended.set()

    async def close(self) -> None:
        """Decide and keep what is waiting, then let somebody else lead. ``run()`` returns. Safe twice."""
        self._closing = True
        self._woken.set()
        if self._state is None:
            self._journal.close()  # wakes who waits to lead
        await self._ended.wait()
        self._journal.close()
        self._writer.shutdown(wait=False)

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            _log.warning("this coordinator doesn't lead: %s", complaint)
        self._complaint = complaint

    # Leading.

    async def _lead(self, term: int) -> None:
        try:
            self._state = await self._take_over(term)
            prove("leading", term=term, phase=self._state.course.phase)
            self._complaint = ""
            await _until_one_ends(self._decide(), self._tick())
        finally:
            self._step_down(NotLeader("this coordinator doesn't lead the job any more"))

    def _step_down(self, error: CoordinatorError) -> None:
        self._state = None
        while self._waiting:
            _settle(self._waiting.popleft()[1], error)

    async def _take_over(self, term: int) -> State:
        """What the journal holds, or a new job; with everybody's time begun again."""
        kept = await self._in_writer(self._journal.load)
        gone: dict[str, str | None] = {}
        if self._anew:
            gone, kept = dict.fromkeys(kept), {}
        state = load_records({key: read_record(key, text) for key, text in kept.items()}, self._terms)
        changes: Changes = {}
        if state is None:
            outcome = begin(self._job, self._terms, fence=time.time_ns() // 1000)
            state, changes = outcome.state, dict(outcome.changes)
        _check_same(state.job, self._job)
        now = self._awake_s = self._clock()  # before the commit, which may take longer than a lease lasts
        for event in (self._checkpoint, Recover(term, self._job_id)):
            if event is None:
                continue
            outcome = apply(state, event, now)
            if isinstance(outcome.reply, Refused):
                raise CoordinatorError(outcome.reason)
            state = outcome.state
            changes.update(outcome.changes)
            _log.info("%s", outcome.reason)
        await self._in_writer(self._journal.commit, {**gone, **_written(changes)})
        self._anew = False
        return state

    async def _decide(self) -> None:
        """Group after group, until there is nothing left to do after ``close()``."""
        while self._waiting or not self._closing:
            if not self._waiting:
                self._woken.clear()
                await self._woken.wait()
                continue
            group = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MOST_AT_ONCE))]
            if self._was_away():
                group.insert(0, (Recover(0), _nobodys()))
            try:
                await self._decide_group(group)
            except BaseException as error:
                for _, future in group:
                    _settle(future, error)
                raise

    async def _decide_group(self, group: list[_Waiting]) -> None:
        state, now = self._state, self._clock()
        assert state is not None
        changes: Changes = {}
        replies: list[Reply | CoordinatorError] = []
        notes: list[Note] = []
        for event, _ in group:
            try:
                outcome = apply(state, event, now)
            except Exception:  # a bug, or a request that nobody thought of: it changes nothing, and the job goes on
                _log.exception("%s couldn't be decided", type(event).__name__)
                replies.append(CoordinatorError("this couldn't be decided; the coordinator's log says why"))
                continue
            state = outcome.state
            changes.update(outcome.changes)
            replies.append(outcome.reply)
            notes.extend(outcome.notes)
        if changes:
            await self._in_writer(self._journal.commit, _written(changes))
        elif self._journal.lost:
            raise NotLeader("another coordinator leads by now")
        self._state = state
        self._tell(now, notes)
        for (_, future), reply in zip(group, replies, strict=True):
            _settle(future, reply)

    def _was_away(self) -> bool:
        """Whether we stood still ourselves, our clock jumped, or the journal was long in answering.

        Reports wait behind that, so nobody is blamed for it: before anything else is decided all time begins again.
        """
        before, self._awake_s = self._awake_s, self._clock()
        return self._awake_s - before > self._terms.lease_ttl_s / 2

    async def _tick(self) -> None:
        """Let time pass, several times in what ``_was_away`` calls away."""
        pause_s = min(_TICK_S, self._terms.lease_ttl_s / 4)
        seen: object = None
        with contextlib.suppress(NotLeader, JournalUnavailable):
            while True:
                await asyncio.sleep(pause_s)
                await self.do(Tick())
                state = self._state
                if state is not None and state.leases is not seen:
                    seen = state.leases
                    self._tell(self._clock(), audit(state))

    def _tell(self, now: float, notes: Iterable[Note]) -> None:
        for note in notes:
            prove(note.event, **dict(note.fields))
            for listener in self._listeners:
                listener(now, note)

    async def _in_writer(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._writer, function, *arguments)


async def _until_one_ends(*works: Coroutine[Any, Any, None]) -> None:
    """Let all run until one returns, or raises what this raises too; then end the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _written(changes: Changes) -> dict[str, str | None]:
    return {key: None if record is None else write_record(record) for key, record in changes.items()}


def _nobodys() -> asyncio.Future[Reply]:
    """An answer that nobody waits for."""
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    future.cancel()
    return future


def _settle(future: asyncio.Future[Reply], result: Reply | BaseException) -> None:
    """Answer who still waits."""
    if future.done():
        return
    if not isinstance(result, BaseException):
        future.set_result(result)
    elif isinstance(result, CoordinatorError):
        future.set_exception(type(result)(str(result)))  # each its own: several tasks would share one traceback
    else:
        future.set_exception(NotLeader("this coordinator ends"))


def _check_same(kept: Job, wanted: Job) -> None:
    """That the journal's job is the one that was asked for; a checkpoint may have moved its beginning."""
    differ = [
        f"{name} is {getattr(kept, name)}, not {getattr(wanted, name)}"
        for name in ("manifest_hash", "samples", "block_samples", "shuffle", "seed", "world_size")
        if getattr(kept, name) != getattr(wanted, name)
    ]
    if (kept.epoch + kept.epochs, kept.epoch < wanted.epoch) != (wanted.epoch + wanted.epochs, False):
        differ.append(f"its epochs end before {kept.epoch + kept.epochs}, not before {wanted.epoch + wanted.epochs}")
    if differ:
        raise ConfigError(
            f"the journal holds another job: {'; '.join(differ)}. Give this one another job id or journal, or begin "
            "anew (--anew), which forgets the other; with --resume and a checkpoint of it, it goes on from there"
        )
