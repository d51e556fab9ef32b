"""What the engine's steps cost: written down with each, looked at with each heartbeat.

A worker that wakes for a step every few milliseconds finds code and data outside the caches, so that a sample costs
several times what it does among others.
"""

from __future__ import annotations

from tandem_common.speed import SpeedFitter
from tandem_engine.api import StepCost

from tandem_worker.metrics import COMPUTED_PROMPT_TOKENS, STEP_SECONDS, STEPS

_MAX_GATHERED = 256


class StepBook:
    """Costs of steps, for the metrics and for the speeds that are fitted to them."""

    def __init__(self) -> None:
        self._speeds = SpeedFitter()
        self._gathered: list[StepCost] = []

    def add(self, cost: StepCost) -> None:
        """A step has ended."""
        self._gathered.append(cost)
        if len(self._gathered) >= _MAX_GATHERED:
            self._settle()

    @property
    def speeds(self) -> SpeedFitter:
        """As fitted to all steps until now; brings the metrics up to date too."""
        self._settle()
        return self._speeds

    def _settle(self) -> None:
        gathered, self._gathered = self._gathered, []
        STEPS.inc(len(gathered))
        COMPUTED_PROMPT_TOKENS.inc(sum(cost.num_prefill_tokens for cost in gathered))
        for cost in gathered:
            STEP_SECONDS.observe(cost.duration_ms / 1000)
            self._speeds.observe(
                duration_ms=cost.duration_ms,
                num_prefill_tokens=cost.num_prefill_tokens,
                prefill_token_context=cost.prefill_token_context,
                num_decode_sequences=cost.num_decode_sequences,
                decode_kv_tokens=cost.decode_kv_tokens,
            )
