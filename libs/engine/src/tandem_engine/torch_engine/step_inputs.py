"""A Batch as flat tensors: token ids, positions, where keys and values go, and who attends to what.

Rows are laid out group by group, so that the queries of a group are one stretch of the flat tokens. A group
holds rows with equally many new tokens and contexts within a factor of two of one another: one attention call
with little padding. Rows that decode make one or few groups; prompt chunks mostly stand alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tandem_engine.batch import Batch, ScheduledSequence
from tandem_engine.torch_engine.kv_cache import KVCache


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeRows:
    """Rows with one new token each, for the kernel that reads the pool in place: nothing to gather or mask."""

    block_rows: Tensor  # (rows, blocks): keys' rows of layer 0
    starts: Tensor  # (rows,): the first key that a row sees, counted in the slots of its block rows
    counts: Tensor  # (rows,): one past the last


@dataclass(frozen=True, kw_only=True, slots=True)
class RowGroup:
    """Rows that attend in one call, in one kind of layer (the window decides the kind).

    `keys` is how many key slots each row sees, padding included; the first `keys` slots of the gathered
    blocks. `mask` is added to the scores; None when nothing is to be hidden, or when `is_causal` says it all.
    """

    start: int  # first flat token
    num_rows: int
    num_queries: int  # per row
    num_keys: int
    block_rows: Tensor  # (2 * rows * blocks,): keys' rows, then values', of layer 0
    mask: Tensor | None  # (rows, 1, queries, keys)
    is_causal: bool
    decodes: DecodeRows | None = None  # set when the cache has kernels: the group is for them


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
    groups = _grouped(sequences, one_for_decodes=cache.kernels is not None)
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
    key_rows = layer_rows + _tensor(slots, device)
    return StepInputs(
        token_ids=_tensor(token_ids, device),
        positions=_tensor(positions, device),
        key_rows=key_rows,
        value_rows=key_rows + block_size,
        groups={window: list(_row_groups(sequences, groups, cache, window, dtype)) for window in windows},
        last_tokens=_tensor(last_tokens, device),
        drawing=drawing,
        begun_blocks=begun_blocks,
    )


def _grouped(sequences: Sequence[ScheduledSequence], *, one_for_decodes: bool) -> list[list[int]]:
    """Indexes of the rows that attend together; `one_for_decodes` when padding costs rows that decode nothing."""

    def size(index: int) -> tuple[int, bool, int]:
        row = sequences[index]
        return row.num_new_tokens, row.num_computed_tokens == 0, row.position

    groups: list[list[int]] = []
    lead = (0, False, 0)
    for index in sorted(range(len(sequences)), key=size):
        new, begins, keys = size(index)
        is_near = keys <= 2 * lead[2] or (one_for_decodes and new == 1)
        if (new, begins) != lead[:2] or not is_near:
            groups.append([])
            lead = (new, begins, keys)
        groups[-1].append(index)
    return groups


def _row_groups(
    sequences: Sequence[ScheduledSequence],
    groups: list[list[int]],
    cache: KVCache,
    window: int,
    dtype: torch.dtype,
) -> Iterator[RowGroup]:
    start = 0
    for group in groups:
        rows = [sequences[index] for index in group]
        yield _row_group(rows, start, cache, window, dtype)
        start += len(rows) * rows[0].num_new_tokens


def _row_group(
    rows: Sequence[ScheduledSequence], start: int, cache: KVCache, window: int, dtype: torch.dtype
) -> RowGroup:
    block_size, num_queries = cache.block_size, rows[0].num_new_tokens
    # The first block that a row's first new token sees, and how many key slots lie from there to its last token.
    first_blocks = [
        max(0, row.num_computed_tokens + 1 - window) // block_size if window else 0 for row in rows
    ]
    num_keys = [row.position - first * block_size for row, first in zip(rows, first_blocks, strict=True)]
    width = max(num_keys)
    num_blocks = -(-width // block_size)
    blocks = array("q")
    for row, first in zip(rows, first_blocks, strict=True):
        own = row.block_ids[first : first + min(num_blocks, -(-row.position // block_size) - first)]
        blocks.extend(own)
        # Padding repeats a block of the row's own: never garbage, always masked.
        blocks.extend([own[0]] * (num_blocks - len(own)))
    key_rows = _tensor(blocks, cache.device) * cache.block_rows_per_block
    if num_queries == 1 and cache.kernels is not None:
        starts = array(
            "q",
            [
                max(0, row.position - window) - first * block_size if window else 0
                for row, first in zip(rows, first_blocks, strict=True)
            ],
        )
        return RowGroup(
            start=start,
            num_rows=len(rows),
            num_queries=1,
            num_keys=width,
            block_rows=key_rows,
            mask=None,
            is_causal=False,
            decodes=DecodeRows(
                block_rows=key_rows.view(len(rows), num_blocks),
                starts=_tensor(starts, cache.device),
                counts=_tensor(array("q", num_keys), cache.device),
            ),
        )
    is_causal = num_queries > 1 and rows[0].num_computed_tokens == 0 and (not window or width <= window)
    hides = num_queries > 1 or min(num_keys) < width or (0 < window < width)
    return RowGroup(
        start=start,
        num_rows=len(rows),
        num_queries=num_queries,
        num_keys=width,
        block_rows=torch.cat((key_rows, key_rows + 1)),
        mask=_mask(rows, first_blocks, width, window, cache, dtype) if hides and not is_causal else None,
        is_causal=is_causal,
    )


def _mask(
    rows: Sequence[ScheduledSequence],
    first_blocks: Sequence[int],
    num_keys: int,
    window: int,
    cache: KVCache,
    dtype: torch.dtype,
) -> Tensor:
    """What is added to the scores, (rows, 1, queries, keys): 0 for keys that a query sees, -inf for others."""
    device = cache.device
    # Positions counted from the row's first gathered key.
    offsets = array(
        "q", [r.num_computed_tokens - f * cache.block_size for r, f in zip(rows, first_blocks, strict=True)]
    )
    queries = _tensor(offsets, device).view(-1, 1, 1, 1)
    queries = queries + torch.arange(rows[0].num_new_tokens, device=device).view(1, 1, -1, 1)
    keys = torch.arange(num_keys, device=device)
    hidden = keys > queries
    if window:
        hidden |= keys <= queries - window
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))


def _tensor(values: array[int], device: torch.device) -> Tensor:
    if not values:
        return torch.empty(0, dtype=torch.int64, device=device)
    return torch.frombuffer(values, dtype=torch.int64).to(device)
