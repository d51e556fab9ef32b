"""The predictive choice: prefill and decode worker together, by what the request will cost.

    cost(prefill worker p, decode worker d) = A(p) + B(d) + ship(p, d)
    cost(local prefill on d)                = A(d) + B(d)

A and B are worked out once per worker, and only the term that needs both once per pair. Pairs are visited in
order of B(d) + a lower bound of ship(·, d), then of A(p), and what cannot cost less than the cheapest found is left
out. At most `max_per_side` workers of each side are paired; beside the cheapest prefill workers these are, for each
decode worker, the cheapest one that shares its host, rack and zone.

With at most `max_per_side` workers on each side the choice is that of a full search. With more, it is at most
ship(p1, d1) dearer, where p1 has the least A and d1 the least B(d) + lower bound: this pair is visited unless a
cheaper candidate was, and no pair can cost less than A(p1) + B(d1).
"""

from __future__ import annotations

import heapq
import math
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
    """Price local prefill on every decode worker and the pairs, as far as they may be the cheapest."""
    prefill_sides = [
        _PrefillSide(worker, terms, terms.total)
        for worker in rotated(eligible.prefill, query.tie_break)
        for terms in (pricing.prefill_side(worker, query),)
    ]
    decode_sides = [
        _DecodeSide(worker, terms, terms.room + terms.decode + terms.neighbours)
        # Divided, so that equal workers meet in all pairs.
        for worker in rotated(eligible.decode, query.tie_break // max(1, len(eligible.prefill)))
        for terms in (pricing.decode_side(worker, query),)
    ]
    decode_sides.sort(key=_total)
    search = _Search(query, pricing, limits, prefill_sides)
    # Something to beat, so that most of the rest need not be priced.
    search.visit_local(decode_sides[0])
    for key in sorted({key for side in decode_sides for key in side.worker.facts.formats}):
        search.visit_pairs(key, decode_sides)
    for side in decode_sides[1:]:
        search.visit_local(side)
    cheapest = heapq.nsmallest(limits.max_listed, search.weighed, key=_cost)
    return Weighed(tuple(_of(item, query) for item in cheapest), len(search.weighed))


class _Search:
    """Visits candidates and collects them in `weighed`."""

    def __init__(
        self, query: Query, pricing: Pricing, limits: Limits, prefill_sides: list[_PrefillSide]
    ) -> None:
        self._query = query
        self._pricing = pricing
        self._limits = limits
        self._prefill_sides = sorted(prefill_sides, key=_total)
        self._best = math.inf
        self._formats_done: list[FormatKey] = []
        self.weighed: list[_Weighed] = []

    def visit_local(self, decode: _DecodeSide) -> None:
        """Weigh computing the prompt on the decode worker itself."""
        if not self._hopeless(decode.total):
            terms = self._pricing.prefill_side(decode.worker, self._query)
            local = _PrefillSide(decode.worker, terms, terms.total)
            self._add(_Weighed(local.total + decode.total, 0.0, local, decode))

    def visit_pairs(self, key: FormatKey, decode_sides: Sequence[_DecodeSide]) -> None:
        """Weigh the pairs that share this handoff format and none of those visited before."""
        limit = self._limits.max_per_side
        prefill_sides = [side for side in self._prefill_sides if key in side.worker.facts.formats]
        if not prefill_sides:
            return
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
            if key in side.worker.facts.formats and not self._hopeless(side.total + least)
        ]
        floors.sort(key=_floor)
        for floor, decode in floors[:limit]:
            for prefill in prefill_sides[:limit]:
                if self._hopeless(floor + prefill.total):
                    break
                self._visit_pair(prefill, decode)
            for prefill in nearest.to(decode.worker, skip=limit) if nearest else ():
                if not self._hopeless(floor + prefill.total):
                    self._visit_pair(prefill, decode)
        self._formats_done.append(key)

    def _visit_pair(self, prefill: _PrefillSide, decode: _DecodeSide) -> None:
        source, destination = prefill.worker.facts, decode.worker.facts
        if source.worker_id == destination.worker_id:
            return
        if any(key in source.formats and key in destination.formats for key in self._formats_done):
            return
        ship = self._pricing.ship(prefill.worker, prefill.terms, decode.worker, self._query)
        self._add(_Weighed(prefill.total + decode.total + ship, ship, prefill, decode))

    def _hopeless(self, least_cost: float) -> bool:
        """Whether nothing that costs at least this much can be the cheapest."""
        return self._limits.prune and least_cost >= self._best

    def _add(self, item: _Weighed) -> None:
        self.weighed.append(item)
        self._best = min(self._best, item.cost)


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


def candidate_of(query: Query, pricing: Pricing, prefill: WorkerView | None, decode: WorkerView) -> Candidate:
    """One candidate with all its terms; without `prefill` the prompt is computed where it is decoded."""
    computing = prefill or decode
    terms = pricing.prefill_side(computing, query)
    decode_terms = pricing.decode_side(decode, query)
    if prefill is None:
        return _candidate(query, computing, terms, decode, decode_terms)
    return _candidate(
        query, computing, terms, decode, decode_terms, pricing.ship(prefill, terms, decode, query)
    )


def _candidate(
    query: Query,
    computing: WorkerView,
    prefill_terms: PrefillTerms,
    decode: WorkerView,
    decode_terms: DecodeTerms,
    ship: float | None = None,  # of a pair
) -> Candidate:
    queue, prefill, stall, followers, _ = prefill_terms
    room, decoding, neighbours = decode_terms
    terms = {
        "queue": queue,
        "prefill": prefill,
        "room": room,
        "decode": decoding,
        "stall": stall,
        "followers": followers,
        "neighbours": neighbours,
    }
    if ship is not None:
        terms["ship"] = ship
    return Candidate(
        decode=decode,
        prefill=None if ship is None else computing,
        decode_cached_blocks=query.cached_at(decode),
        prefill_cached_blocks=query.cached_at(computing),
        terms=terms,
        cost=sum(terms.values()),
    )


def _of(item: _Weighed, query: Query) -> Candidate:
    computing, decode = item.prefill, item.decode
    ship = None if computing.worker is decode.worker else item.ship
    return _candidate(query, computing.worker, computing.terms, decode.worker, decode.terms, ship)


def _cost(item: _Weighed) -> float:
    return item.cost


def _total(side: _PrefillSide | _DecodeSide) -> float:
    return side.total


def _floor(item: tuple[float, _DecodeSide]) -> float:
    return item[0]
