"""What an engine holds, in numbers: for heartbeats, and for finding leaks."""

from __future__ import annotations

from collections.abc import Iterable

from tandem_common.speed import prompt_token_context

from tandem_engine.api import EngineSnapshot, RequestSnapshot
from tandem_engine.scheduler import Scheduler
from tandem_engine.sequence import Phase

_RUNNING = (Phase.PREFILLING, Phase.DECODING)


def take_snapshot(scheduler: Scheduler, submitted: Iterable[int] = ()) -> EngineSnapshot:
    """Count everything; nothing may change meanwhile.

    `submitted` are the lengths of prompts to be computed here that the scheduler has not been told of yet, because a
    step is running: they wait as those do that it knows, and routers count on every accepted request being counted.
    """
    submitted = list(submitted)
    sequences = list(scheduler.sequences())
    decoding = [sequence for sequence in sequences if sequence.phase is Phase.DECODING]
    reserved = [sequence for sequence in sequences if sequence.phase is Phase.RESERVED]
    queued = [
        (sequence.num_uncomputed_tokens, sequence.num_computed_tokens)
        for sequence in sequences
        if sequence.phase is Phase.PREFILLING or (sequence.phase is Phase.WAITING and not sequence.is_remote)
    ]
    queued += [(num_tokens, 0) for num_tokens in submitted]
    step_tokens = scheduler.max_step_tokens
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
        num_waiting=sum(1 for sequence in sequences if sequence.phase is Phase.WAITING) + len(submitted),
        queued_prefill_tokens=sum(num_tokens for num_tokens, _ in queued),
        queued_prefill_context=sum(
            prompt_token_context(num_tokens, context, step_tokens) for num_tokens, context in queued
        ),
        num_reserved=len(reserved),
        reserved_tokens=sum(len(sequence.token_ids) for sequence in reserved),
        num_decoding=len(decoding),
        decode_kv_tokens=sum(len(sequence.token_ids) for sequence in decoding),
        num_used_blocks=scheduler.pool.num_used,
        num_cached_blocks=scheduler.pool.num_cached,
    )
