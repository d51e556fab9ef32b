"""What a step computes, in the terms that speeds are fitted to."""

from __future__ import annotations

from itertools import islice

from tandem_engine.api import StepCost
from tandem_engine.batch import Batch


def step_cost(batch: Batch, duration_ms: float) -> StepCost:
    """Count the tokens of a batch. A row of one token past the prompt is a decode, all others are prefill."""
    num_prefill_tokens = prefill_token_context = 0
    num_decode_sequences, decode_kv_tokens = batch.num_counted, batch.counted_tokens
    for row in islice(batch.sequences, batch.num_counted, None):
        computed = row.num_computed_tokens
        if row.num_new_tokens == 1 and computed >= row.num_prompt_tokens:
            num_decode_sequences += 1
            decode_kv_tokens += computed + 1
        else:
            num_prefill_tokens += row.num_new_tokens
            prefill_token_context += row.num_new_tokens * computed
    return StepCost(
        duration_ms=duration_ms,
        num_prefill_tokens=num_prefill_tokens,
        prefill_token_context=prefill_token_context,
        num_decode_sequences=num_decode_sequences,
        decode_kv_tokens=decode_kv_tokens,
    )
