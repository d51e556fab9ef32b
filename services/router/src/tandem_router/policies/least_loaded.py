"""The worker with the least to do, whatever it holds in its cache."""

from __future__ import annotations

from tandem_router.policies.policy import choose_apart
from tandem_router.query import Decision, Limits, Query
from tandem_router.view import ClusterView, WorkerView


class LeastLoaded:
    """The decode worker with the fewest sequences, the prefill worker with the fewest queued tokens."""

    name = "least_loaded"

    def choose(self, query: Query, view: ClusterView, limits: Limits) -> Decision:
        """As `Policy.choose`; equals take turns by the request's tie break."""
        return choose_apart(self.name, "load", query, view, limits, load_of)


def load_of(worker: WorkerView, prefill: bool) -> float:
    """Blocks of prompt to compute, and on the decode side sequences too."""
    queued = worker.load.queued_prefill_tokens / worker.facts.block_size
    return queued if prefill else worker.load.num_sequences + queued
