"""What the price of a request on a worker owes to the worker alone, worked out once per view instead of per request.

Both sides of `cost` are linear in what a request brings along, so a worker is a row of factors. In the names of `cost`:

    queue + prefill + stall    = queue + steps·step_factor + uncached·token_factor + context_products·context_factor
    queue                      = what stays of it + max(0, when the rest is gone - now)
    followers                  = crowding·own·(backlog + own/2) + passed·own, backlog: the queue of the longest prompts,
                                 own = steps·step_factor + (the last two)/stalled
    room + decode + neighbours = new·(base + length·length_factor), while there is a place and room for the prompt

A booking makes a new view in which all workers but one or two are the same objects: their rows are taken over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from operator import is_not
from typing import NamedTuple, Self

from tandem_common.speed import PrefillSpeed

from tandem_router.cost import (
    LENGTH_CLASSES,
    interleaved_ms,
    neighbours_of,
    prompt_tokens_per_step,
    queue_of,
)
from tandem_router.topology import PRIOR_LINKS, Distance, link_between
from tandem_router.view import FormatKey, Link, WorkerRole, WorkerView

# Plain tuples: Python takes them apart faster than named ones, and a search does little else.

# Factors of computing a prompt: worker id, by length class the part of the queue that stays and when the rest of it
# will be gone and how many prompts wait for it, prompt tokens that one step takes, the factors of steps, tokens and
# context products, and by how many sequences the last two are multiplied: the prompt's own and those that it stalls.
PrefillRow = tuple[str, tuple[float, ...], tuple[float, ...], tuple[int, ...], int, float, float, float, int]
# Factors of decoding: base, length factor, the longest prompt that can start at once (-1 when no place is free), and
# of the best link to the worker the latency and the time of a block.
DecodeRow = tuple[float, float, int, float, float]
_SEARCHED = (1, 2, 5, 6, 7)  # of a prefill row
_FEW = 8  # workers that one decision changes, and some more


class Row(NamedTuple):
    """Both; `decode` is None for a worker that only prefills."""

    prefill: PrefillRow
    decode: DecodeRow | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Common:
    """What follows from the cards alone: true of every view with the same workers."""

    prefill_at: tuple[int, ...]  # positions in the pool
    decode_at: tuple[int, ...]
    prefill_position: Mapping[str, int]  # in `prefill_at`, by worker id
    decode_position: Mapping[str, int]
    max_prompt: int  # so many tokens can start on every worker
    max_whole: int | None  # so many can end on every one that decodes; None: as many as its context takes
    block_bytes: tuple[int, ...]  # of the workers in `decode_at`
    block_size: int
    hosts: frozenset[str]  # of the workers that prefill for others
    racks: frozenset[str]
    zones: frozenset[str]
    regions: frozenset[str]
    places: dict[
        tuple[int, str], tuple[int, ...]
    ]  # positions in `prefill_at` by place: (0 host, 1 rack, 2 zone; name)


class PoolTable:
    """Rows of a pool whose workers are alike: one block size and handoff format, speeds known, none draining."""

    def __init__(self, pool: tuple[WorkerView, ...], rows: Sequence[Row], common: _Common) -> None:
        """Use `of`."""
        self.pool = pool
        self._common = common
        self.prefill = [pool[i] for i in common.prefill_at]
        self.decode = [pool[i] for i in common.decode_at]
        self.prefill_rows = [rows[i].prefill for i in common.prefill_at]
        self.local_rows = [rows[i].prefill for i in common.decode_at]
        self.decode_rows = [row for i in common.decode_at if (row := rows[i].decode) is not None]
        # What a search goes through for all workers, as columns: stays, gone, factors; base, length factor.
        self.prefill_columns = [[row[at] for row in self.prefill_rows] for at in _SEARCHED]
        self.decode_columns = [[row[at] for row in self.decode_rows] for at in (0, 1)]
        self.prefill_position = common.prefill_position
        self.decode_position = common.decode_position
        self.block_bytes = common.block_bytes
        self._max_prompt, self._max_whole = common.max_prompt, common.max_whole
        self.block_size = common.block_size
        # Found so far for each of `decode`, by position in `prefill`.
        self._links: list[dict[int, Link]] = [{} for _ in self.decode]
        # As `_summarize` says.
        self.step_tokens: int | None  # of all that prefill for others, if it is the same
        self.not_plain: set[int]  # positions in `prefill`
        self.least_room: int
        self.least_token_factor: float
        self.least_own_factor: float
        self._summarize()

    @classmethod
    def of(cls, pool: tuple[WorkerView, ...], before: Self | None) -> Self | None:
        """The table of a pool; None when its workers are not alike.

        The one `before` is brought up to date if that will do, and must not be used as it was any more.
        """
        if before is not None and len(pool) == len(before.pool):
            changed = list(compress(range(len(pool)), map(is_not, pool, before.pool)))
            if all(_same_facts(pool[i], before.pool[i]) for i in changed):
                return before if before.update(pool, changed) else None
        common = _common(pool)
        if common is None:
            return None
        rows = [row for worker in pool if (row := _row(worker, common, None)) is not None]
        return cls(pool, rows, common) if len(rows) == len(pool) else None

    def update(self, pool: tuple[WorkerView, ...], changed: Sequence[int]) -> bool:
        """Heed other loads, speeds or links of some workers: a booking changes one or two of a thousand.

        False when they are not alike any more; the table is useless then.
        """
        common, before = self._common, self.pool
        self.pool = pool
        for i in changed:
            worker = pool[i]
            worker_id = worker.facts.worker_id
            d = common.decode_position.get(worker_id)
            link: Sequence[float] | None = None
            if d is not None:
                if worker.links is before[i].links or worker.links == before[i].links:
                    _, _, _, *link = self.decode_rows[d]
                else:
                    self._links[d] = {}
            row = _row(worker, common, link)
            if row is None:
                return False
            if (p := common.prefill_position.get(worker_id)) is not None:
                self._set_prefill(p, worker, row.prefill)
            if d is not None and row.decode is not None:
                self._set_decode(d, worker, row.prefill, row.decode)
        if len(changed) > _FEW:
            self._summarize()
        return True

    def _set_prefill(self, p: int, worker: WorkerView, row: PrefillRow) -> None:
        self.prefill[p], self.prefill_rows[p] = worker, row
        for column, at in zip(self.prefill_columns, _SEARCHED, strict=True):
            column[p] = row[at]
        if row[4] != self.step_tokens:
            self.step_tokens = None
        if not _is_plain(row):
            self.not_plain.add(p)

    def _set_decode(self, d: int, worker: WorkerView, local: PrefillRow, row: DecodeRow) -> None:
        self.decode[d], self.local_rows[d], self.decode_rows[d] = worker, local, row
        self.decode_columns[0][d], self.decode_columns[1][d], room, _, _ = row
        self.least_room = min(self.least_room, room)
        token_factor, stalled = local[6], local[8]
        self.least_token_factor = min(self.least_token_factor, token_factor)
        self.least_own_factor = min(self.least_own_factor, token_factor / stalled)

    def _summarize(self) -> None:
        """Note what makes most of a search superfluous.

        A booking may leave minima too low, and workers not called plain that are, until the next beats.
        """
        steps = {step_tokens for _, _, _, _, step_tokens, _, _, _, _ in self.prefill_rows}
        self.step_tokens = steps.pop() if len(steps) == 1 else None
        self.not_plain = {p for p, row in enumerate(self.prefill_rows) if not _is_plain(row)}
        self.least_room = min((room for _, _, room, _, _ in self.decode_rows), default=-1)
        factors = [(factor, factor / stalled) for _, _, _, _, _, _, factor, _, stalled in self.local_rows]
        self.least_token_factor = min((shared for shared, _ in factors), default=0.0)
        self.least_own_factor = min((own for _, own in factors), default=0.0)

    def links_to(self, d: int) -> dict[int, Link]:
        """Links to the decode worker at this position, by position in `prefill`: as far as `link` found them."""
        return self._links[d]

    def link(self, p: int, d: int) -> Link:
        """Between the workers at these positions; remembered as long as it holds."""
        link = self._links[d][p] = link_between(self.prefill[p], self.decode[d])
        return link

    def fits(self, num_tokens: int, max_tokens: int) -> bool:
        """Whether every worker can take such a request, as `eligible` has it."""
        whole = self._max_whole
        return num_tokens <= self._max_prompt and (whole is None or num_tokens + max_tokens - 1 <= whole)

    def near(self, worker: WorkerView) -> list[tuple[int, ...]]:
        """Positions in `prefill` of those that share its host, its rack, its zone; nothing for unknown ones."""
        place = worker.facts.place
        named = ((0, place.host), (1, place.rack), (2, place.zone))
        return [at for key in named if key[1] and (at := self._common.places.get(key))]


def _common(pool: Sequence[WorkerView]) -> _Common | None:
    formats: set[FormatKey] = set()
    for worker in pool:
        facts = worker.facts
        if facts.draining or len(facts.formats) != 1 or facts.block_size != pool[0].facts.block_size:
            return None
        formats.update(facts.formats)
    if len(formats) != 1:
        return None
    prefill_at = tuple(i for i, w in enumerate(pool) if w.facts.role is not WorkerRole.DECODE)
    decode_at = tuple(i for i, w in enumerate(pool) if w.facts.role is not WorkerRole.PREFILL)
    if not decode_at:
        return None
    sizes = [(pool[i].facts.num_blocks * pool[i].facts.block_size, pool[i].facts) for i in decode_at]
    short = [num_tokens for num_tokens, facts in sizes if num_tokens < facts.max_context_tokens]
    senders = [pool[i].facts.place for i in prefill_at]
    places: dict[tuple[int, str], list[int]] = {}
    for position, place in enumerate(senders):
        for key in ((0, place.host), (1, place.rack), (2, place.zone)):
            if key[1]:
                places.setdefault(key, []).append(position)
    return _Common(
        prefill_at=prefill_at,
        decode_at=decode_at,
        prefill_position={pool[i].facts.worker_id: p for p, i in enumerate(prefill_at)},
        decode_position={pool[i].facts.worker_id: d for d, i in enumerate(decode_at)},
        max_prompt=min(
            min(w.facts.max_context_tokens, w.facts.num_blocks * w.facts.block_size) for w in pool
        ),
        max_whole=min(short) if short else None,
        block_bytes=tuple(min(pool[i].facts.formats.values()) for i in decode_at),
        block_size=pool[0].facts.block_size,
        hosts=frozenset(place.host for place in senders if place.host),
        racks=frozenset(place.rack for place in senders if place.rack),
        zones=frozenset(place.zone for place in senders),
        regions=frozenset(place.region for place in senders),
        places={key: tuple(at) for key, at in places.items()},
    )


def _same_facts(one: WorkerView, other: WorkerView) -> bool:
    return one.facts is other.facts or one.facts == other.facts


def _row(worker: WorkerView, common: _Common, link: Sequence[float] | None) -> Row | None:
    """`link` are latency and time per block of the best link to it, if they are known."""
    facts, load = worker.facts, worker.load
    prefill, decode = worker.prefill_speed, worker.decode_speed
    can_decode = facts.role is not WorkerRole.PREFILL
    if prefill is None or (decode is None and can_decode):
        return None
    interleaved = interleaved_ms(decode, load)
    stalled = 1 + neighbours_of(facts, load)
    prefill_row = (
        facts.worker_id,
        *_queue_factors(worker, prefill, interleaved),
        prompt_tokens_per_step(facts, load),
        prefill.a_ms + interleaved,
        prefill.b_ms * stalled,
        prefill.c_ms * stalled,
        stalled,
    )
    if decode is None or not can_decode:
        return Row(prefill_row, None)
    num_others = load.num_sequences
    kv_tokens = load.decode_kv_tokens + load.queued_prefill_tokens
    full = bool(facts.max_sequences) and num_others >= facts.max_sequences
    if link is None:
        best = _best_link(worker, common)
        link = best.latency_ms, min(facts.formats.values()) / best.bytes_per_ms
    latency, block_ms = link
    return Row(
        prefill_row,
        (
            decode.a_ms + decode.b_ms * (2 * num_others + 1) + decode.c_ms * kv_tokens,
            decode.c_ms * (1 + num_others),
            -1 if full else (facts.num_blocks - load.num_used_blocks) * facts.block_size,
            latency,
            block_ms,
        ),
    )


def _is_plain(row: PrefillRow) -> bool:
    """Whether a prompt computed there stalls nobody and passes nobody."""
    _, _, _, passed, _, _, _, _, stalled = row
    return stalled == 1 and not any(passed)


def _queue_factors(
    worker: WorkerView, speed: PrefillSpeed, interleaved: float
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[int, ...]]:
    """By length class what stays, when the rest is gone, and how many are passed."""
    facts, load = worker.facts, worker.load
    if not load.passable:
        total, draining, _ = queue_of(facts, load, speed, interleaved)
        num = len(LENGTH_CLASSES)
        return (total - draining,) * num, (worker.seen_ms + draining,) * num, (0,) * num
    queues = [queue_of(facts, load, speed, interleaved, length) for length in LENGTH_CLASSES]
    return (
        tuple([total - draining for total, draining, _ in queues]),
        tuple([worker.seen_ms + draining for _, draining, _ in queues]),
        tuple([num_passed for _, _, num_passed in queues]),
    )


def _best_link(worker: WorkerView, common: _Common) -> Link:
    """At least as good as every link to this worker from those that prefill for others."""
    place = worker.facts.place
    if place.host and place.host in common.hosts:
        nearest = Distance.HOST
    elif place.rack and place.rack in common.racks:
        nearest = Distance.RACK
    elif not place.zone or place.zone in common.zones or "" in common.zones:
        nearest = Distance.ZONE
    elif not place.region or place.region in common.regions or "" in common.regions:
        nearest = Distance.REGION
    else:
        nearest = Distance.APART
    links = (PRIOR_LINKS[nearest], *worker.links.measured.values())
    return Link(
        bytes_per_ms=max(link.bytes_per_ms for link in links),
        latency_ms=min(link.latency_ms for link in links),
    )
