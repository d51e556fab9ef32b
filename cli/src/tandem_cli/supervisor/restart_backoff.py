"""When to start a crashed program again. Pure; time is an argument."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RestartBackoff:
    """Doubling waits up to a bound; a program that ran for `healthy_s` starts over with the first."""

    first_s: float = 0.5
    max_s: float = 15.0
    healthy_s: float = 30.0

    def next_failures(self, num_failures: int, ran_s: float) -> int:
        """Failures in a row after one more, of a program that ran this long."""
        return 1 if ran_s >= self.healthy_s else num_failures + 1

    def wait_s(self, num_failures: int) -> float:
        """Seconds before the start that follows the n-th failure in a row, from 1."""
        return float(min(self.max_s, self.first_s * 2.0 ** min(num_failures - 1, 30)))
