"""What is measured while a simulation runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from tandem_load.histogram import LogHistogram


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
    observed_ttft_s: float = 0.0  # from the router's answer, as the prediction is
    routed_after_s: float = 0.0  # that it waited in the router
    done: bool = False
    refusal: str = ""
    refused_after_s: float = 0.0
    retry_after_s: float = 0.0  # what a refusal says
    drained_after_s: float | None = None  # when those before it had really been started
    tenant: str = ""
    is_batch: bool = False

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
