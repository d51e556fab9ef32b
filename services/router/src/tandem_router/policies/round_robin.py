"""Workers in turn."""

from __future__ import annotations

from tandem_router.eligible import eligible_workers
from tandem_router.policies.policy import choose_apart, prefill_only
from tandem_router.query import Decision, Limits, Query
from tandem_router.view import ClusterView, WorkerView


class RoundRobin:
    """Each request goes to the next worker of each side, in the order of their ids."""

    name = "round_robin"

    def choose(self, query: Query, view: ClusterView, limits: Limits) -> Decision:
        """As `Policy.choose`; the cost is the distance to the worker whose turn it is."""
        eligible = eligible_workers(query, view)
        positions = [
            {worker.facts.worker_id: i for i, worker in enumerate(side)}
            for side in (eligible.decode, prefill_only(eligible))
        ]

        def turns_away(worker: WorkerView, prefill: bool) -> float:
            order = positions[prefill]
            return (order[worker.facts.worker_id] - query.turn) % len(order)

        return choose_apart(self.name, "turns", query, view, limits, turns_away)
