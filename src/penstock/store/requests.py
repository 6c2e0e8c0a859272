"""Makes requests: one slot of the process's limit, one deadline and one meaning of failure for each try."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from penstock.errors import PenstockError
from penstock.store import bridge
from penstock.store.failures import CLIENT_ERRORS, classify
from penstock.store.interrupt import pause
from penstock.store.limit import RequestLimit
from penstock.store.retry import RetryPolicy, should_retry

__all__ = ["Requester"]

T = TypeVar("T")


@dataclass(frozen=True)
class Requester:
    """Makes an object store's requests under one limit and one retry policy.

    Attributes:
        limit: the limit that every try takes a slot of.
        policy: how often and how long.
        sleep: waits between two tries; an ``Interrupt`` ends the usual one, and a test puts its own here.
    """

    limit: RequestLimit
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    sleep: Callable[[float], None] = pause

    def once(self, location: str, start: Callable[[], Awaitable[T]], timeout_s: float | None = None) -> T:
        """Make one try.

        Args:
            location: what the request is about, for messages.
            start: begins the request; called on the client's thread.
            timeout_s: a deadline other than the policy's.

        Raises:
            PenstockError: the error that the failure means.
        """
        deadline_s = self.policy.timeout_s if timeout_s is None else timeout_s
        with self.limit.slot(self.policy.total_s) as slot:
            try:
                result = bridge.run(start, deadline_s)
            except CLIENT_ERRORS as error:
                failure = classify(error, location, timeout_s=deadline_s)
                slot.outcome = failure.outcome
                raise failure.error from None  # the client's own text may hold signatures
            slot.outcome = "answered"
            return result

    def call(self, location: str, start: Callable[[], Awaitable[T]]) -> T:
        """Make a request, again if need be.

        Raises:
            PenstockError: the last try's error.
        """
        attempt = 1
        while True:
            try:
                return self.once(location, start)
            except PenstockError as error:
                self.wait_or_raise(error, attempt)
            attempt += 1

    def wait_or_raise(self, error: PenstockError, attempt: int) -> None:
        """Wait until the next try is due, or raise the error when there is none."""
        decision = should_retry(error, attempt, policy=self.policy)
        if not decision.retry:
            raise error if attempt == 1 else type(error)(f"{error}; gave up after {attempt} tries") from None
        self.sleep(decision.delay_s)
