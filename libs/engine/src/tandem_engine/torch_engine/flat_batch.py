"""A batch as the arrays that the kernel walks: all rows' tokens one after another, and where their blocks are."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from tandem_engine.batch import Batch

# Prompt chunks of so many tokens share what they read of the keys before them.
_MIN_STRETCH = 4


@dataclass(slots=True)
class FlatBatch:
    """Arrays of 64-bit integers; the first three have an entry for each token that is computed."""

    token_ids: array[int]
    positions: array[int]  # in their sequences
    tables: array[int]  # where in `blocks` the token's block table begins
    blocks: array[int]  # the block tables, one after another
    single: array[int]  # tokens that attend by themselves
    stretches: array[int]  # pairs: first token and number of tokens of those that attend together
    drawing: array[int]  # tokens after which one is drawn, in the order of the batch
    begun_blocks: list[int]  # blocks whose first token is computed, but not their last


def flatten(batch: Batch, *, block_size: int, stretch_tokens: int) -> FlatBatch:
    """Lay out a batch; no stretch has more than `stretch_tokens` tokens.

    This runs once per step with cold caches, so it touches each row's own objects once and makes no others.
    """
    token_ids, positions, tables, blocks, single, drawing = (array("q") for _ in range(6))
    stretches: list[tuple[int, int, int]] = []  # position, first token, number of tokens
    begun_blocks: list[int] = []
    num_tokens = 0
    for row in batch.sequences:
        start, count = row.num_computed_tokens, row.num_new_tokens
        stop = start + count
        if count == 1:
            token_ids.append(row.token_ids[start])
            positions.append(start)
            tables.append(len(blocks))
            single.append(num_tokens)
        else:
            token_ids.extend(row.token_ids[start:stop])
            positions.extend(range(start, stop))
            tables.extend([len(blocks)] * count)
            if count < _MIN_STRETCH:
                single.extend(range(num_tokens, num_tokens + count))
            else:
                stretches += (
                    (first, num_tokens + first - start, min(stretch_tokens, stop - first))
                    for first in range(start, stop, stretch_tokens)
                )
        num_tokens += count
        if row.draws_token:
            drawing.append(num_tokens - 1)
        num_last = stop % block_size  # tokens in the last block, unless that is full
        if num_last and stop - num_last >= start:
            begun_blocks.append(row.block_ids[stop // block_size])
        blocks.extend(row.block_ids)
    # Those that see most come first, so that all threads end at about the same time.
    by_length = array("q", [n for _, *stretch in sorted(stretches, reverse=True) for n in stretch])
    return FlatBatch(token_ids, positions, tables, blocks, single, by_length, drawing, begun_blocks)
