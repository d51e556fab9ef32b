"""Dynamo's published cost, in blocks, for comparison.

    cost = prefill_load_scale · max(0, raw_prefill − overlap) + decode

raw_prefill are the blocks queued on the worker and those of the prompt, decode the blocks in use once the sequence is
there. Prefill workers are chosen by the whole cost, decode workers that others prefill for by `decode` alone: as Dynamo
does, which gives no credit for overlap there. Source: docs and lib/kv-router of ai-dynamo/dynamo (defaults: credit 1,
scale 1, temperature 0).
"""

from __future__ import annotations

from tandem_router.eligible import eligible_workers
from tandem_router.policies.policy import choose_apart, prefill_only
from tandem_router.query import Decision, Limits, Query
from tandem_router.view import ClusterView, WorkerRole, WorkerView


class Dynamo:
    """Cost in blocks; each side on its own."""

    name = "dynamo"

    def __init__(self, prefill_load_scale: float = 1.0) -> None:
        """How much blocks to compute weigh against blocks to hold."""
        self._scale = prefill_load_scale

    def choose(self, query: Query, view: ClusterView, limits: Limits) -> Decision:
        """As `Policy.choose`; equals take turns by the request's tie break."""
        disaggregated = bool(prefill_only(eligible_workers(query, view)))

        def cost(worker: WorkerView, prefill: bool) -> float:
            if not prefill and disaggregated and worker.facts.role is WorkerRole.DECODE:
                return float(worker.load.num_used_blocks + worker.facts.blocks_of(query.num_tokens))
            return self.cost(worker, query)

        return choose_apart(self.name, "blocks", query, view, limits, cost)

    def cost(self, worker: WorkerView, query: Query) -> float:
        """Of a worker that computes the prompt."""
        overlap = query.cached_blocks.get(worker.facts.worker_id, 0)
        num_tokens = worker.load.queued_prefill_tokens + query.num_tokens
        raw_prefill = num_tokens / worker.facts.block_size
        decode = worker.load.num_used_blocks + worker.facts.blocks_of(query.num_tokens) - overlap
        return self._scale * max(0.0, raw_prefill - overlap) + decode
