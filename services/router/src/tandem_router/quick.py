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

from tandem_common.speed import prompt_token_context

from tandem_router.cost import HANDOFF_MS, decode_terms, followers_ms, length_class, ship_ms
from tandem_router.pricing import MillisecondPricing
from tandem_router.query import Query
from tandem_router.table import PoolTable, PrefillRow
from tandem_router.view import WorkerView

# Above, a heap of the few that are wanted is quicker.
_SORTED_AT_ONCE = 128


class Found(NamedTuple):
    """The cheapest candidate, and how many were priced; `prefill` is None for local prefill."""

    prefill: WorkerView | None
    decode: WorkerView
    num_candidates: int


# What a prompt is for workers that take as many tokens per step and hold as many of its blocks: uncached tokens, steps,
# Σ over steps of tokens · context, and the share of the work that is owed to followers.
_Work = tuple[int, int, int, float]


def find(query: Query, table: PoolTable, pricing: MillisecondPricing, max_per_side: int) -> Found:
    """As `choose.weigh` with ROUTE_LIMITS. Every worker of the table must be able to take the request."""
    works = _Works(query, table.block_size, pricing)
    decode_costs = _decode_prices(query, table, pricing)
    prefill_costs = works.prices(table)
    order = _rotation(len(decode_costs), query.tie_break // max(1, len(prefill_costs)))
    first = min(order, key=decode_costs.__getitem__)
    best = decode_costs[first] + works.price(table.local_rows[first])
    found: tuple[int | None, int] = (None, first)
    num_candidates = 1

    if prefill_costs:
        near = _cheapest(max_per_side, _rotation(len(prefill_costs), query.tie_break), prefill_costs)
        shipping = _Shipping(works, table)
        nearest, least = near[0], prefill_costs[near[0]]
        # The pair of the cheapest of both sides: with something to beat, little of the rest need be priced.
        if table.prefill[nearest] is not table.decode[first]:
            num_candidates += 1
            cost = least + decode_costs[first] + shipping.price(nearest, first)
            if cost < best:
                best, found = cost, (nearest, first)
        # The others could not be in the cheapest pair even if shipping took no longer than a handoff must.
        worth = [d for d in order if decode_costs[d] + HANDOFF_MS + least < best]
        floors = works.floors(table, decode_costs, worth)
        neighbours = _Neighbours(table, prefill_costs, near) if len(prefill_costs) > max_per_side else None
        for d in _cheapest(max_per_side, worth, floors):
            # What the prefill side of a pair may cost at most, for the pair to be the cheapest.
            most = best - floors[d]
            if least >= most:
                break
            decode_cost, decode = decode_costs[d], table.decode[d]
            partners = near[1:] if d == first else near
            # Neighbours that are not near are dearer than all that are.
            if neighbours is not None and prefill_costs[near[-1]] < most:
                partners = partners + neighbours.of(d)
            for p in partners:
                cost = prefill_costs[p]
                if cost < most and table.prefill[p] is not decode:
                    num_candidates += 1
                    cost += decode_cost + shipping.price(p, d)
                    if cost < best:
                        best, found = cost, (p, d)
                        most = best - floors[d]

    for d in works.local_choices(table, decode_costs, order, best):
        if d != first:
            num_candidates += 1
            cost = decode_costs[d] + works.price(table.local_rows[d])
            if cost < best:
                best, found = cost, (None, d)
    p_found, d_found = found
    return Found(
        table.prefill[p_found] if p_found is not None else None, table.decode[d_found], num_candidates
    )


class _Works:
    """The prompt's `_Work` by tokens per step and cached blocks: workers are many, different pairs of these few.

    Lists over all workers are made as if none held a block of the prompt, then mended for those few that do.
    """

    def __init__(self, query: Query, block_size: int, pricing: MillisecondPricing) -> None:
        self._query = query
        self._num_tokens = query.num_tokens
        self._block_size = block_size
        self._max_cached = (query.num_tokens - 1) // block_size
        self._num_blocks = -(-query.num_tokens // block_size)
        self.cached: Mapping[str, int] = query.cached_blocks
        self._crowding = pricing.crowding_per_ms
        self._now_ms = query.now_ms
        self._length = length_class(query.num_tokens)
        self._known: dict[tuple[int, int], _Work] = {}
        self._most_steps = 1
        self._longest = 0.0  # at least as long as any worker computes

    def of(self, row: PrefillRow) -> _Work:
        """The prompt on this worker."""
        worker_id, _, _, _, step_tokens, _, _, _, _ = row
        return self._work(step_tokens, self.cached.get(worker_id, 0))

    def price(self, row: PrefillRow) -> float:
        """On one worker."""
        worker_id, stays, gone_ms, passed, step_tokens, step_factor, token_factor, context_factor, stalled = (
            row
        )
        length, now_ms = self._length, self._now_ms
        queue = stays[length] + max(0.0, gone_ms[length] - now_ms)
        backlog = stays[-1] + max(0.0, gone_ms[-1] - now_ms) if passed[length] else queue
        tokens, steps, products, owed_share = self._work(step_tokens, self.cached.get(worker_id, 0))
        stepping = steps * step_factor
        shared = tokens * token_factor + products * context_factor
        own = stepping + shared / stalled
        followers = followers_ms(backlog, own * owed_share, self._crowding) + passed[length] * own
        return queue + stepping + shared + followers

    def prices(self, table: PoolTable) -> list[float]:
        """On each worker that prefills for others."""
        rows = table.prefill_rows
        if table.step_tokens is None:
            costs = [self.price(row) for row in rows]
        else:
            tokens, steps, products, owed_share = self._work(table.step_tokens, 0)
            crowding, now_ms, length = self._crowding, self._now_ms, self._length
            # As `price` of who stalls nobody and passes nobody, without calls.
            costs = [
                (queue := stays[length] + (gone_ms[length] - now_ms if gone_ms[length] > now_ms else 0.0))
                + (own := steps * step_factor + tokens * token_factor + products * context_factor)
                + crowding * (owed := own * owed_share) * (queue + owed / 2)
                for stays, gone_ms, step_factor, token_factor, context_factor in zip(
                    *table.prefill_columns, strict=True
                )
            ]
            position = table.prefill_position.get
            for worker_id in self.cached:
                if (p := position(worker_id)) is not None:
                    costs[p] = self.price(rows[p])
            for p in table.not_plain:
                costs[p] = self.price(rows[p])
        self._most_steps = max((num_steps for _, num_steps, _, _ in self._known.values()), default=1)
        self._longest = max(costs, default=0.0)
        return costs

    def floors(
        self, table: PoolTable, decode_costs: Sequence[float], worth: Sequence[int]
    ) -> dict[int, float]:
        """The least that a remote prefill for each of these decode workers adds to its own price; after `prices`."""
        hidden = (self._most_steps - 1) / self._most_steps
        longest = self._longest
        floors = {}
        for d in worth:
            # Shipping shows for what computing does not hide of it: all of it but `hidden`, and of what is longer, all.
            _, _, _, latency, block_ms = table.decode_rows[d]
            shipping = self.num_missing(table.decode[d].facts.worker_id) * block_ms
            floors[d] = decode_costs[d] + HANDOFF_MS + latency + shipping - min(shipping, longest) * hidden
        return floors

    def num_missing(self, worker_id: str) -> int:
        """Blocks of the prompt that a worker lacks."""
        cached = self.cached.get(worker_id, 0)
        return self._num_blocks - (min(cached, self._max_cached) if cached else 0)

    def local_choices(
        self, table: PoolTable, decode_costs: Sequence[float], order: Sequence[int], best: float
    ) -> list[int]:
        """Decode workers on which local prefill may cost less than `best`, in this order."""
        owed = self._query.owed_share(self._num_tokens, self._block_size) * self._num_tokens
        followers = followers_ms(0.0, owed * table.least_own_factor, self._crowding)
        if min(decode_costs) + self._num_tokens * table.least_token_factor + followers < best:
            floors = self.local_floors(table, decode_costs)
            return [d for d in order if floors[d] < best]
        # Only who holds a part of the prompt.
        position = table.decode_position.get
        return sorted(d for worker_id in self.cached if (d := position(worker_id)) is not None)

    def local_floors(self, table: PoolTable, decode_costs: Sequence[float]) -> list[float]:
        """At most what local prefill costs: without steps, context and the part of the queue that drains."""
        num_tokens, length, crowding = self._num_tokens, self._length, self._crowding
        owed_share = self._query.owed_share(num_tokens, self._block_size)
        floors = []
        rows = table.local_rows
        for (_, stays, _, _, _, _, token_factor, _, stalled), cost in zip(rows, decode_costs, strict=True):
            queue, shared = stays[length], num_tokens * token_factor
            owed = shared / stalled * owed_share
            floors.append(cost + queue + shared + crowding * owed * (queue + owed / 2))
        for worker_id in self.cached:
            d = table.decode_position.get(worker_id)
            if d is not None:
                _, stays, _, _, _, _, token_factor, _, stalled = rows[d]
                num_uncached, _, _, its_share = self.of(rows[d])
                shared = num_uncached * token_factor
                followers = followers_ms(stays[length], shared / stalled * its_share, crowding)
                floors[d] = decode_costs[d] + stays[length] + shared + followers
        return floors

    def _work(self, step_tokens: int, num_cached_blocks: int) -> _Work:
        key = (step_tokens, num_cached_blocks)
        work = self._known.get(key)
        if work is None:
            num_cached = min(num_cached_blocks, self._max_cached) * self._block_size
            num_uncached = self._num_tokens - num_cached
            products = prompt_token_context(num_uncached, num_cached, step_tokens)
            owed_share = self._query.owed_share(num_uncached, self._block_size)
            work = self._known[key] = (num_uncached, -(-num_uncached // step_tokens), products, owed_share)
        return work


def _decode_prices(query: Query, table: PoolTable, pricing: MillisecondPricing) -> list[float]:
    num_tokens = query.num_tokens
    num_new = min(query.max_tokens, pricing.expected_new_tokens)
    length = num_tokens + num_new // 2
    costs = [num_new * (base + length * factor) for base, factor in zip(*table.decode_columns, strict=True)]
    if table.least_room < num_tokens:
        for d, (_, _, room_tokens, _, _) in enumerate(table.decode_rows):
            if room_tokens < num_tokens:
                worker = table.decode[d]
                speed = worker.decode_speed
                assert speed is not None, "a table has no workers without speeds"
                costs[d] = sum(decode_terms(worker.facts, worker.load, speed, num_tokens, num_new))
    return costs


class _Neighbours:
    """The cheapest prefill worker of a host, rack and zone, beside the cheapest of all."""

    def __init__(self, table: PoolTable, costs: Sequence[float], near: Sequence[int]) -> None:
        self._table = table
        self._costs = costs
        self._near = near
        self._cheapest: dict[int, int] = {}  # position by the place's own tuple

    def of(self, d: int) -> list[int]:
        """Positions of those that share a place with this decode worker."""
        found: list[int] = []
        for at in self._table.near(self._table.decode[d]):
            p = self._cheapest.get(id(at))
            if p is None:
                p = self._cheapest[id(at)] = min(at, key=self._costs.__getitem__)
            if p not in self._near and p not in found:
                found.append(p)
        return found


class _Shipping:
    """As `pricing.ship`, with what belongs to one side worked out once; no worker here speaks more than one format."""

    def __init__(self, works: _Works, table: PoolTable) -> None:
        self._works = works
        self._table = table
        self._computing: dict[int, tuple[float, int]] = {}  # milliseconds and steps, by position

    def price(self, p: int, d: int) -> float:
        """Of handing over what the worker at position `d` lacks from the one at position `p`."""
        table = self._table
        computing = self._computing.get(p)
        if computing is None:
            computing = self._computing[p] = self._compute(p)
        link = table.links_to(d).get(p) or table.link(p, d)
        num_bytes = self._works.num_missing(table.decode[d].facts.worker_id) * table.block_bytes[d]
        return ship_ms(link, num_bytes, *computing)

    def _compute(self, p: int) -> tuple[float, int]:
        row = self._table.prefill_rows[p]
        _, _, _, _, _, step_factor, token_factor, context_factor, stalled = row
        tokens, steps, products, _ = self._works.of(row)
        # Without the stall, which is a cost to others.
        return steps * step_factor + (tokens * token_factor + products * context_factor) / stalled, steps


def _cheapest(count: int, order: list[int], costs: Sequence[float] | Mapping[int, float]) -> list[int]:
    """The first of `order` by cost; equals stay in order."""
    if len(order) <= _SORTED_AT_ONCE:
        return sorted(order, key=costs.__getitem__)[:count]
    return heapq.nsmallest(count, order, key=costs.__getitem__)


def _rotation(length: int, by: int) -> list[int]:
    """Positions as `rotated` has them."""
    start = by % length if length else 0
    return [*range(start, length), *range(start)]
