"""What an engine holds, in numbers: for heartbeats, and for finding leaks."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nlargest

from tandem_common.generation import RequestClass
from tandem_common.speed import prompt_token_context

from tandem_engine.api import EngineSnapshot, PassableTokens, RequestSnapshot
from tandem_engine.scheduler import Scheduler
from tandem_engine.sequence import Phase, Sequence

_MAX_PASSABLE = 8
# Interactive prompts of any length pass batch work.
_ANY_LENGTH = 2**40
_RUNNING = (Phase.PREFILLING, Phase.DECODING)


def take_snapshot(scheduler: Scheduler, submitted: Iterable[int] = ()) -> EngineSnapshot:
    """Count everything; nothing may change meanwhile.

    `submitted` are the lengths of prompts to be computed here that the scheduler has not been told of yet, because a
    step is running: they wait as those do that it knows, and routers count on every accepted request being counted.
    """
    submitted = list(submitted)
    sequences = list(scheduler.sequences())
    decoding = [sequence for sequence in sequences if sequence.phase is Phase.DECODING]
    waiting = [sequence for sequence in sequences if sequence.phase is Phase.WAITING]
    reserved = [sequence for sequence in sequences if sequence.phase is Phase.RESERVED]
    step_tokens = scheduler.max_step_tokens
    queued = [
        PassableTokens(
            _passed_below(scheduler, sequence),
            sequence.num_uncomputed_tokens,
            prompt_token_context(sequence.num_uncomputed_tokens, sequence.num_computed_tokens, step_tokens),
        )
        for sequence in sequences
        if sequence.phase is Phase.PREFILLING or (sequence.phase is Phase.WAITING and not sequence.is_remote)
    ]
    queued += [
        PassableTokens(0, length, prompt_token_context(length, 0, step_tokens)) for length in submitted
    ]
    return EngineSnapshot(
        requests=tuple(
            RequestSnapshot(
                request_id=sequence.request_id,
                phase=sequence.phase.value,
                num_tokens=len(sequence.token_ids),
                num_computed_tokens=sequence.num_computed_tokens,
                num_blocks=len(sequence.table.block_ids),
            )
            for sequence in sequences
        ),
        num_running=sum(1 for sequence in sequences if sequence.phase in _RUNNING),
        num_waiting=len(waiting) + len(submitted),
        queued_prefill_tokens=sum(prompt.tokens for prompt in queued),
        queued_prefill_context=sum(prompt.context for prompt in queued),
        passable=nlargest(_MAX_PASSABLE, (prompt for prompt in queued if prompt.below_tokens > 0)),
        num_reserved=len(reserved),
        reserved_tokens=sum(len(sequence.token_ids) for sequence in reserved),
        num_decoding=len(decoding),
        decode_kv_tokens=sum(len(sequence.token_ids) for sequence in decoding),
        num_used_blocks=scheduler.pool.num_used,
        num_cached_blocks=scheduler.pool.num_cached,
        num_awaited_blocks=sum(
            map(scheduler.pool.num_blocks_for, (*(len(s.token_ids) for s in waiting), *submitted))
        ),
    )


def _passed_below(scheduler: Scheduler, sequence: Sequence) -> int:
    if sequence.request_class is RequestClass.BATCH:
        return _ANY_LENGTH
    return max(0, scheduler.passed_below_tokens(sequence))
