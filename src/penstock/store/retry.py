"""Whether to try again, and when: a pure decision."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from penstock.errors import PenstockError

__all__ = ["RetryDecision", "RetryPolicy", "should_retry"]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often one request is tried, and how long to wait between two tries.

    Attributes:
        tries: most tries, the first one counted; at least 1.
        timeout_s: deadline of one try, or of one piece of a body.
        first_delay_s: longest wait after the first failed try; it doubles from try to try …
        longest_delay_s: … up to this.
    """

    tries: int = 6
    timeout_s: float = 30.0
    first_delay_s: float = 0.1
    longest_delay_s: float = 8.0

    @property
    def total_s(self) -> float:
        """The longest that all tries and the waits between them can take."""
        waits = (self.delay_cap_s(attempt) for attempt in range(1, self.tries))
        return self.tries * self.timeout_s + sum(waits)

    def delay_cap_s(self, attempt: int) -> float:
        """The longest wait after the failed try number ``attempt``, counted from 1."""
        doublings = min(attempt - 1, 60)  # beyond any real number of tries, and short of a float's overflow
        return float(min(self.longest_delay_s, self.first_delay_s * 2.0**doublings))


class RetryDecision(NamedTuple):
    """Whether to try again, after how many seconds, and why."""

    retry: bool
    delay_s: float
    reason: str


def should_retry(
    error: PenstockError,
    attempt: int,
    *,
    policy: RetryPolicy,
    uniform: Callable[[], float] = random.random,
) -> RetryDecision:
    """Decide about a failed try; only the error's ``retryable`` and the number of tries count.

    The wait is drawn between half of the try's longest wait and all of it, so that clients which failed together
    don't come back together.

    Args:
        error: what the try ended with.
        attempt: the number of the failed try, from 1.
        policy: how often and how long.
        uniform: gives random numbers in [0, 1).
    """
    if not error.retryable:
        return RetryDecision(False, 0.0, f"{type(error).__name__} doesn't pass by itself")
    if attempt >= policy.tries:
        return RetryDecision(False, 0.0, f"{attempt} of {policy.tries} tries are used up")
    delay_s = policy.delay_cap_s(attempt) * (0.5 + 0.5 * uniform())
    return RetryDecision(True, delay_s, f"try {attempt + 1} of {policy.tries} after {delay_s:.2f} s")
