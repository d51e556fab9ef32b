"""Two workers by chance, and of these the one with less to do.

Nearly as even as looking at all of them, and many routers that know the same do not all choose the same. Source: M.
Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (2001).
"""

from __future__ import annotations

from hashlib import blake2b

from tandem_router.eligible import eligible_workers
from tandem_router.policies.least_loaded import load_of
from tandem_router.policies.policy import choose_apart, prefill_only
from tandem_router.query import Decision, Limits, Query
from tandem_router.view import ClusterView, WorkerView

# Puts those that were not drawn behind all that were.
_NOT_DRAWN = 1e12


class PowerOfTwo:
    """Each side on its own; the same draw in every run with the same seed."""

    name = "power_of_two"

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def choose(self, query: Query, view: ClusterView, limits: Limits) -> Decision:
        """As `Policy.choose`."""
        eligible = eligible_workers(query, view)
        drawn = {
            prefill: self._draw(query, prefill, side)
            for prefill, side in ((False, eligible.decode), (True, prefill_only(eligible)))
        }

        def rank(worker: WorkerView, prefill: bool) -> float:
            missed = 0.0 if worker.facts.worker_id in drawn[prefill] else _NOT_DRAWN
            return missed + load_of(worker, prefill)

        return choose_apart(self.name, "load", query, view, limits, rank)

    def _draw(self, query: Query, prefill: bool, workers: tuple[WorkerView, ...]) -> set[str]:
        if len(workers) <= 2:
            return {worker.facts.worker_id for worker in workers}
        text = f"{self._seed} {query.turn} {query.tie_break} {prefill}"
        number = int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
        rest, first = divmod(number, len(workers))
        second = (first + 1 + rest % (len(workers) - 1)) % len(workers)
        return {workers[first].facts.worker_id, workers[second].facts.worker_id}
