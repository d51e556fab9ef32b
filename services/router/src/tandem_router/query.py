"""What a policy is asked, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tandem_common.generation import RequestClass

from tandem_router.view import WorkerView


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One request, as far as routing needs to know it.

    `turn` numbers this router's decisions for the model and `tie_break` is drawn from the request id: all that looks
    like chance comes from these two, so a policy asked again answers the same.
    """

    request_id: str
    model: str
    num_tokens: int  # prompt, and tokens generated before a resumption
    max_tokens: int  # still to be generated, at most
    cached_blocks: Mapping[str, int] = field(
        default_factory=dict
    )  # leading blocks that a worker holds, by id
    demand: float = 0.0  # requests of the last second that shared the most of these that any worker holds
    excluded_worker_ids: frozenset[str] = frozenset()
    pinned_worker_ids: frozenset[str] = frozenset()  # not empty: these only
    required_labels: Mapping[str, str] = field(default_factory=dict)
    max_price: float = math.inf  # of a million tokens
    preferred_worker_ids: frozenset[str] = frozenset()  # of the request's session
    request_class: RequestClass = RequestClass.INTERACTIVE
    tenant: str = ""
    ttft_deadline_ms: int = 0  # 0: the class's default
    tie_break: int = 0
    turn: int = 0
    now_ms: float = 0.0  # on the clock that views tell of beats by

    @property
    def is_restricted(self) -> bool:
        """Whether the request itself leaves workers out."""
        return bool(
            self.excluded_worker_ids
            or self.pinned_worker_ids
            or self.required_labels
            or self.max_price < math.inf
        )

    def owed_share(self, num_uncached: int, block_size: int) -> float:
        """The part of computing so many tokens that is this request's own debt to others, from 0 to 1.

        What other workers hold already is computed again for all that ask for it, and each owes its part.
        """
        if not self.demand or not self.cached_blocks:
            return 1.0
        most = min(max(self.cached_blocks.values()), (self.num_tokens - 1) // block_size)
        fewest = self.num_tokens - most * block_size
        return (fewest + (num_uncached - fewest) / (1 + self.demand)) / num_uncached

    def cached_at(self, worker: WorkerView) -> int:
        """Leading blocks that need not be computed on this worker: never the last token's."""
        cached = self.cached_blocks.get(worker.facts.worker_id, 0)
        return min(cached, (self.num_tokens - 1) // worker.facts.block_size) if cached else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much of a search is done and shown."""

    max_per_side: int  # workers of each role that are paired: the square of it bounds the pairs
    max_listed: int  # candidates in the decision
    prune: bool  # leave out pairs that cannot be the cheapest


ROUTE_LIMITS = Limits(max_per_side=8, max_listed=1, prune=True)
EXPLAIN_LIMITS = Limits(max_per_side=64, max_listed=256, prune=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """Workers that could take the request; the cost is the sum of the terms."""

    decode: WorkerView
    prefill: WorkerView | None  # None: the decode worker computes the prompt itself
    decode_cached_blocks: int
    prefill_cached_blocks: int  # of the worker that computes the prompt
    terms: Mapping[str, float]
    cost: float

    @property
    def computing(self) -> WorkerView:
        """The worker that computes the prompt."""
        return self.prefill or self.decode

    @property
    def predicted_cached_tokens(self) -> int:
        """Prompt tokens that will be found in the cache of the worker that computes the prompt."""
        return self.prefill_cached_blocks * self.computing.facts.block_size


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What a policy chose, and out of what."""

    policy: str
    unit: str  # of the terms and costs: "ms", "blocks", ...
    candidates: tuple[Candidate, ...]  # the chosen one first, then cheapest first
    excluded: Mapping[str, str]  # reasons by worker id
    num_candidates: int  # weighed, which may be more than are listed
    predicted_ttft_ms: float  # of the chosen one; 0 while speeds are not known
    is_blind: bool = False  # milliseconds were wanted, and no worker has measured any yet

    @property
    def chosen(self) -> Candidate:
        """The workers that the request goes to."""
        return self.candidates[0]


def rotated(workers: tuple[WorkerView, ...], by: int) -> tuple[WorkerView, ...]:
    """The same workers from another start: sorts and minima keep the order of equals, so equals take turns."""
    start = by % len(workers) if workers else 0
    return workers[start:] + workers[:start]
