"""What one point of a measurement showed."""

from __future__ import annotations

import msgspec

from tandem_load.failures import FailureCount
from tandem_load.histogram import LogHistogram

TARGETS = ("ttft", "tpot", "itl", "e2e")


class TokenCount(msgspec.Struct, kw_only=True):
    """Tokens of some prompts or answers."""

    count: int = 0
    total: int = 0
    least: int | None = None
    most: int | None = None

    @property
    def mean(self) -> float | None:
        """Mean, when there was one."""
        return self.total / self.count if self.count else None

    def add(self, num_tokens: int) -> None:
        """Count one prompt or answer."""
        self.count += 1
        self.total += num_tokens
        self.least = num_tokens if self.least is None else min(self.least, num_tokens)
        self.most = num_tokens if self.most is None else max(self.most, num_tokens)


class Slice(msgspec.Struct, kw_only=True):
    """A stretch of time."""

    num_sent: int = 0
    num_failed: int = 0
    num_text_events: int = 0
    most_in_flight: int = 0
    num_first_tokens: int = 0
    ttft_sum_s: float = 0.0


class Measured(msgspec.Struct, kw_only=True):
    """Counts and latencies in seconds, in memory that does not grow with the number of requests.

    sent = done + failed + unfinished; only an interrupted measurement has unfinished requests. An event is one with
    text. Latencies are of requests that are done, lag is of all.
    """

    window_s: float = 0.0  # in which the measured requests were to be sent
    was_interrupted: bool = False
    num_sent: int = 0
    num_done: int = 0
    num_unfinished: int = 0
    num_good: int = 0  # done, and all targets met
    missed: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(TARGETS, 0))
    failures: dict[str, FailureCount] = msgspec.field(default_factory=dict)
    ttft: LogHistogram = msgspec.field(default_factory=LogHistogram)
    itl: LogHistogram = msgspec.field(default_factory=LogHistogram)
    tpot: LogHistogram = msgspec.field(default_factory=LogHistogram)
    e2e: LogHistogram = msgspec.field(default_factory=LogHistogram)
    lag: LogHistogram = msgspec.field(default_factory=LogHistogram)  # sent after it was to be sent
    prompt_tokens: TokenCount = msgspec.field(default_factory=TokenCount)
    answer_tokens: TokenCount = msgspec.field(default_factory=TokenCount)
    num_cached_tokens: int = 0
    num_answer_events: int = 0  # of the answers in answer_tokens
    num_without_usage: int = 0  # answers whose tokens are events
    num_window_events: int = 0  # read within the window, of any request
    slice_s: float = 1.0
    slices: list[Slice] = msgspec.field(default_factory=list)
    cpu_s: float = 0.0  # of the generator, from the window's begin to the last answer's end
    num_cpu_events: int = 0  # read in that time
    num_connections: int = 0

    @property
    def num_failed(self) -> int:
        """Requests that were not answered in full."""
        return sum(failure.count for failure in self.failures.values())

    @property
    def tokens_per_event(self) -> float:
        """How many tokens an event stands for."""
        return self.answer_tokens.total / self.num_answer_events if self.num_answer_events else 1.0
