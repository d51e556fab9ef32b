"""A Batch as flat tensors: token ids, positions, where keys and values go, and who attends to what.

Rows are laid out group by group (`row_groups`), so that the queries of a group are one stretch of the flat tokens.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import torch
from torch import Tensor

from tandem_engine.batch import Batch
from tandem_engine.torch_engine.device_copies import as_tensor
from tandem_engine.torch_engine.kv_cache import KVCache
from tandem_engine.torch_engine.row_groups import RowGroup, grouped, row_groups


@dataclass(frozen=True, kw_only=True, slots=True)
class StepInputs:
    """Everything that the model needs for one step."""

    token_ids: Tensor  # (tokens,)
    positions: Tensor  # (tokens,)
    key_rows: Tensor  # (layers, tokens): token rows of the pool
    value_rows: Tensor  # (layers, tokens)
    groups: dict[int, list[RowGroup]]  # by window; 0 is full attention
    last_tokens: Tensor  # (drawing rows,): flat index of each one's last token
    drawing: list[int]  # indexes in batch.sequences, in the order of last_tokens
    begun_blocks: list[int]  # blocks whose first slot is written now and that stay partly empty


def make_step_inputs(batch: Batch, cache: KVCache, windows: frozenset[int], dtype: torch.dtype) -> StepInputs:
    """Flatten a batch; reads it and keeps nothing of it."""
    block_size, sequences = cache.block_size, batch.sequences
    groups = grouped(sequences, cache)
    token_ids, positions, slots, last_tokens = array("q"), array("q"), array("q"), array("q")
    drawing: list[int] = []
    begun_blocks: list[int] = []
    for index in (index for group in groups for index in group):
        row = sequences[index]
        start, stop = row.num_computed_tokens, row.num_computed_tokens + row.num_new_tokens
        token_ids.extend(row.token_ids[start:stop])
        positions.extend(range(start, stop))
        for block in range(start // block_size, (stop - 1) // block_size + 1):
            block_id, first = row.block_ids[block], block * block_size
            begin, end = max(start, first), min(stop, first + block_size)
            base = block_id * cache.token_rows_per_block - first
            slots.extend(range(base + begin, base + end))
            if begin == first and end < first + block_size:
                begun_blocks.append(block_id)
        if row.draws_token:
            drawing.append(index)
            last_tokens.append(len(token_ids) - 1)
    device = cache.device
    layer_rows = torch.arange(cache.num_layers, device=device).unsqueeze(1) * (2 * block_size)
    key_rows = layer_rows + as_tensor(slots, device)
    return StepInputs(
        token_ids=as_tensor(token_ids, device),
        positions=as_tensor(positions, device),
        key_rows=key_rows,
        value_rows=key_rows + block_size,
        groups={window: row_groups(sequences, groups, cache, window, dtype) for window in windows},
        last_tokens=as_tensor(last_tokens, device),
        drawing=drawing,
        begun_blocks=begun_blocks,
    )
