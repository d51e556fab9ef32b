"""Whether a request starts now, waits, or is refused at once. Synchronous; time is an argument.

A request starts when its workers can take it in time: what is ahead of it there is below a bound (late binding: what
waits in the router can still go anywhere, in another order, or be given up). It is refused when its time to first
token would miss its deadline, by the error that predictions had lately: the bound is a quantile, not a mean.
"""

from __future__ import annotations

import enum
import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from zlib import crc32

from tandem_common.generation import RequestClass

from tandem_router.cost import prompt_tokens_per_step
from tandem_router.query import Decision, Query
from tandem_router.view import WorkerRole

_MIN_SAMPLES = 16
# Steps' worth of prompts that a worker may have queued while nobody knows how long a step takes.
_BLIND_STEPS = 8
_MIN_FACTOR, _MAX_FACTOR = 0.1, 100.0
# Shares of a second are nobody's reason to come back later.
_MIN_RETRY_MS = 100
_MAX_RETRY_MS = 600_000
_JITTER = 0.25


class Verdict(enum.Enum):
    """What happens to a request that comes now."""

    START = "start"
    WAIT = "wait"
    REFUSE = "refuse"


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """A verdict and what it rests on; milliseconds."""

    verdict: Verdict
    wait_ms: float
    ttft_bound_ms: float
    deadline_ms: float  # 0: none
    reason: str
    retry_after_ms: int = 0  # of a refusal


@dataclass(frozen=True, kw_only=True, slots=True)
class AdmissionRules:
    """What operators set; milliseconds, 0 for no deadline."""

    max_worker_queue_ms: float = 3000.0
    interactive_deadline_ms: float = 60_000.0
    batch_deadline_ms: float = 0.0
    interactive_ttft_ms: float = 2000.0
    interactive_itl_ms: float = 50.0

    def deadline_ms(self, query: Query) -> float:
        """The request's own, or its class's."""
        if query.ttft_deadline_ms:
            return float(query.ttft_deadline_ms)
        is_batch = query.request_class is RequestClass.BATCH
        return self.batch_deadline_ms if is_batch else self.interactive_deadline_ms

    def can_start(self, query: Query, decision: Decision, *, starved: bool = False) -> bool:
        """Whether the workers of a decision can take the request now.

        Batch work fills what interactive work leaves: only while an interactive request that came right after it would
        still see half of its target for the first token, and every token within its own. Starved batch work is exempt.
        While no worker has measured its speed, each gets as many prompts as fill a few steps, in which it can. Policies
        that predict no milliseconds let nothing wait.
        """
        if decision.unit != "ms":
            facts, load = decision.chosen.computing.facts, decision.chosen.computing.load
            return not decision.is_blind or load.queued_prefill_tokens <= _BLIND_STEPS * facts.max_step_tokens
        chosen = decision.chosen
        ahead_ms = chosen.terms.get("queue", 0.0) + chosen.terms.get("room", 0.0)
        if query.request_class is not RequestClass.BATCH or starved:
            return ahead_ms <= self._most_ahead_ms(decision)
        speed, load = chosen.decode.decode_speed, chosen.decode.load
        step_ms = (
            speed.step_ms(load.num_sequences + 1, load.decode_kv_tokens + query.num_tokens) if speed else 0.0
        )
        if chosen.prefill is None and chosen.decode.facts.role is WorkerRole.DECODE and load.num_sequences:
            # Computing it there would stretch steps of sequences that were sent there to be spared that.
            per_step = prompt_tokens_per_step(chosen.decode.facts, load)
            num_uncached = query.num_tokens - chosen.predicted_cached_tokens
            step_ms += chosen.terms.get("prefill", 0.0) / max(1, -(-num_uncached // per_step))
        filled_ms = ahead_ms + chosen.terms.get("prefill", 0.0)
        # A prompt longer than the share is taken when nothing is ahead of it: it would fit nowhere else either.
        fits = filled_ms <= self.interactive_ttft_ms / 2 or ahead_ms == 0.0
        return fits and step_ms <= self.interactive_itl_ms

    def _most_ahead_ms(self, decision: Decision) -> float:
        """What may be ahead of a request on its workers.

        A long prompt may wait there for as long as it takes itself: it would hold up all that are behind it here, and
        there short ones pass it.
        """
        return max(self.max_worker_queue_ms, decision.chosen.terms.get("prefill", 0.0))

    def judge(
        self,
        query: Query,
        decision: Decision,
        *,
        is_free: bool,
        drain_ms: float,
        error_factor: float,
        typical_error: float = 1.0,
    ) -> Judgement:
        """What happens to a newcomer.

        `is_free`: nobody waits who goes before it; `drain_ms`: until those who do have started. What a refusal says is
        corrected by the `typical_error` of predictions, what refuses by the `error_factor`.
        """
        deadline_ms = self.deadline_ms(query)
        starts = is_free and self.can_start(query, decision)
        ttft_ms = decision.predicted_ttft_ms
        wait_ms = 0.0
        terms = decision.chosen.terms
        ahead_ms = terms.get("queue", 0.0) + terms.get("room", 0.0) if decision.unit == "ms" else 0.0
        if not starts:
            excess_ms = max(0.0, ahead_ms - self._most_ahead_ms(decision))
            wait_ms = drain_ms + excess_ms
            ttft_ms -= excess_ms
        bound_ms = error_factor * (wait_ms + ttft_ms)
        if decision.unit == "ms" and deadline_ms and bound_ms > deadline_ms:
            return Judgement(
                verdict=Verdict.REFUSE,
                wait_ms=wait_ms,
                ttft_bound_ms=bound_ms,
                deadline_ms=deadline_ms,
                reason=f"the first token is expected after {bound_ms:.0f} ms, the deadline is {deadline_ms:.0f} ms",
                # Until all that is there now has been started: when the deadline could be met is sooner, but whoever
                # comes back then only finds those who came meanwhile.
                retry_after_ms=retry_after_ms(query.request_id, typical_error * (drain_ms + ahead_ms)),
            )
        return Judgement(
            verdict=Verdict.START if starts else Verdict.WAIT,
            wait_ms=wait_ms,
            ttft_bound_ms=bound_ms,
            deadline_ms=deadline_ms,
            reason="" if starts else "no worker can start it in time yet, or others go first",
        )


def retry_after_ms(request_id: str, drain_ms: float) -> int:
    """When to come back: the predicted time, up to a quarter later, so that those refused together come apart."""
    jitter = crc32(request_id.encode()) / 2**32 * _JITTER
    return round(min(_MAX_RETRY_MS, max(_MIN_RETRY_MS, drain_ms) * (1 + jitter)))


class PredictionError:
    """How predicted times to first token turned out lately: observed over predicted."""

    def __init__(self, *, quantile: float, window: int = 512) -> None:
        self._quantile = quantile
        self._window = window
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def observe(self, predicted_ms: float, observed_ms: float) -> float | None:
        """One request's, and the ratio; what makes no sense is left out."""
        if not (0 < predicted_ms < math.inf and 0 <= observed_ms < math.inf):
            return None
        ratio = min(_MAX_FACTOR, max(_MIN_FACTOR, observed_ms / predicted_ms))
        self._recent.append(ratio)
        insort(self._sorted, ratio)
        if len(self._recent) > self._window:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        return ratio

    @property
    def factor(self) -> float:
        """What to multiply a prediction by to be right at the quantile; 1 until there is enough to tell."""
        count = len(self._sorted)
        if count < _MIN_SAMPLES:
            return 1.0
        return self._sorted[min(count - 1, int(self._quantile * count))]

    @property
    def typical(self) -> float:
        """The median of observed over predicted; 1 until there is enough to tell."""
        count = len(self._sorted)
        return self._sorted[count // 2] if count >= _MIN_SAMPLES else 1.0

    def check_integrity(self) -> None:
        """Assert that both orders hold the same, and the bound."""
        assert sorted(self._recent) == self._sorted
        assert len(self._recent) <= self._window


class DrainRate:
    """Tokens of work that are started per millisecond while requests wait: what the cluster really takes in."""

    def __init__(self, *, memory_s: float = 5.0) -> None:
        """Older than `memory_s` fades."""
        self._memory_s = memory_s
        self._tokens = 0.0
        self._backlog_s = 0.0
        self._seen_s: float | None = None

    def observe(self, now_s: float, num_started_tokens: int, *, backlog: bool) -> None:
        """So much was started since the last call; `backlog`: requests wait from now on."""
        if self._seen_s is not None:
            passed_s = max(0.0, now_s - self._seen_s)
            keep = math.exp(-passed_s / self._memory_s)
            self._tokens = self._tokens * keep + num_started_tokens
            self._backlog_s = self._backlog_s * keep + passed_s
        self._seen_s = now_s if backlog else None

    def drain_ms(self, num_tokens: int, prior_tokens_per_ms: float) -> float:
        """How long so much work takes to be started; by the prior until something was observed."""
        if num_tokens <= 0:
            return 0.0
        # The prior counts as one second of observation, so that the estimate moves over smoothly.
        tokens = self._tokens + 1000.0 * prior_tokens_per_ms
        seconds = self._backlog_s + 1.0
        return 1000.0 * num_tokens * seconds / max(tokens, 1e-9)
