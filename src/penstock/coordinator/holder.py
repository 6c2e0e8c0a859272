"""What a node does beside its work: it says that it lives, reports cursors, asks for leases; in a thread of its own.

The loader's producer takes fresh leases here, its consumer asks before it hands something out, and both wait here for
what the coordinator says.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from immutables import Map

from penstock.coordinator.client import Client
from penstock.coordinator.events import GrantedLease, Heartbeat, Leave, Progress, RequestLease
from penstock.coordinator.holding import Answer, Holding, Portion, Report
from penstock.coordinator.member import Member
from penstock.errors import (
    ClosedError,
    CoordinatorError,
    CoordinatorUnreachable,
    LeaseLost,
    PenstockError,
)
from penstock.net import lease_clock
from penstock.proof import prove

__all__ = ["Holder"]

_SLICE_S: Final = 1.0  # how long one wait lasts before it looks again whether it is still wanted
_LEAST_ATTEMPT_S: Final = 1.0
_CLOSE_S: Final = 5.0  # for the last words; a coordinator that was silent before has had some of it
_LEAST_CLOSE_S: Final = 0.5
_JOIN_S: Final = 10.0
_MOST_PAUSE_S: Final = 1.0


class Holder:
    """See the module. Leases are asked for, up to ``want`` at a time, once somebody has asked for ``fresh`` ones.

    Args:
        client: the line to the coordinator; closed with the holder.
        member: who we are.
        want: most leases at a time.
        report_interval_s: between reports of progress, at most.
        stats: what heartbeats say of memory and queues; it must not hold a loader.
    """

    def __init__(
        self,
        client: Client,
        member: Member,
        *,
        want: int,
        report_interval_s: float,
        stats: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._owner_pid = os.getpid()
        self._client = client
        self._member = member
        self._want = want
        ttl_s = member.registered.lease_ttl_s
        self._report_s = min(report_interval_s, ttl_s / 4)
        client.attempt_s = min(client.attempt_s, max(_LEAST_ATTEMPT_S, ttl_s / 2))
        self.stats = stats
        self._holding = Holding()
        self.lost_total = 0
        self._changed = threading.Condition()
        self._fresh: list[tuple[int, GrantedLease]] = []
        self._begun = False
        self._drained = False
        self._hungry = False  # the producer waits for a lease
        self._closing = False
        self._cancelled = False
        self._abandoned = False
        self._failure: PenstockError | None = None
        self._urgent = 0  # who wants cursors to be told now: a count, so that later ones aren't taken for earlier ones
        self._told = 0
        self._nothing_since = -1  # what was told when the coordinator last had nothing for us
        self._requests = 0
        self._request: tuple[str, float] | None = None  # an unanswered one, and when it was first sent
        self._silent_since: float | None = None
        self._due_s = {"heartbeat": 0.0, "report": 0.0, "request": 0.0}
        self._thread = threading.Thread(target=self._run, name="penstock-holder", daemon=True)
        self._thread.start()

    # The producer's side

    @property
    def held(self) -> int:
        """Leases that are held now."""
        return len(self._holding)

    @property
    def waiting(self) -> bool:
        """Whether the producer waits for the coordinator to have something."""
        return self._hungry

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do here at present: the coordinator was asked since, and others have the rest."""
        with self._changed:
            nothing = self._nothing_since >= self._urgent and not self._fresh and not len(self._holding)
            return self._hungry and nothing and not self._over()

    def fresh(self, *, wait: bool) -> list[tuple[int, GrantedLease]]:
        """Leases that nobody has begun yet, by number.

        Args:
            wait: until there is one; nothing then means that there will be none any more.

        Raises:
            CoordinatorRefused, CoordinatorUnreachable: as it came while waiting.
        """
        with self._changed:
            if not self._begun:
                self._begun = True
                self._changed.notify_all()
            self._hungry = wait
            while wait and not self._fresh and not self._over():
                self._changed.wait(_SLICE_S)
            self._hungry = False
            self._check(wait)
            found, self._fresh = self._fresh, []
            return found

    def _check(self, wait: bool) -> None:
        if wait and not self._fresh and self._failure is not None:
            raise self._failure

    def _over(self) -> bool:
        ended = self._drained and not len(self._holding)
        return ended or self._cancelled or self._abandoned or self._failure is not None

    def portion(self, number: int, start: int, end: int) -> Portion | None:
        """These samples of a lease; None when it is lost."""
        with self._changed:
            return self._holding.portion(number, start, end)

    @property
    def drained(self) -> bool:
        """Whether the coordinator said that the job is done."""
        return self._drained

    # The consumer's side

    def hand_out(self, portion: Portion, samples: int, payload_bytes: int) -> bool:
        """Whether these samples may be handed out now; where that is in doubt, wait until the coordinator says so.

        Raises:
            CoordinatorRefused, CoordinatorUnreachable: it didn't.
            ClosedError: the holder was closed.
        """
        with self._changed:
            while (answer := self._holding.ask(portion, lease_clock())) is Answer.IN_DOUBT:
                if self._failure is not None:
                    raise self._failure
                if self._closing:
                    raise ClosedError("the loader is closed; make a new one")
                self._hurry()
                self._changed.wait(_SLICE_S)
            if answer is Answer.YES:
                self._holding.hand_out(portion, samples, payload_bytes)
            return answer is Answer.YES

    def take(self, portion: Portion) -> None:
        """The consumer is done with what was handed out."""
        if self._forked:
            return
        with self._changed:
            if self._holding.take(portion):
                self._hurry()

    def flush(self, within_s: float | None = None) -> None:
        """Tell the coordinator all cursors now, and wait until it knows them.

        Raises:
            CoordinatorRefused, CoordinatorUnreachable: it didn't answer.
        """
        within_s = self._client.timeout_s if within_s is None else within_s
        deadline = time.monotonic() + within_s
        with self._changed:
            wanted = self._hurry()
            while self._told < wanted and self._failure is None and self._thread.is_alive():
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise CoordinatorUnreachable(f"the coordinator didn't take reports within {within_s:g} s")
                self._changed.wait(min(left_s, _SLICE_S))
            if self._failure is not None:
                raise self._failure

    def _hurry(self) -> int:
        self._urgent += 1
        self._changed.notify_all()
        return self._urgent

    # The end

    def cancel(self) -> None:
        """Wake the producer, which gets nothing any more."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Have the producer get nothing any more. For finalizers: takes no lock that may be held."""
        self._abandoned = True
        if self._changed.acquire(blocking=False):
            self._changed.notify_all()
            self._changed.release()

    def close(self) -> None:
        """Report, leave the job, and end the thread. Safe twice; a forked child leaves all of it to its parent."""
        if self._forked:
            return
        with self._changed:
            first, self._closing, self._cancelled = not self._closing, True, True
            self._changed.notify_all()
        if first and self._failure is None:
            with suppress(PenstockError):
                self.flush(max(_LEAST_CLOSE_S, _CLOSE_S - self._silent_for_s()))
                self._client.leave(Leave(*self._me()), within_s=0)
        self._client.wake()
        with self._changed:
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(_JOIN_S)
        self._client.close()

    @property
    def _forked(self) -> bool:
        return os.getpid() != self._owner_pid

    def _me(self) -> tuple[str, str, str]:
        return self._member.job_id, self._member.node_id, self._member.instance

    # The thread

    def _run(self) -> None:
        pause_s = 0.0
        while not self._ended():
            try:
                self._step()
            except CoordinatorUnreachable as error:
                pause_s = min(max(0.1, 2 * pause_s), _MOST_PAUSE_S)
                self._note_silence(error)
            except PenstockError as error:
                self._fail(error)
            except BaseException as error:
                self._fail(CoordinatorError(f"the thread that talks to the coordinator failed: {error!r}"))
                raise
            else:
                pause_s, self._silent_since = 0.0, None
            self._rest(pause_s)

    def _ended(self) -> bool:
        return self._failure is not None or self._client.woken

    def _note_silence(self, error: CoordinatorUnreachable) -> None:
        self._silent_since = self._silent_since or time.monotonic()
        if self._silent_for_s() >= self._client.timeout_s:
            self._fail(
                CoordinatorUnreachable(
                    f"no coordinator answered for {self._client.timeout_s:g} s (coord_timeout_s): {error}"
                )
            )

    def _silent_for_s(self) -> float:
        since = self._silent_since
        return 0.0 if since is None else time.monotonic() - since

    def _fail(self, error: PenstockError) -> None:
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def _rest(self, pause_s: float) -> None:
        with self._changed:
            until = time.monotonic() + pause_s
            while not self._ended():
                now = time.monotonic()
                due_s = until if pause_s else self._next_s(now)
                if due_s <= now:
                    return
                self._changed.wait(min(due_s - now, _SLICE_S))

    def _next_s(self, now: float) -> float:
        if self._told < self._urgent:
            return now
        due = [self._due_s["heartbeat"]]
        if len(self._holding):
            due.append(self._due_s["report"])
        if self._wanting():
            due.append(self._due_s["request"])
        return min(due)

    def _wanting(self) -> int:
        done = self._drained or self._closing or self._cancelled or self._abandoned
        return 0 if done or not self._begun else self._want - len(self._holding)

    def _step(self) -> None:
        """Say and ask what is due."""
        now = time.monotonic()
        with self._changed:
            urgent, wanting = self._urgent, self._wanting()
        if urgent > self._told or now >= self._due_s["report"]:
            self._report()
            with self._changed:
                self._told = urgent
                wanting = self._wanting()
                self._changed.notify_all()
        if now >= self._due_s["heartbeat"]:
            job_id, node_id, instance = self._me()
            self._client.heartbeat(Heartbeat(job_id, node_id, Map(self.stats()), instance), 0)
            self._due_s["heartbeat"] = now + self._member.registered.heartbeat_interval_s
        if wanting > 0 and time.monotonic() >= self._due_s["request"]:
            self._ask(wanting)

    def _report(self) -> None:
        with self._changed:
            reports = self._holding.reports()
        for report in reports:
            self._tell(report)
        self._due_s["report"] = time.monotonic() + self._report_s

    def _tell(self, report: Report) -> None:
        sent_s = lease_clock()
        job_id, node_id, instance = self._me()
        event = Progress(
            job_id,
            node_id,
            report.lease_id,
            report.cursor,
            report.samples,
            report.payload_bytes,
            instance,
            report.fence,
        )
        try:
            self._client.progress(event, 0)
        except LeaseLost as error:
            prove("lease_lost", lease=report.lease_id, node=node_id, cursor=report.cursor, reason=str(error))
            with self._changed:
                self._holding.lose(report.lease)
                self.lost_total += 1
                self._changed.notify_all()
        else:
            with self._changed:
                held = len(self._holding)
                self._holding.confirm(report, sent_s)
                if len(self._holding) < held:
                    self._due_s["request"] = 0.0  # the last one of an epoch begins the next one
                self._changed.notify_all()

    def _ask(self, want: int) -> None:
        """A request that wasn't answered is sent again as it was, so that what it brought isn't lost."""
        job_id, node_id, instance = self._me()
        if self._request is None:
            self._requests += 1
            self._request = (f"{instance}-{self._requests}", lease_clock())
        name, asked_s = self._request
        granted = self._client.request(
            RequestLease(job_id, node_id, want, instance, name),
            lease_ttl_s=self._member.registered.lease_ttl_s,
            within_s=0,
        )
        self._request = None
        for lease in granted.leases:  # another coordinator, with other terms, may lead since we registered
            self._report_s = min(self._report_s, lease.ttl_s / 4)
        self._due_s["report"] = min(self._due_s["report"], time.monotonic() + self._report_s)
        with self._changed:
            self._fresh += self._holding.grant(granted.leases, asked_s)
            self._drained = granted.drained
            self._nothing_since = -1 if granted.leases else self._told
            self._changed.notify_all()
        self._due_s["request"] = 0.0 if granted.leases else time.monotonic() + granted.wait_s
