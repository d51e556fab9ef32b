"""The predictive choice: prefill and decode worker together, by what the request will cost.

    cost(prefill worker p, decode worker d) = A(p) + B(d) + ship(p, d)
    cost(local prefill on d)                = A(d) + B(d)

A and B are worked out once per worker, and only the term that needs both once per pair. Pairs are visited in
order of B(d) + a lower bound of ship(·, d), then of A(p), and a visit ends where the lower bound of all that is left
reaches the cheapest found. At most `max_per_side` workers of each side are paired; beside the cheapest prefill workers
these are, for each decode worker, the cheapest one that shares its host, rack and zone.

With at most `max_per_side` workers on each side the choice is that of a full search. With more, it is at most
ship(p1, d1) dearer, where p1 has the least A and d1 the least B(d) + lower bound: this pair is always visited, and no
pair can cost less than A(p1) + B(d1).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from tandem_router.cost import DecodeTerms, PrefillTerms
from tandem_router.eligible import Eligible
from tandem_router.pricing import Pricing
from tandem_router.query import Candidate, Limits, Query, rotated
from tandem_router.view import FormatKey, WorkerView


class _PrefillSide(NamedTuple):
    worker: WorkerView
    terms: PrefillTerms
    total: float


class _DecodeSide(NamedTuple):
    worker: WorkerView
    terms: DecodeTerms
    total: float


class _Weighed(NamedTuple):
    cost: float
    ship: float
    prefill: _PrefillSide  # of the decode worker itself for local prefill
    decode: _DecodeSide


class Weighed(NamedTuple):
    """The cheapest candidates, cheapest first, and how many were weighed."""

    candidates: tuple[Candidate, ...]
    num_candidates: int


def weigh(query: Query, eligible: Eligible, pricing: Pricing, limits: Limits) -> Weighed:
    """Price local prefill on every decode worker, and the pairs that may be cheaper."""
    prefill_sides = [
        _PrefillSide(worker, terms, terms.queue + terms.prefill + terms.stall)
        for worker in rotated(eligible.prefill, query.tie_break)
        for terms in (pricing.prefill_side(worker, query),)
    ]
    # A worker of role `both` is on both sides.
    priced = {side.worker.facts.worker_id: side for side in prefill_sides}
    decode_sides, weighed = [], []
    for worker in rotated(eligible.decode, query.tie_break):
        terms = pricing.decode_side(worker, query)
        decode = _DecodeSide(worker, terms, terms.room + terms.decode + terms.neighbours)
        local = priced.get(worker.facts.worker_id)
        if local is None:
            computing = pricing.prefill_side(worker, query)
            local = _PrefillSide(worker, computing, computing.queue + computing.prefill + computing.stall)
        decode_sides.append(decode)
        weighed.append(_Weighed(local.total + decode.total, 0.0, local, decode))
    search = _PairSearch(query, pricing, limits, weighed)
    done: list[FormatKey] = []
    for key in sorted({key for side in decode_sides for key in side.worker.facts.formats}):
        search.run(
            [side for side in prefill_sides if key in side.worker.facts.formats],
            [side for side in decode_sides if key in side.worker.facts.formats],
            done,
        )
        done.append(key)
    cheapest = heapq.nsmallest(limits.max_listed, weighed, key=_cost)
    return Weighed(tuple(_candidate(item, query) for item in cheapest), len(weighed))


class _PairSearch:
    """Adds pairs to `weighed`, which holds the local candidates already."""

    def __init__(self, query: Query, pricing: Pricing, limits: Limits, weighed: list[_Weighed]) -> None:
        self._query = query
        self._pricing = pricing
        self._limits = limits
        self._weighed = weighed
        self._best = min(weighed, key=_cost).cost

    def run(
        self, prefill_sides: list[_PrefillSide], decode_sides: list[_DecodeSide], done: Sequence[FormatKey]
    ) -> None:
        """Visit the pairs of one handoff format, but for those that also share one of `done`."""
        if not prefill_sides:
            return
        limit, prune = self._limits.max_per_side, self._limits.prune
        prefill_sides.sort(key=_total)
        least = prefill_sides[0].total
        nearest = _Nearest(prefill_sides) if len(prefill_sides) > limit else None
        # What hides shipping best: no worker computes longer, or in more steps.
        longest = prefill_sides[0].terms._replace(
            prefill=max(side.terms.prefill for side in prefill_sides),
            num_steps=max(side.terms.num_steps for side in prefill_sides),
        )
        floors = [
            (side.total + self._pricing.least_ship(longest, side.worker, self._query), side)
            for side in decode_sides
        ]
        floors.sort(key=_floor)
        for floor, decode in floors[:limit]:
            if prune and floor + least >= self._best:
                return
            for prefill in prefill_sides[:limit]:
                if prune and floor + prefill.total >= self._best:
                    break
                self._visit(prefill, decode, done)
            if nearest is not None:
                for prefill in nearest.to(decode.worker, skip=limit):
                    if floor + prefill.total < self._best:
                        self._visit(prefill, decode, done)

    def _visit(self, prefill: _PrefillSide, decode: _DecodeSide, done: Sequence[FormatKey]) -> None:
        source, destination = prefill.worker.facts, decode.worker.facts
        if source.worker_id == destination.worker_id:
            return
        if any(key in source.formats and key in destination.formats for key in done):
            return
        ship = self._pricing.ship(prefill.worker, prefill.terms, decode.worker, self._query)
        cost = prefill.total + decode.total + ship
        self._best = min(self._best, cost)
        self._weighed.append(_Weighed(cost, ship, prefill, decode))


class _Nearest:
    """The cheapest prefill worker of every host, rack and zone."""

    def __init__(self, prefill_sides: Sequence[_PrefillSide]) -> None:
        """`prefill_sides` are in order of cost."""
        self._by_label: dict[tuple[str, str], tuple[int, _PrefillSide]] = {}
        for position, side in enumerate(prefill_sides):
            for label in _labels(side.worker):
                self._by_label.setdefault(label, (position, side))

    def to(self, worker: WorkerView, skip: int = 0) -> list[_PrefillSide]:
        """Those that share a place with this worker, except the `skip` cheapest of all."""
        found = (self._by_label.get(label) for label in _labels(worker))
        return list({position: side for position, side in filter(None, found) if position >= skip}.values())


def _labels(worker: WorkerView) -> list[tuple[str, str]]:
    place = worker.facts.place
    named = (("host", place.host), ("rack", place.rack), ("zone", place.zone))
    return [label for label in named if label[1]]


def _candidate(item: _Weighed, query: Query) -> Candidate:
    computing, decode = item.prefill, item.decode
    local = computing.worker is decode.worker
    terms = {
        "queue": computing.terms.queue,
        "prefill": computing.terms.prefill,
        **({} if local else {"ship": item.ship}),
        "room": decode.terms.room,
        "decode": decode.terms.decode,
        "stall": computing.terms.stall,
        "neighbours": decode.terms.neighbours,
    }
    return Candidate(
        decode=decode.worker,
        prefill=None if local else computing.worker,
        decode_cached_blocks=query.cached_at(decode.worker),
        prefill_cached_blocks=query.cached_at(computing.worker),
        terms=terms,
        cost=item.cost,
    )


def _cost(item: _Weighed) -> float:
    return item.cost


def _total(side: _PrefillSide) -> float:
    return side.total


def _floor(item: tuple[float, _DecodeSide]) -> float:
    return item[0]
