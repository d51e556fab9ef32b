"""The two ways to price a candidate: predicted milliseconds, and block counts while no speed is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tandem_router import cost
from tandem_router.cost import DecodeTerms, PrefillTerms
from tandem_router.eligible import Eligible
from tandem_router.query import Query
from tandem_router.topology import link_between
from tandem_router.view import FormatKey, Link, WorkerView

# How the work of moving a block compares to that of computing it, and what a handoff costs whatever its size: in
# blocks, for want of anything measured.
_SHIP_PER_BLOCK = 0.1
_SHIP_BASE = 2.0


class Pricing(Protocol):
    """Prices both sides of a pair on their own, and what depends on both. All in `unit`; nothing is negative."""

    @property
    def unit(self) -> str:
        """Unit of all terms."""
        ...

    def prefill_side(self, worker: WorkerView, query: Query) -> PrefillTerms:
        """Terms of computing the prompt on this worker."""
        ...

    def decode_side(self, worker: WorkerView, query: Query) -> DecodeTerms:
        """Terms of decoding on this worker."""
        ...

    def ship(self, source: WorkerView, computing: PrefillTerms, decode: WorkerView, query: Query) -> float:
        """The term of handing over from one to the other."""
        ...

    def least_ship(self, longest: PrefillTerms, decode: WorkerView, query: Query) -> float:
        """At most what `ship` gives for any worker that computes no longer, and in no more steps, than `longest`."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class MillisecondPricing:
    """Predicted milliseconds; every worker that is priced must have speeds."""

    expected_new_tokens: int  # of an answer, if the request allows that many
    crowding_per_ms: float = 0.0  # see `cost.followers_ms`

    @property
    def unit(self) -> str:
        """Milliseconds."""
        return "ms"

    def prefill_side(self, worker: WorkerView, query: Query) -> PrefillTerms:
        """As `cost.prefill_terms`."""
        speed = worker.prefill_speed
        if speed is None:
            raise ValueError(f"{worker.facts.worker_id} has no prefill speed")
        num_cached = query.cached_at(worker) * worker.facts.block_size
        tokens = (query.num_tokens - num_cached, num_cached)
        owed_share = query.owed_share(tokens[0], worker.facts.block_size)
        surroundings = cost.Surroundings(self.crowding_per_ms, query.now_ms - worker.seen_ms, owed_share)
        return cost.prefill_terms(worker.facts, worker.load, speed, worker.decode_speed, tokens, surroundings)

    def decode_side(self, worker: WorkerView, query: Query) -> DecodeTerms:
        """As `cost.decode_terms`."""
        speed = worker.decode_speed
        if speed is None:
            raise ValueError(f"{worker.facts.worker_id} has no decode speed")
        num_new = min(query.max_tokens, self.expected_new_tokens)
        return cost.decode_terms(worker.facts, worker.load, speed, query.num_tokens, num_new)

    def ship(self, source: WorkerView, computing: PrefillTerms, decode: WorkerView, query: Query) -> float:
        """As `cost.ship_ms`, for the blocks that the decode worker does not hold."""
        num_bytes = _missing_blocks(decode, query) * _block_bytes(source, decode)
        return cost.ship_ms(link_between(source, decode), num_bytes, computing.prefill, computing.num_steps)

    def least_ship(self, longest: PrefillTerms, decode: WorkerView, query: Query) -> float:
        """Over the best link, hidden as well as can be: shipping is hidden by more computing in more steps."""
        best: Link = decode.links.best
        num_bytes = _missing_blocks(decode, query) * min(decode.facts.formats.values(), default=0)
        return cost.ship_ms(best, num_bytes, longest.prefill, longest.num_steps)


class BlockPricing:
    """Block counts: blocks to compute, to ship and to hold all weigh alike, up to two rough constants."""

    @property
    def unit(self) -> str:
        """Blocks."""
        return "blocks"

    def prefill_side(self, worker: WorkerView, query: Query) -> PrefillTerms:
        """Blocks queued, blocks not cached, and the latter again for each sequence that they delay."""
        size = worker.facts.block_size
        own = query.num_tokens / size - query.cached_at(worker)
        queued = worker.load.queued_prefill_tokens / size
        return PrefillTerms(queued, own, own * cost.neighbours_of(worker.facts, worker.load), 0.0, 1)

    def decode_side(self, worker: WorkerView, query: Query) -> DecodeTerms:
        """Blocks in use once the sequence is there, and those of them that are more than the worker has."""
        held = worker.load.num_used_blocks + worker.facts.blocks_of(query.num_tokens)
        return DecodeTerms(float(max(0, held - worker.facts.num_blocks)), float(held), 0.0)

    def ship(self, source: WorkerView, computing: PrefillTerms, decode: WorkerView, query: Query) -> float:
        """A part of the blocks that the decode worker does not hold, and a constant."""
        return self.least_ship(computing, decode, query)

    def least_ship(self, longest: PrefillTerms, decode: WorkerView, query: Query) -> float:
        """Exact, since it does not depend on the sender."""
        return _SHIP_BASE + _SHIP_PER_BLOCK * _missing_blocks(decode, query)


def pricing_for(eligible: Eligible, milliseconds: MillisecondPricing) -> Pricing:
    """Milliseconds if all workers to be weighed have speeds, else blocks."""
    known = all(worker.prefill_speed for worker in (*eligible.prefill, *eligible.decode)) and all(
        worker.decode_speed for worker in eligible.decode
    )
    return milliseconds if known else BlockPricing()


def _missing_blocks(decode: WorkerView, query: Query) -> int:
    return decode.facts.blocks_of(query.num_tokens) - query.cached_at(decode)


def _block_bytes(source: WorkerView, decode: WorkerView) -> int:
    """Of the format that both speak."""
    formats = source.facts.formats
    if len(formats) == 1 and formats == decode.facts.formats:
        return next(iter(formats.values()))
    shared: list[FormatKey] = [key for key in decode.facts.formats if key in formats]
    return min((decode.facts.formats[key] for key in shared), default=0)
