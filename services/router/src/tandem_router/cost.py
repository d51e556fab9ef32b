"""What a candidate costs, in predicted milliseconds, from what each worker measured about itself.

The cost is the delay that the request will see until its expected end, plus the delay that it adds to others:

    queue       prompts ahead of it on the worker that computes                 }
    prefill     its own uncached tokens, chunk by chunk                         } time to first token
    ship        the part of the handoff that computing does not hide            }
    room        until the decode worker has a place and blocks for it           }
    decode      its own expected steps
    stall       what computing its prompt takes from sequences that decode on the same worker
    followers   what computing its prompt takes from those that it passes, and from prompts that will come
    neighbours  what its expected steps add to the steps of the sequences that it decodes with

Each term belongs to one side of a pair, `ship` alone to both: that makes the search in `search` cheap.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

from tandem_common.speed import DecodeSpeed, PrefillSpeed

from tandem_router.view import Link, WorkerFacts, WorkerLoad, WorkerRole

# A handoff's call, ticket and lease, whatever is shipped over whatever link.
HANDOFF_MS = 1.5


class Surroundings(NamedTuple):
    """What a price depends on beside the worker and the prompt."""

    crowding_per_ms: float = 0.0  # see `followers_ms`
    elapsed_ms: float = 0.0  # since the worker's last beat came
    owed_share: float = 1.0  # of the own work, see `followers_ms`


ALONE = Surroundings()


class PrefillTerms(NamedTuple):
    """Terms of the worker that computes the prompt."""

    queue: float
    prefill: float
    stall: float
    followers: float
    num_steps: int  # engine steps that the prompt takes

    @property
    def total(self) -> float:
        """All of them."""
        return self.queue + self.prefill + self.stall + self.followers


class DecodeTerms(NamedTuple):
    """Terms of the worker that decodes."""

    room: float
    decode: float
    neighbours: float


def prompt_tokens_per_step(facts: WorkerFacts, load: WorkerLoad) -> int:
    """Prompt tokens that one engine step takes: what decoding sequences leave of it."""
    return max(1, facts.max_step_tokens - load.num_decoding)


def interleaved_ms(speed: DecodeSpeed | None, load: WorkerLoad) -> float:
    """What the decoding sequences add to each step that also computes a prompt; the step's base is paid already."""
    if speed is None or not load.num_decoding:
        return 0.0
    return speed.step_ms(load.num_decoding, load.decode_kv_tokens) - speed.a_ms


# Prompts are told apart by length no further than this, so that a queue can be priced once for all of a class.
_CLASS_LIMITS = (1024, 4096, 16_384)
LENGTH_CLASSES = range(len(_CLASS_LIMITS) + 1)


def length_class(num_tokens: int) -> int:
    """Of a prompt: those of the last one pass nobody."""
    return bisect_left(_CLASS_LIMITS, num_tokens)


class Queue(NamedTuple):
    """What a prompt finds ahead of it, in milliseconds; `draining` of it becomes less with time, without a beat."""

    total: float
    draining: float
    num_passed: int  # prompts that wait for it


_NO_QUEUE = Queue(0.0, 0.0, 0)


def queue_of(
    facts: WorkerFacts,
    load: WorkerLoad,
    speed: PrefillSpeed,
    interleaved: float,
    length: int = LENGTH_CLASSES[-1],
) -> Queue:
    """Until the prompts that go before one of this length class are computed.

    Who passes a prompt that is being computed waits for the end of a step, half of one on average. Bookings are passed
    by nobody, since their lengths are not known, and do not drain: the worker may have been idle before they came.
    """
    num_tokens, context = load.queued_prefill_tokens, load.queued_prefill_context
    if not num_tokens:
        return _NO_QUEUE
    per_step = prompt_tokens_per_step(facts, load)
    passed_tokens = passed_context = num_passed = 0
    if length < len(_CLASS_LIMITS) and load.passable:
        longest = _CLASS_LIMITS[length]
        for prompt in load.passable:
            if prompt.below_tokens > longest:
                passed_tokens += prompt.tokens
                passed_context += prompt.context
                num_passed += 1
    num_tokens = max(0, num_tokens - passed_tokens)
    num_steps = -(-num_tokens // per_step)
    computing = num_steps * (speed.a_ms + interleaved)
    computing += num_tokens * speed.b_ms + max(0, context - passed_context) * speed.c_ms
    draining = computing * max(0, num_tokens - load.booked_prefill_tokens) / num_tokens if num_tokens else 0.0
    if passed_tokens:
        share = min(1.0, per_step / passed_tokens)
        step = speed.a_ms + interleaved + share * (passed_tokens * speed.b_ms + passed_context * speed.c_ms)
        computing += step / 2
    return Queue(computing, draining, num_passed)


def followers_ms(backlog: float, own: float, crowding_per_ms: float) -> float:
    """What `own` work beside a `backlog` takes from those that come after it while the worker is busy.

    In an M/G/1 queue with arrivals at rate λ and utilisation ρ, work u that is there delays those to come by
    λ·u²/(2(1 − ρ)) in all; `crowding_per_ms` is λ/(1 − ρ), and the term the difference that the own work makes. It is
    why a long prompt belongs on a fast worker although a slow one is free, and a short one may go to the slow one.
    Source: Hyytiä, Penttinen, Aalto, "Size- and state-aware dispatching problem with queue-specific job sizes",
    European Journal of Operational Research (2012).

    Of a prefix that others hold, and that many ask for, only a share is owed by the request that is the first to
    compute it here (`Query.owed_share`): the others will use it. So credit for cached blocks decays as they get hot,
    and a prefix that is asked for more than its holder can serve is soon held by several.
    """
    return crowding_per_ms * own * (backlog + own / 2)


def neighbours_of(facts: WorkerFacts, load: WorkerLoad) -> int:
    """Sequences that are delayed while the worker computes a prompt.

    A decode worker is never taken for empty: it is there for sequences that are about to come, and a prompt computed on
    it would delay them. A prefill worker decodes nothing; who waits there is in the queue.
    """
    if facts.role is WorkerRole.PREFILL:
        return 0
    return max(1, load.num_sequences) if facts.role is WorkerRole.DECODE else load.num_sequences


def room_ms(facts: WorkerFacts, load: WorkerLoad, num_tokens: int, lifetime_ms: float) -> float:
    """Until the decode worker has a place in its batch and blocks for the prompt.

    The sequences there are expected to end evenly over one lifetime, each giving back its place and its blocks.
    """
    places_over = load.num_sequences + 1 - facts.max_sequences if facts.max_sequences else 0
    blocks_over = facts.blocks_of(num_tokens) - (facts.num_blocks - load.num_used_blocks)
    wait = 0.0
    if places_over > 0:
        wait = lifetime_ms * places_over / max(1, load.num_sequences)
    if blocks_over > 0:
        wait = max(wait, lifetime_ms * blocks_over / max(1, load.num_used_blocks))
    return wait


def ship_ms(link: Link, num_bytes: int, computing_ms: float, num_steps: int) -> float:
    """The part of a handoff that computing does not hide.

    A prompt computed in n steps is shipped in n parts, each while the next is computed: a pipeline of two stages
    that takes (C + S)/n + max(C, S)·(n − 1)/n for computing C and shipping S. Less C, that leaves
    S/n + max(0, S − C)·(n − 1)/n, plus the latency of the last part and what every handoff takes.
    """
    shipping = num_bytes / link.bytes_per_ms
    hidden = min(shipping, computing_ms) * (num_steps - 1) / num_steps
    return HANDOFF_MS + link.latency_ms + shipping - hidden


def prefill_terms(
    facts: WorkerFacts,
    load: WorkerLoad,
    prefill: PrefillSpeed,
    decode: DecodeSpeed | None,
    tokens: tuple[int, int],
    surroundings: Surroundings = ALONE,
) -> PrefillTerms:
    """Terms of computing `tokens` = (uncached, cached) of a prompt on this worker.

    Sequences that decode there share the prompt's steps: what stalls them is the prompt's part of each, not its base.
    """
    num_uncached, num_cached = tokens
    per_step = prompt_tokens_per_step(facts, load)
    alone = prefill.predict_prompt_ms(num_uncached, num_cached, per_step)
    num_steps = -(-num_uncached // per_step)
    interleaved = interleaved_ms(decode, load)
    crowding_per_ms, elapsed_ms, owed_share = surroundings
    elapsed_ms = max(0.0, elapsed_ms)
    ahead = queue_of(facts, load, prefill, interleaved, length_class(num_uncached + num_cached))
    queue = ahead.total - min(elapsed_ms, ahead.draining)
    backlog = queue
    if ahead.num_passed:
        everything = queue_of(facts, load, prefill, interleaved)
        backlog = everything.total - min(elapsed_ms, everything.draining)
    own = alone + num_steps * interleaved
    return PrefillTerms(
        queue,
        own,
        (alone - num_steps * prefill.a_ms) * neighbours_of(facts, load),
        followers_ms(backlog, own * owed_share, crowding_per_ms) + ahead.num_passed * own,
        num_steps,
    )


def decode_terms(
    facts: WorkerFacts, load: WorkerLoad, speed: DecodeSpeed, num_tokens: int, num_new_tokens: int
) -> DecodeTerms:
    """Terms of decoding `num_new_tokens` (expected) tokens after `num_tokens` on this worker.

    Queued prompts will decode there too by then, so they count as neighbours. The sequence is taken at its mean length.
    """
    length = num_tokens + num_new_tokens // 2
    num_others = load.num_sequences
    kv_tokens = load.decode_kv_tokens + load.queued_prefill_tokens
    step = speed.step_ms(num_others + 1, kv_tokens + length)
    added = speed.b_ms + speed.c_ms * length
    own = num_new_tokens * step
    return DecodeTerms(room_ms(facts, load, num_tokens, own), own, num_others * num_new_tokens * added)
