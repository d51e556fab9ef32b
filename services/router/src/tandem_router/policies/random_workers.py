"""Workers by chance, the same chance in every run with the same seed."""

from __future__ import annotations

from hashlib import blake2b

from tandem_router.policies.policy import choose_apart
from tandem_router.query import Decision, Limits, Query
from tandem_router.view import ClusterView, WorkerView


class RandomWorkers:
    """Every eligible worker of a side is as likely as the others."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def choose(self, query: Query, view: ClusterView, limits: Limits) -> Decision:
        """As `Policy.choose`; the cost is a draw from [0, 1) that depends on seed, turn, request and worker."""

        def draw(worker: WorkerView, prefill: bool) -> float:
            text = f"{self._seed} {query.turn} {query.tie_break} {prefill} {worker.facts.worker_id}"
            return int.from_bytes(blake2b(text.encode(), digest_size=6).digest()) / 2**48

        return choose_apart(self.name, "draw", query, view, limits, draw)
