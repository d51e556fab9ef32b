"""How much a millisecond of work matters to the prompts that come after it: from the traffic of the last seconds."""

from __future__ import annotations

import math

# Utilisation is not believed beyond this: what an overloaded worker costs those to come has no bound in theory.
_MAX_UTILISATION = 0.9


class PromptTraffic:
    """Prompts of one model that were routed lately, and the work that they were. Time is an argument.

    `crowding_per_ms` is λ/(1 - ρ) of a mean worker (see `cost.followers_ms`).
    """

    def __init__(self, *, memory_s: float = 10.0) -> None:
        """What is older than `memory_s` fades."""
        self._memory_s = memory_s
        self._began_s: float | None = None
        self._seen_s = 0.0
        self._num_prompts = 0.0
        self._num_timed = 0.0  # of those, with a known duration
        self._work_ms = 0.0

    def add(self, now_s: float, work_ms: float | None = None) -> None:
        """A prompt was routed; `work_ms` is what computing it takes, if that is known."""
        self._fade(now_s)
        self._num_prompts += 1
        if work_ms is not None and math.isfinite(work_ms):
            self._num_timed += 1
            self._work_ms += work_ms

    def crowding_per_ms(self, now_s: float, num_workers: int) -> float:
        """For prompts spread over so many workers."""
        self._fade(now_s)
        if self._began_s is None or not num_workers:
            return 0.0
        # The memory is not full yet while it is younger than what it remembers.
        age_s = self._memory_s * -math.expm1(-max(now_s - self._began_s, 1.0) / self._memory_s)
        rate = self._num_prompts / (1000 * age_s * num_workers)
        mean_work_ms = self._work_ms / self._num_timed if self._num_timed else 0.0
        return rate / (1 - min(_MAX_UTILISATION, rate * mean_work_ms))

    def _fade(self, now_s: float) -> None:
        if self._began_s is None:
            self._began_s = self._seen_s = now_s
        keep = math.exp(-max(0.0, now_s - self._seen_s) / self._memory_s)
        self._seen_s = now_s
        self._num_prompts *= keep
        self._num_timed *= keep
        self._work_ms *= keep
