"""What is tried again, how often and when. Pure: time and randomness are arguments."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from tandem_client.errors import Overloaded, ServerError, TandemError, Unavailable


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Jittered exponential back-off with a bound on attempts; `max_attempts=1` never retries.

    A generation is tried again only before its first response, after UNAVAILABLE, or after RESOURCE_EXHAUSTED
    when the server said when to come back. Idempotent calls are also tried again after RESOURCE_EXHAUSTED
    without advice and after INTERNAL. Advice to wait longer than `max_wait_s` is handed to the caller instead.
    """

    max_attempts: int = 4
    first_backoff_s: float = 0.2
    max_backoff_s: float = 5.0
    max_wait_s: float = 30.0

    def __post_init__(self) -> None:
        """Check every range."""
        if self.max_attempts < 1:
            raise ValueError(f"RetryPolicy.max_attempts must be at least 1, got {self.max_attempts}")
        for name in ("first_backoff_s", "max_backoff_s", "max_wait_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"RetryPolicy.{name} must not be negative, got {getattr(self, name)!r}")

    def permits(self, error: TandemError, *, idempotent: bool) -> bool:
        """Whether this error may be answered with another attempt."""
        if (error.retry_after_s or 0.0) > self.max_wait_s:
            return False
        if isinstance(error, Unavailable):
            return True
        if isinstance(error, Overloaded):
            return idempotent or error.retry_after_s is not None
        return idempotent and isinstance(error, ServerError)

    def backoff_s(self, num_failures: int, randomness: float) -> float:
        """Wait after the n-th failure (from 1), `randomness` in [0, 1): between half of the step and all of it."""
        step: float = min(self.max_backoff_s, self.first_backoff_s * 2.0 ** (num_failures - 1))
        return step * (0.5 + randomness / 2)


class RetryBudget:
    """Keeps retries a small share of a client's calls, so that a struggling server is not buried under them.

    A token bucket as in gRPC's retry throttling (gRFC A6): a failure that could be retried takes a token,
    every success gives a tenth back, and retries happen only while more than half of the bucket is left.
    Shared by all calls of a client; safe to use from several threads.
    """

    def __init__(self, capacity: float = 20.0, refund: float = 0.1) -> None:
        self._capacity = capacity
        self._refund = refund
        self._tokens = capacity
        self._lock = threading.Lock()

    def spend(self) -> bool:
        """Count a failure; True when it may be retried."""
        with self._lock:
            self._tokens = max(0.0, self._tokens - 1.0)
            return self._tokens > self._capacity / 2

    def refund(self) -> None:
        """Count a success."""
        with self._lock:
            self._tokens = min(self._capacity, self._tokens + self._refund)


class Attempts:
    """The attempts of one call: how many there were, and whether there is another."""

    def __init__(
        self,
        policy: RetryPolicy,
        budget: RetryBudget,
        *,
        idempotent: bool,
        deadline_s: float,
        randomness: Callable[[], float],
    ) -> None:
        """`deadline_s` is on the same clock as `now_s` below; `randomness` returns values in [0, 1)."""
        self._policy = policy
        self._budget = budget
        self._idempotent = idempotent
        self._deadline_s = deadline_s
        self._randomness = randomness
        self._num_failures = 0

    def remaining_s(self, now_s: float) -> float:
        """Seconds that the call may still take; never negative."""
        return max(0.0, self._deadline_s - now_s)

    def wait_s(self, error: TandemError, now_s: float) -> float:
        """Seconds to wait before the next attempt; raises `error` when there is none."""
        self._num_failures += 1
        if not self._policy.permits(error, idempotent=self._idempotent):
            raise error
        has_budget = self._budget.spend()
        wait_s = self._policy.backoff_s(self._num_failures, self._randomness()) + (error.retry_after_s or 0.0)
        if (
            not has_budget
            or self._num_failures >= self._policy.max_attempts
            or wait_s >= self.remaining_s(now_s)
        ):
            raise error
        return wait_s

    def succeeded(self) -> None:
        """The server answered."""
        self._budget.refund()
