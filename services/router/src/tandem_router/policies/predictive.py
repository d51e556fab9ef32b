"""The default policy: the pair of workers that costs the least, in predicted milliseconds."""

from __future__ import annotations

from tandem_router.choose import weigh
from tandem_router.eligible import eligible_workers
from tandem_router.pricing import pricing_for
from tandem_router.query import Decision, Limits, Query
from tandem_router.view import ClusterView

_TIME_TO_FIRST_TOKEN = ("queue", "prefill", "ship", "room")


class Predictive:
    """Weighs pairs and local prefill together; see `cost` and `choose`."""

    name = "predictive"

    def __init__(self, expected_new_tokens: int = 256) -> None:
        """`expected_new_tokens` is how long an answer is taken to be, if the request allows that many."""
        self._expected_new_tokens = expected_new_tokens

    def choose(self, query: Query, view: ClusterView, limits: Limits) -> Decision:
        """As `Policy.choose`."""
        eligible = eligible_workers(query, view)
        pricing = pricing_for(eligible, self._expected_new_tokens)
        weighed = weigh(query, eligible, pricing, limits)
        terms = weighed.candidates[0].terms
        return Decision(
            policy=self.name,
            unit=pricing.unit,
            candidates=weighed.candidates,
            excluded=eligible.excluded,
            num_candidates=weighed.num_candidates,
            predicted_ttft_ms=sum(terms.get(name, 0.0) for name in _TIME_TO_FIRST_TOKEN)
            if pricing.unit == "ms"
            else 0.0,
        )
