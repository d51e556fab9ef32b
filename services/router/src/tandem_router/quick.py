"""The search of `choose`, quick enough to be run for every request: same candidates, same order, on rows of factors.

`choose.weigh` stays the reference that this is tested against, and does what this leaves to it: explanations, block
counts, pools whose workers differ in block size, format or status, and requests that not every worker can take.

One pass over the rows gives the price of each side on each worker, a multiplication or two each. Only the cheapest few
are paired, and a pair is priced only if the least that it can cost is below the best found.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tandem_router.cost import HANDOFF_MS, decode_terms, neighbours_of, ship_ms
from tandem_router.pricing import MillisecondPricing
from tandem_router.query import Query
from tandem_router.table import DecodeRow, PoolTable, PrefillRow
from tandem_router.topology import link_between
from tandem_router.view import WorkerView

# Above, a heap of the few that are wanted is quicker.
_SORTED_AT_ONCE = 128


class Found(NamedTuple):
    """The cheapest candidate, and how many were priced; `prefill` is None for local prefill."""

    prefill: WorkerView | None
    decode: WorkerView
    num_candidates: int


class _Work(NamedTuple):
    """What a prompt is for workers that take as many tokens per step and hold as many of its blocks."""

    num_uncached: int
    num_steps: int
    context_products: int  # Σ over steps of tokens · context


def find(query: Query, table: PoolTable, pricing: MillisecondPricing, max_per_side: int) -> Found:
    """As `choose.weigh` with ROUTE_LIMITS. Every worker of the table must be able to take the request."""
    works = _Works(query, table.block_size)
    decode_costs = _decode_prices(query, table, pricing)
    prefill_costs, longest, most_steps = works.prices(table.prefill_rows)
    order = _rotation(len(decode_costs), query.tie_break // max(1, len(prefill_costs)))
    first = min(order, key=decode_costs.__getitem__)
    best = decode_costs[first] + works.price(table.local_rows[first])
    found: tuple[int | None, int] = (None, first)
    num_candidates = 1

    if prefill_costs:
        near = _cheapest(max_per_side, _rotation(len(prefill_costs), query.tie_break), prefill_costs)
        shipping = _Shipping(query, works, table)
        least = prefill_costs[near[0]]
        floors = _floors(query, table, decode_costs, longest, most_steps)
        nearest: dict[int, int] = {}  # cheapest position by the place's own tuple
        for d in _cheapest(max_per_side, order, floors):
            floor = floors[d]
            if floor + least >= best:
                break
            decode = table.decode[d]
            num_bytes = shipping.num_bytes(d)
            partners = near
            if len(prefill_costs) > max_per_side:
                partners = near.copy()
                for at in table.near(decode):
                    p = nearest.get(id(at), -1)
                    if p < 0:
                        p = nearest[id(at)] = min(at, key=prefill_costs.__getitem__)
                    if p not in partners:
                        partners.append(p)
            for p in partners:
                if floor + prefill_costs[p] >= best or table.prefill[p] is decode:
                    continue
                cost = prefill_costs[p] + decode_costs[d] + shipping.price(p, decode, num_bytes)
                num_candidates += 1
                if cost < best:
                    best, found = cost, (p, d)

    get, rows = query.cached_blocks.get, table.local_rows
    for d in order:
        row = rows[d]
        # Without steps and context: what most are too dear for already.
        num_uncached = query.num_tokens - get(row.worker_id, 0) * table.block_size
        if decode_costs[d] + row.queue + num_uncached * row.token_factor < best and d != first:
            num_candidates += 1
            cost = decode_costs[d] + works.price(row)
            if cost < best:
                best, found = cost, (None, d)
    p_found, d_found = found
    return Found(
        table.prefill[p_found] if p_found is not None else None, table.decode[d_found], num_candidates
    )


class _Works:
    """The prompt's `_Work` by tokens per step and cached blocks: workers are many, different pairs of these few."""

    def __init__(self, query: Query, block_size: int) -> None:
        self._num_tokens = query.num_tokens
        self._block_size = block_size
        self._max_cached = (query.num_tokens - 1) // block_size
        self.cached: Mapping[str, int] = query.cached_blocks
        self._known: dict[tuple[int, int], _Work] = {}

    def of(self, row: PrefillRow) -> _Work:
        """The prompt on this worker."""
        return self._work(row.step_tokens, self.cached.get(row.worker_id, 0))

    def price(self, row: PrefillRow) -> float:
        """On one worker."""
        work = self.of(row)
        return (
            row.queue
            + work.num_steps * row.step_factor
            + work.num_uncached * row.token_factor
            + work.context_products * row.context_factor
        )

    def prices(self, rows: Sequence[PrefillRow]) -> tuple[list[float], float, int]:
        """Price on each worker; the longest time that any computes, and the most steps that any takes."""
        costs = []
        longest, most_steps = 0.0, 1
        get, known = self.cached.get, self._known
        for worker_id, queue, step_tokens, step_factor, token_factor, context_factor in rows:
            key = (step_tokens, get(worker_id, 0))
            work = known.get(key)
            num_uncached, num_steps, products = work if work is not None else self._work(*key)
            own = num_steps * step_factor + num_uncached * token_factor + products * context_factor
            costs.append(queue + own)
            if own > longest:
                longest = own
            if num_steps > most_steps:
                most_steps = num_steps
        return costs, longest, most_steps

    def _work(self, step_tokens: int, num_cached_blocks: int) -> _Work:
        key = (step_tokens, num_cached_blocks)
        work = self._known.get(key)
        if work is None:
            num_cached = min(num_cached_blocks, self._max_cached) * self._block_size
            num_uncached = self._num_tokens - num_cached
            num_full, rest = divmod(num_uncached, step_tokens)
            full_tokens = num_full * step_tokens
            products = (
                full_tokens * num_cached
                + step_tokens * step_tokens * (num_full * (num_full - 1) // 2)
                + rest * (num_cached + full_tokens)
            )
            work = self._known[key] = _Work(num_uncached, num_full + (rest > 0), products)
        return work


def _decode_prices(query: Query, table: PoolTable, pricing: MillisecondPricing) -> list[float]:
    num_tokens = query.num_tokens
    num_new = min(query.max_tokens, pricing.expected_new_tokens)
    length = num_tokens + num_new // 2
    rows: list[DecodeRow] = table.decode_rows
    costs = [num_new * (base + length * factor) for _, base, factor, _, _, _ in rows]
    for d, row in enumerate(rows):
        if row.room_tokens < num_tokens:
            worker = table.decode[d]
            speed = worker.decode_speed
            assert speed is not None, "a table has no workers without speeds"
            costs[d] = sum(decode_terms(worker.facts, worker.load, speed, num_tokens, num_new))
    return costs


def _floors(
    query: Query, table: PoolTable, decode_costs: Sequence[float], longest: float, most_steps: int
) -> list[float]:
    """The least that a remote prefill for each decode worker adds to its own price of the prompt."""
    num_blocks = -(-query.num_tokens // table.block_size)
    max_cached = (query.num_tokens - 1) // table.block_size
    hidden = (most_steps - 1) / most_steps
    get = query.cached_blocks.get
    floors = []
    for (worker_id, _, _, _, latency, block_ms), cost in zip(table.decode_rows, decode_costs, strict=True):
        cached = get(worker_id, 0)
        shipping = (num_blocks - (cached if cached < max_cached else max_cached)) * block_ms
        floors.append(
            cost + HANDOFF_MS + latency + shipping - (shipping if shipping < longest else longest) * hidden
        )
    return floors


class _Shipping:
    """As `pricing.ship`, with what belongs to one side worked out once; no worker here speaks more than one format."""

    def __init__(self, query: Query, works: _Works, table: PoolTable) -> None:
        self._query = query
        self._works = works
        self._table = table
        self._computing: dict[int, tuple[float, int]] = {}  # milliseconds and steps, by position

    def num_bytes(self, d: int) -> int:
        """What the decode worker lacks."""
        decode = self._table.decode[d]
        num_blocks = decode.facts.blocks_of(self._query.num_tokens) - self._query.cached_at(decode)
        return num_blocks * self._table.block_bytes[d]

    def price(self, p: int, decode: WorkerView, num_bytes: int) -> float:
        """Of handing so many bytes over from the worker at position `p`."""
        computing = self._computing.get(p)
        if computing is None:
            computing = self._computing[p] = self._compute(p)
        return ship_ms(link_between(self._table.prefill[p], decode), num_bytes, *computing)

    def _compute(self, p: int) -> tuple[float, int]:
        row, source = self._table.prefill_rows[p], self._table.prefill[p]
        num_steps = self._works.of(row).num_steps
        stepping = num_steps * row.step_factor
        # Less the stall, which is a cost to others.
        alone = self._works.price(row) - row.queue - stepping
        return stepping + alone / (1 + neighbours_of(source.facts, source.load)), num_steps


def _cheapest(count: int, order: list[int], costs: Sequence[float]) -> list[int]:
    """The first of `order` by cost; equals stay in order."""
    if len(order) <= _SORTED_AT_ONCE:
        return sorted(order, key=costs.__getitem__)[:count]
    return heapq.nsmallest(count, order, key=costs.__getitem__)


def _rotation(length: int, by: int) -> list[int]:
    """Positions as `rotated` has them."""
    start = by % length if length else 0
    return [*range(start, length), *range(start)]
