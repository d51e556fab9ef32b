"""What is measured while a simulation runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """One request as its client saw it; times in seconds from the start."""

    index: int
    label: str
    num_prompt_tokens: int
    num_output_tokens: int
    sent_s: float
    first_token_s: float | None = None
    last_token_s: float | None = None
    num_tokens: int = 0
    num_cached_tokens: int = 0  # of the prompt, not computed
    num_attempts: int = 0
    local_prefill: bool = False
    predicted_ttft_s: float = 0.0
    done: bool = False
    refusal: str = ""

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token."""
        return None if self.first_token_s is None else self.first_token_s - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """Mean gap between tokens; None when it is not done, 0 for a single token."""
        if not self.done or self.first_token_s is None or self.last_token_s is None:
            return None
        return (self.last_token_s - self.first_token_s) / max(1, self.num_tokens - 1)


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


@dataclass(slots=True, kw_only=True)
class Sample:
    """The cluster at one moment."""

    time_s: float
    utilisation: dict[str, float]  # by role, since the last sample
    num_running: int
    num_waiting: int


@dataclass(slots=True, kw_only=True)
class Advice:
    """What the planner would have done."""

    time_s: float
    desired: str
    reason: str


@dataclass(slots=True, kw_only=True)
class Measurement:
    """Everything that one simulation made known."""

    records: list[RequestRecord]
    gaps: dict[str, LogHistogram] = field(default_factory=dict)  # between tokens, by label, in seconds
    samples: list[Sample] = field(default_factory=list)
    advice: list[Advice] = field(default_factory=list)
    num_handoffs: int = 0
    handoff_bytes: float = 0.0
    num_preemptions: int = 0
    end_s: float = 0.0
    num_steps: int = 0
    busy_s: dict[str, float] = field(default_factory=dict)  # by worker

    def all_gaps(self) -> LogHistogram:
        """Gaps of all requests."""
        total = LogHistogram()
        for _, gaps in sorted(self.gaps.items()):
            total = total.merged(gaps)
        return total


def percentile(values: Sequence[float] | Iterable[float], share: float) -> float | None:
    """The smallest value that `share` of them do not exceed; None when there are none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]
