"""The default policy: the pair of workers that costs the least, in predicted milliseconds."""

from __future__ import annotations

from tandem_router.choose import candidate_of, weigh
from tandem_router.eligible import Eligible, eligible_workers
from tandem_router.pricing import MillisecondPricing, Pricing, pricing_for
from tandem_router.query import Candidate, Decision, Limits, Query
from tandem_router.quick import find
from tandem_router.table import PoolTable
from tandem_router.view import ClusterView

_TIME_TO_FIRST_TOKEN = ("queue", "prefill", "ship", "room")


class Predictive:
    """Weighs pairs and local prefill together; see `cost` and `choose`."""

    name = "predictive"

    def __init__(self, expected_new_tokens: int = 256, affinity: float = 0.1) -> None:
        """`expected_new_tokens` is how long an answer is taken to be, if the request allows that many.

        The workers of a request's session may cost `affinity` more than the cheapest, as a part of it.
        """
        self._affinity = affinity
        self._expected_new_tokens = expected_new_tokens
        # By model, the pool that was seen last and its table: a memo, so the answers stay those of a pure function.
        self._tables: dict[str, tuple[object, PoolTable | None]] = {}

    def choose(self, query: Query, view: ClusterView, limits: Limits) -> Decision:
        """As `Policy.choose`."""
        if (
            limits.prune
            and limits.max_listed == 1
            and not (query.is_restricted or query.preferred_worker_ids)
        ):
            table = self._table(query.model, view)
            if table is not None and table.fits(query.num_tokens, query.max_tokens):
                milliseconds = self._pricing_of(query, view)
                found = find(query, table, milliseconds, limits.max_per_side)
                candidate = candidate_of(query, milliseconds, found.prefill, found.decode)
                return self._decision("ms", (candidate,), {}, found.num_candidates)
        eligible = eligible_workers(query, view)
        pricing = pricing_for(eligible, self._pricing_of(query, view))
        weighed = weigh(query, eligible, pricing, limits)
        candidates = self._preferring(query, eligible, pricing, weighed.candidates)
        return self._decision(pricing.unit, candidates, eligible.excluded, weighed.num_candidates)

    def _pricing_of(self, query: Query, view: ClusterView) -> MillisecondPricing:
        return MillisecondPricing(
            expected_new_tokens=self._expected_new_tokens,
            crowding_per_ms=view.crowding_per_ms.get(query.model, 0.0),
        )

    def _preferring(
        self, query: Query, eligible: Eligible, pricing: Pricing, candidates: tuple[Candidate, ...]
    ) -> tuple[Candidate, ...]:
        """With the workers of the request's session first, if they cost hardly more than the cheapest."""
        preferred = query.preferred_worker_ids
        most = candidates[0].cost * (1 + self._affinity)
        for decode in eligible.decode:
            if decode.facts.worker_id not in preferred:
                continue
            partners = [w for w in eligible.prefill if w.facts.worker_id in preferred and w is not decode]
            for prefill in (*partners, None):
                if prefill and prefill.facts.formats.keys().isdisjoint(decode.facts.formats):
                    continue
                candidate = candidate_of(query, pricing, prefill, decode)
                if candidate.cost <= most:
                    rest = [c for c in candidates if (c.prefill, c.decode) != (prefill, decode)]
                    return (candidate, *rest)[: max(1, len(candidates))]
        return candidates

    def _decision(
        self, unit: str, candidates: tuple[Candidate, ...], excluded: dict[str, str], num_candidates: int
    ) -> Decision:
        terms = candidates[0].terms
        return Decision(
            policy=self.name,
            unit=unit,
            candidates=candidates,
            excluded=excluded,
            num_candidates=num_candidates,
            is_blind=unit != "ms",
            predicted_ttft_ms=sum([terms.get(name, 0.0) for name in _TIME_TO_FIRST_TOKEN])
            if unit == "ms"
            else 0.0,
        )

    def prepare(self, view: ClusterView) -> None:
        """Work out now what `choose` would work out with the first request that meets this view."""
        for model in view.pools:
            self._table(model, view)

    def _table(self, model: str, view: ClusterView) -> PoolTable | None:
        pool = view.pools.get(model)
        if not pool:
            return None
        seen, table = self._tables.get(model, (None, None))
        if pool is not seen:
            table = PoolTable.of(pool, table)
            self._tables = {name: known for name, known in self._tables.items() if name in view.pools}
            self._tables[model] = (pool, table)
        return table
