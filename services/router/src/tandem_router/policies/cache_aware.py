"""The rule of SGLang's gateway: the longest cached prefix while loads are balanced, else the least loaded.

Loads are out of balance when the busiest worker has more than `balance_abs` requests over the idlest and more than
`balance_rel` times as many. In balance, the worker with the longest prefix is taken if it holds more than
`cache_threshold` of the prompt, else the one with the least in its cache. Source: documentation of sgl-model-gateway,
whose defaults these are; it keeps a tree of past requests, we look into the index of what workers really hold.
"""

from __future__ import annotations

from tandem_router.eligible import eligible_workers
from tandem_router.policies.policy import Rank, choose_apart, prefill_only
from tandem_router.query import Decision, Limits, Query
from tandem_router.view import ClusterView, WorkerView


class CacheAware:
    """Each side on its own, by the same rule."""

    name = "cache_aware"

    def __init__(self, cache_threshold: float = 0.3, balance_abs: int = 64, balance_rel: float = 1.5) -> None:
        """As above."""
        self._cache_threshold = cache_threshold
        self._balance_abs = balance_abs
        self._balance_rel = balance_rel

    def choose(self, query: Query, view: ClusterView, limits: Limits) -> Decision:
        """As `Policy.choose`; equals take turns by the request's tie break."""
        eligible = eligible_workers(query, view)
        decode, prefill = self._rank(query, eligible.decode), self._rank(query, prefill_only(eligible))

        def rank(worker: WorkerView, is_prefill: bool) -> float:
            return (prefill if is_prefill else decode)(worker, is_prefill)

        return choose_apart(self.name, "rank", query, view, limits, rank)

    def _rank(self, query: Query, workers: tuple[WorkerView, ...]) -> Rank:
        loads = [worker.load.num_sequences for worker in workers]
        least, most = min(loads, default=0), max(loads, default=0)
        if most - least > self._balance_abs and most > self._balance_rel * least:
            return lambda worker, _: float(worker.load.num_sequences)
        longest = max((query.cached_at(worker) * worker.facts.block_size for worker in workers), default=0)
        if longest > self._cache_threshold * query.num_tokens:
            return lambda worker, _: float(
                query.num_tokens - query.cached_at(worker) * worker.facts.block_size
            )
        return lambda worker, _: float(worker.load.num_cached_blocks)
