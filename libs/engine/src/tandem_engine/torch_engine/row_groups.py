"""Which rows of a step attend together, and what their attention has to know.

Where there are kernels, all rows that decode are one group and, on a CPU, all prompt chunks another: the kernels read
the pool in place, so that rows of any lengths go together. Elsewhere the blocks that a group sees are gathered. Such a
group holds rows with equally many new tokens and contexts within a factor of two of one another: one attention call
with little padding.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from tandem_engine.batch import ScheduledSequence
from tandem_engine.torch_engine.device_copies import as_tensor
from tandem_engine.torch_engine.kernels import ChunkRows
from tandem_engine.torch_engine.kv_cache import KVCache
from tandem_engine.torch_engine.paged_rows import PagedRows


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeRows:
    """Rows with one new token each, for the kernel that reads the pool in place."""

    start: int  # first flat token
    block_rows: Tensor  # (rows, blocks): keys' rows of layer 0
    starts: Tensor  # (rows,): the first key that a row sees, counted in the slots of its block rows
    counts: Tensor  # (rows,): one past the last


@dataclass(frozen=True, kw_only=True, slots=True)
class GatheredRows:
    """Rows with equally many new tokens, for torch's attention.

    `num_keys` is how many key slots each row sees, padding included; the first `num_keys` slots of the gathered
    blocks. `mask` is added to the scores; None when nothing is to be hidden, or when `is_causal` says it all.
    """

    start: int  # first flat token
    num_rows: int
    num_queries: int  # per row
    num_keys: int
    block_rows: Tensor  # (2 * rows * blocks,): keys' rows, then values', of layer 0
    mask: Tensor | None  # (rows, 1, queries, keys)
    is_causal: bool


RowGroup = DecodeRows | PagedRows | ChunkRows | GatheredRows


def grouped(sequences: Sequence[ScheduledSequence], cache: KVCache) -> list[list[int]]:
    """Indexes of the rows that attend together, those of a group side by side."""
    if cache.kernels is None and cache.paged is None:
        return _alike(sequences, range(len(sequences)))
    decodes = [index for index, row in enumerate(sequences) if row.num_new_tokens == 1]
    chunks = [index for index, row in enumerate(sequences) if row.num_new_tokens > 1]
    others = [chunks] if cache.kernels is not None else _alike(sequences, chunks)
    return [group for group in (decodes, *others) if group]


def _alike(sequences: Sequence[ScheduledSequence], indexes: Sequence[int]) -> list[list[int]]:
    """Groups whose blocks can be gathered with little padding."""

    def size(index: int) -> tuple[int, bool, int]:
        row = sequences[index]
        return row.num_new_tokens, row.num_computed_tokens == 0, row.position

    groups: list[list[int]] = []
    lead = (0, False, 0)
    for index in sorted(indexes, key=size):
        new, begins, keys = size(index)
        if (new, begins) != lead[:2] or keys > 2 * lead[2]:
            groups.append([])
            lead = (new, begins, keys)
        groups[-1].append(index)
    return groups


def row_groups(
    sequences: Sequence[ScheduledSequence],
    groups: list[list[int]],
    cache: KVCache,
    window: int,
    dtype: torch.dtype,
) -> list[RowGroup]:
    """The groups as one kind of layer sees them; the window (0: none) decides the kind."""
    made: list[RowGroup] = []
    start = 0
    for group in groups:
        rows = [sequences[index] for index in group]
        made.append(_row_group(rows, start, cache, window, dtype))
        start += sum(row.num_new_tokens for row in rows)
    return made


def _row_group(
    rows: Sequence[ScheduledSequence], start: int, cache: KVCache, window: int, dtype: torch.dtype
) -> RowGroup:
    block_size, device = cache.block_size, cache.device
    if cache.paged is not None and rows[0].num_new_tokens == 1:
        return _paged_rows(rows, start, cache, window)
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
    key_rows = as_tensor(blocks, device) * cache.block_rows_per_block
    num_queries = rows[0].num_new_tokens
    if cache.kernels is not None and num_queries == 1:
        starts = [max(0, keys - window) if window else 0 for keys in num_keys]
        return DecodeRows(
            start=start,
            block_rows=key_rows.view(len(rows), num_blocks),
            starts=as_tensor(array("q", starts), device),
            counts=as_tensor(array("q", num_keys), device),
        )
    # Positions counted from the row's first block.
    offsets = [r.num_computed_tokens - f * block_size for r, f in zip(rows, first_blocks, strict=True)]
    positions = as_tensor(array("q", offsets), device)
    if cache.kernels is not None:
        tokens = array("q", accumulate((row.num_new_tokens for row in rows), initial=0))
        return ChunkRows(
            start=start,
            num_tokens=tokens[-1],
            block_rows=key_rows.view(len(rows), num_blocks),
            tokens=as_tensor(tokens, device),
            positions=positions,
            window=window,
        )
    is_causal = num_queries > 1 and rows[0].num_computed_tokens == 0 and (not window or width <= window)
    hides = num_queries > 1 or min(num_keys) < width or (0 < window < width)
    return GatheredRows(
        start=start,
        num_rows=len(rows),
        num_queries=num_queries,
        num_keys=width,
        block_rows=torch.cat((key_rows, key_rows + 1)),
        mask=_mask(positions, num_queries, width, window, dtype) if hides and not is_causal else None,
        is_causal=is_causal,
    )


def _paged_rows(rows: Sequence[ScheduledSequence], start: int, cache: KVCache, window: int) -> PagedRows:
    blocks, tables = array("q"), array("q")
    for row in rows:
        tables.append(len(blocks))
        blocks.extend(row.block_ids)
    return PagedRows(
        start=start,
        blocks=as_tensor(blocks, cache.device),
        tables=as_tensor(tables, cache.device),
        positions=as_tensor(array("q", [row.num_computed_tokens for row in rows]), cache.device),
        window=window,
    )


def _mask(positions: Tensor, num_queries: int, num_keys: int, window: int, dtype: torch.dtype) -> Tensor:
    """What is added to the scores, (rows, 1, queries, keys): 0 for keys that a query sees, -inf for others."""
    device = positions.device
    queries = positions.view(-1, 1, 1, 1) + torch.arange(num_queries, device=device).view(1, 1, -1, 1)
    keys = torch.arange(num_keys, device=device)
    hidden = keys > queries
    if window:
        hidden |= keys <= queries - window
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
