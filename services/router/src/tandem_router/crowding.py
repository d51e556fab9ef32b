"""How much a millisecond of work matters to the prompts that come after it: from the traffic of the last seconds."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection

# Utilisation is not believed beyond this: what an overloaded worker costs those to come has no bound in theory.
_MAX_UTILISATION = 0.9
# A worker that got less than this part of the mean is idle; so many prompts of each are counted.
_IDLE_PART = 0.25
_MAX_COUNTED = 64


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
        self._last: dict[str, deque[float]] = {}  # when the latest prompts came, by worker
        self._num_timed = 0.0  # of those, with a known duration
        self._work_ms = 0.0

    def add(self, now_s: float, worker_id: str, work_ms: float | None = None) -> None:
        """A prompt was routed to a worker; `work_ms` is what computing it takes, if that is known."""
        self._fade(now_s)
        self._last.setdefault(worker_id, deque(maxlen=_MAX_COUNTED)).append(now_s)
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

    def idle(self, now_s: float, worker_ids: Collection[str]) -> frozenset[str]:
        """Those of these workers that got next to nothing of late, while there was something; others are forgotten.

        Nobody is expected to come after a prompt there: so a hot prefix can leave a worker that does not keep up for
        one that has nothing to do, however much computing it once more would take from the mean worker.
        """
        self._last = {name: times for name, times in self._last.items() if name in worker_ids}
        since_s = now_s - self._memory_s
        counts = {name: sum(time_s > since_s for time_s in self._last.get(name, ())) for name in worker_ids}
        enough = _IDLE_PART * sum(counts.values()) / max(1, len(counts))
        return frozenset(name for name, count in counts.items() if count < enough)

    def _fade(self, now_s: float) -> None:
        if self._began_s is None:
            self._began_s = self._seen_s = now_s
        keep = math.exp(-max(0.0, now_s - self._seen_s) / self._memory_s)
        self._seen_s = now_s
        self._num_prompts *= keep
        self._num_timed *= keep
        self._work_ms *= keep
