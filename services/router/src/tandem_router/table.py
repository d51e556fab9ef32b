"""What the price of a request on a worker owes to the worker alone, worked out once per view instead of per request.

Both sides of `cost` are linear in what a request brings along, so a worker is a row of factors. In the names of `cost`:

    queue + prefill + stall    = queue + steps·step_factor + uncached·token_factor + context_products·context_factor
    room + decode + neighbours = new·(base + length·length_factor), while there is a place and room for the prompt

A booking makes a new view in which all workers but one or two are the same objects: their rows are taken over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from tandem_router.cost import interleaved_ms, neighbours_of, prompt_tokens_per_step, queue_ms
from tandem_router.topology import PRIOR_LINKS, Distance
from tandem_router.view import FormatKey, Link, WorkerRole, WorkerView


class PrefillRow(NamedTuple):
    """Factors of computing a prompt."""

    worker_id: str
    queue: float
    step_tokens: int  # prompt tokens that one step takes
    step_factor: float
    token_factor: float
    context_factor: float


class DecodeRow(NamedTuple):
    """Factors of decoding; `room_tokens` is the longest prompt that can start at once, -1 when no place is free."""

    worker_id: str
    base: float
    length_factor: float
    room_tokens: int
    latency: float  # of the best link to it
    block_ms: float  # a block over the best link to it


class Row(NamedTuple):
    """Both; `decode` is None for a worker that only prefills."""

    prefill: PrefillRow
    decode: DecodeRow | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Common:
    """What follows from the cards alone: true of every view with the same workers."""

    prefill_at: tuple[int, ...]  # positions in the pool
    decode_at: tuple[int, ...]
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

    def __init__(self, pool: tuple[WorkerView, ...], rows: tuple[Row, ...], common: _Common) -> None:
        """Use `of`."""
        self.pool = pool
        self._rows = rows
        self._common = common
        self.prefill = [pool[i] for i in common.prefill_at]
        self.decode = [pool[i] for i in common.decode_at]
        self.prefill_rows = [rows[i].prefill for i in common.prefill_at]
        self.local_rows = [rows[i].prefill for i in common.decode_at]
        self.decode_rows = [row for i in common.decode_at if (row := rows[i].decode) is not None]
        self.block_bytes = common.block_bytes
        self._max_prompt, self._max_whole = common.max_prompt, common.max_whole
        self.block_size = common.block_size

    @classmethod
    def of(cls, pool: tuple[WorkerView, ...], before: Self | None) -> Self | None:
        """The table of a pool, from the one before if that helps; None when its workers are not alike."""
        # Lists compare by identity first: the usual case takes microseconds.
        if before is None or [worker.facts for worker in pool] != [worker.facts for worker in before.pool]:
            common = _common(pool)
            if common is None:
                return None
            rows = [_row(worker, common) for worker in pool]
        else:
            common = before._common  # noqa: SLF001
            rows = [
                row if new is old else _row(new, common)
                for new, old, row in zip(pool, before.pool, before._rows, strict=True)  # noqa: SLF001
            ]
        complete = [row for row in rows if row is not None]
        return cls(pool, tuple(complete), common) if len(complete) == len(pool) else None

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


def _row(worker: WorkerView, common: _Common) -> Row | None:
    facts, load = worker.facts, worker.load
    prefill, decode = worker.prefill_speed, worker.decode_speed
    can_decode = facts.role is not WorkerRole.PREFILL
    if prefill is None or (decode is None and can_decode):
        return None
    interleaved = interleaved_ms(decode, load)
    stalled = 1 + neighbours_of(facts, load)
    prefill_row = PrefillRow(
        facts.worker_id,
        queue_ms(facts, load, prefill, interleaved),
        prompt_tokens_per_step(facts, load),
        prefill.a_ms + interleaved,
        prefill.b_ms * stalled,
        prefill.c_ms * stalled,
    )
    if decode is None or not can_decode:
        return Row(prefill_row, None)
    num_others = load.num_sequences
    kv_tokens = load.decode_kv_tokens + load.queued_prefill_tokens
    full = bool(facts.max_sequences) and num_others >= facts.max_sequences
    link = _best_link(worker, common)
    return Row(
        prefill_row,
        DecodeRow(
            facts.worker_id,
            decode.a_ms + decode.b_ms * (2 * num_others + 1) + decode.c_ms * kv_tokens,
            decode.c_ms * (1 + num_others),
            -1 if full else (facts.num_blocks - load.num_used_blocks) * facts.block_size,
            link.latency_ms,
            min(facts.formats.values()) / link.bytes_per_ms,
        ),
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
