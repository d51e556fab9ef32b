"""Percentiles: of a few values exactly, of any number of them in bounded memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence


class LogHistogram:
    """Counts of positive values in buckets one hundredth wide: percentiles are right to 0.5 %, whatever the number."""

    _STEP = math.log(1.01)

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, value: float, count: int = 1) -> None:
        """Count a value; those that are not positive count as a nanosecond."""
        self._counts[math.floor(math.log(max(value, 1e-9)) / self._STEP)] += count

    @property
    def count(self) -> int:
        """Values counted."""
        return self._counts.total()

    def percentile(self, share: float) -> float | None:
        """The value that `share` of them do not exceed; None when there are none."""
        left = share * self.count
        for bucket in sorted(self._counts):
            left -= self._counts[bucket]
            if left <= 1e-9:
                return math.exp((bucket + 0.5) * self._STEP)
        return None

    def merged(self, other: LogHistogram) -> LogHistogram:
        """Both together."""
        both = LogHistogram()
        both._counts = self._counts + other._counts
        return both


def percentile(values: Sequence[float] | Iterable[float], share: float) -> float | None:
    """The smallest value that `share` of them do not exceed; None when there are none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]
