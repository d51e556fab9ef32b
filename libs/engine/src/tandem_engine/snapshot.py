"""What an engine holds, in numbers: for heartbeats, and for finding leaks."""

from __future__ import annotations

from tandem_engine.api import EngineSnapshot, RequestSnapshot
from tandem_engine.scheduler import Scheduler
from tandem_engine.sequence import Phase

_RUNNING = (Phase.PREFILLING, Phase.DECODING)


def take_snapshot(scheduler: Scheduler) -> EngineSnapshot:
    """Count everything; nothing may change meanwhile."""
    sequences = list(scheduler.sequences())
    decoding = [sequence for sequence in sequences if sequence.phase is Phase.DECODING]
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
        num_waiting=sum(1 for sequence in sequences if sequence.phase is Phase.WAITING),
        queued_prefill_tokens=sum(
            sequence.num_uncomputed_tokens
            for sequence in sequences
            if sequence.phase is Phase.PREFILLING
            or (sequence.phase is Phase.WAITING and not sequence.is_remote)
        ),
        num_decoding=len(decoding),
        decode_kv_tokens=sum(len(sequence.token_ids) for sequence in decoding),
        num_used_blocks=scheduler.pool.num_used,
        num_cached_blocks=scheduler.pool.num_cached,
    )
