"""Percentiles: of a few values exactly, of any number of them in bounded memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

_STEP = math.log(1.01)
_LEAST = 1e-9  # what is added to each value, so that zero has a logarithm
_LEAST_BUCKET = math.floor(math.log(_LEAST) / _STEP)


class LogHistogram(msgspec.Struct):
    """Counts of positive values in buckets one hundredth wide: percentiles are right to 0.5 %, whatever the number."""

    counts: dict[int, int] = msgspec.field(default_factory=dict)  # by the value's logarithm
    total: float = 0.0
    most: float = 0.0

    def add(self, value: float, count: int = 1) -> None:
        """Count a value; those that are not positive count as a nanosecond."""
        bucket = math.floor(math.log(value + _LEAST) / _STEP) if value > 0.0 else _LEAST_BUCKET
        self.counts[bucket] = self.counts.get(bucket, 0) + count
        self.total += value * count
        if value > self.most:
            self.most = value

    def add_all(self, values: Sequence[float]) -> None:
        """Count many values, none of them negative."""
        log, floor = math.log, math.floor
        counts = self.counts
        for bucket, count in Counter([floor(log(value + _LEAST) / _STEP) for value in values]).items():
            counts[bucket] = counts.get(bucket, 0) + count
        self.total += sum(values)
        self.most = max(self.most, *values, 0.0)

    @property
    def count(self) -> int:
        """Values counted."""
        return sum(self.counts.values())

    @property
    def mean(self) -> float | None:
        """Their exact mean; None when there are none."""
        return self.total / self.count if self.counts else None

    def percentile(self, share: float) -> float | None:
        """The value that `share` of them do not exceed; None when there are none."""
        left = share * self.count
        for bucket in sorted(self.counts):
            left -= self.counts[bucket]
            if left <= 1e-9:
                return min(math.exp((bucket + 0.5) * _STEP), self.most or math.inf)
        return None

    def merged(self, other: LogHistogram) -> LogHistogram:
        """Both together."""
        counts = dict(self.counts)
        for bucket, count in other.counts.items():
            counts[bucket] = counts.get(bucket, 0) + count
        return LogHistogram(counts, self.total + other.total, max(self.most, other.most))


def percentile(values: Sequence[float] | Iterable[float], share: float) -> float | None:
    """The smallest value that `share` of them do not exceed; None when there are none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]
