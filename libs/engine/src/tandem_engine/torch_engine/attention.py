"""Paged attention: kernels read the pool in place; without any, the blocks that a group of rows sees are gathered.

The gathering code runs on CPU and CUDA. A row's result does not depend on what else is in the batch, but for the
rounding of sums: padded keys take part with a probability of exactly zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from tandem_engine.torch_engine.capped_attention import attend_capped
from tandem_engine.torch_engine.kernels import ChunkRows
from tandem_engine.torch_engine.kv_cache import KVCache
from tandem_engine.torch_engine.paged_rows import PagedRows
from tandem_engine.torch_engine.row_groups import DecodeRows, GatheredRows, RowGroup


def attend(
    queries: Tensor, groups: Sequence[RowGroup], cache: KVCache, layer: int, softcap: float = 0.0
) -> Tensor:
    """Attention of `queries` (tokens, heads, head_dim) to the keys and values in the pool, of the same shape.

    Keys and values of the new tokens must be stored already. Scores are scaled by 1/sqrt(head_dim) and, unless
    `softcap` is 0, kept within it by a tanh before keys are hidden.
    """
    outputs = [_attend_group(queries, group, cache, layer, softcap) for group in groups]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend_group(queries: Tensor, group: RowGroup, cache: KVCache, layer: int, softcap: float) -> Tensor:
    match group:
        case PagedRows():
            assert cache.paged is not None
            own = queries[group.start : group.start + group.positions.shape[0]]
            return cache.paged(own, cache.pool, group, layer, softcap)
        case GatheredRows() if softcap:
            return attend_capped(queries, group, cache, layer, softcap)
        case DecodeRows():
            assert cache.kernels is not None
            assert not softcap  # a cache for such models has no kernels
            own = queries[group.start : group.start + group.starts.shape[0]]
            return cache.kernels.decode_attention(
                own, cache.pool, group.block_rows, group.starts, group.counts, layer
            )
        case ChunkRows():
            assert cache.kernels is not None
            return cache.kernels.chunk_attention(queries, cache.pool, group, layer)
        case GatheredRows():
            return _attend_gathered(queries, group, cache, layer)


def _attend_gathered(queries: Tensor, group: GatheredRows, cache: KVCache, layer: int) -> Tensor:
    num_heads, head_dim = queries.shape[1:]
    num_kv_heads = cache.block_shape[3]
    gathered = cache.gather(group.block_rows + 2 * layer).view(2, group.num_rows, -1, num_kv_heads, head_dim)
    keys, values = gathered[:, :, : group.num_keys].transpose(2, 3)  # each (rows, kv_heads, keys, head_dim)
    end = group.start + group.num_rows * group.num_queries
    queries = queries[group.start : end].view(group.num_rows, group.num_queries, num_heads, head_dim)
    if group.num_queries == 1:
        # The heads that share a KV head become its queries: each key is read once for all of them.
        queries = queries.view(group.num_rows, num_kv_heads, -1, head_dim)
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=group.mask)
        return out.reshape(group.num_rows, num_heads, head_dim)
    if group.mask is not None and num_heads != num_kv_heads:
        # With a mask no fused kernel of CUDA's knows grouped heads, and all scores would lie in memory at once.
        keys, values = (part.repeat_interleave(num_heads // num_kv_heads, 1) for part in (keys, values))
    out = F.scaled_dot_product_attention(
        queries.transpose(1, 2),
        keys,
        values,
        attn_mask=group.mask,
        is_causal=group.is_causal,
        enable_gqa=keys.shape[1] != num_heads,
    )
    return out.transpose(1, 2).reshape(end - group.start, num_heads, head_dim)
