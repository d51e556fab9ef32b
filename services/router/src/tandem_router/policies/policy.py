"""The interface of all policies, and what the simple ones share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from tandem_router.eligible import Eligible, eligible_workers
from tandem_router.query import Candidate, Decision, Limits, Query, rotated
from tandem_router.view import ClusterView, WorkerRole, WorkerView


class Policy(Protocol):
    """Chooses workers for a request. Pure: the same query and view give the same decision."""

    @property
    def name(self) -> str:
        """As in configuration, metrics and explanations."""
        ...

    def choose(self, query: Query, view: ClusterView, limits: Limits) -> Decision:
        """The decision; raises NotFound, InvalidRequest or Unavailable as `eligible_workers` does."""
        ...


# Gives a worker's place in the order, smallest first; True for the prefill side.
Rank = Callable[[WorkerView, bool], float]


def choose_apart(
    name: str, unit: str, query: Query, view: ClusterView, limits: Limits, rank: Rank
) -> Decision:
    """Choose each side on its own: the first decode worker, then the first prefill worker that can hand over to it.

    Workers of role `both` prefill their own requests; decode workers do so when nobody can prefill for them.
    """
    eligible = eligible_workers(query, view)
    partners = rotated(prefill_only(eligible), query.tie_break)
    candidates = []
    for decode in rotated(eligible.decode, query.tie_break):
        prefill = _partner(decode, partners, rank)
        terms = {"decode": rank(decode, False)}
        if prefill is not None:
            terms["prefill"] = rank(prefill, True)
        computing = prefill or decode
        candidates.append(
            Candidate(
                decode=decode,
                prefill=prefill,
                decode_cached_blocks=query.cached_at(decode),
                prefill_cached_blocks=query.cached_at(computing),
                terms=terms,
                cost=sum(terms.values()),
            )
        )
    # The decode side decides first: its rank outweighs whatever the prefill side costs.
    candidates.sort(key=lambda candidate: (candidate.terms["decode"], candidate.cost))
    return Decision(
        policy=name,
        unit=unit,
        candidates=tuple(candidates[: limits.max_listed]),
        excluded=eligible.excluded,
        num_candidates=len(candidates),
        predicted_ttft_ms=0.0,
    )


def prefill_only(eligible: Eligible) -> tuple[WorkerView, ...]:
    """The workers that do nothing but prefill for others."""
    return tuple(worker for worker in eligible.prefill if worker.facts.role is WorkerRole.PREFILL)


def _partner(decode: WorkerView, prefill: Sequence[WorkerView], rank: Rank) -> WorkerView | None:
    if decode.facts.role is WorkerRole.BOTH:
        return None
    formats = decode.facts.formats
    partners = [worker for worker in prefill if not formats.keys().isdisjoint(worker.facts.formats)]
    return min(partners, key=lambda worker: rank(worker, True), default=None)
