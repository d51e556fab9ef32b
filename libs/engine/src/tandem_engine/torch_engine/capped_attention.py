"""Paged attention with soft-capped scores (Gemma 2), which torch's own attention does not know."""

from __future__ import annotations

import torch
from torch import Tensor

from tandem_engine.torch_engine.kv_cache import KVCache
from tandem_engine.torch_engine.row_groups import GatheredRows


def attend_capped(queries: Tensor, group: GatheredRows, cache: KVCache, layer: int, softcap: float) -> Tensor:
    """One group of `attend` of `attention`, with scores kept within `softcap` by a tanh before keys are hidden."""
    num_heads, head_dim = queries.shape[1:]
    num_kv_heads = cache.block_shape[3]
    gathered = cache.gather(group.block_rows + 2 * layer).view(2, group.num_rows, -1, num_kv_heads, head_dim)
    keys, values = gathered[:, :, : group.num_keys].permute(0, 1, 3, 2, 4).unsqueeze(3)
    end = group.start + group.num_rows * group.num_queries
    # The heads that share a KV head stand beside one another: (rows, kv_heads, heads of one, queries, head_dim).
    own = queries[group.start : end].view(group.num_rows, group.num_queries, num_kv_heads, -1, head_dim)
    scores = (own.permute(0, 2, 3, 1, 4) @ keys.transpose(-1, -2)).float() * head_dim**-0.5
    scores = (scores / softcap).tanh_().mul_(softcap)
    if group.mask is not None:
        scores += group.mask.unsqueeze(2)
    elif group.is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu_(1)
        scores.masked_fill_(hidden, float("-inf"))
    out = torch.matmul(scores.softmax(-1).to(values.dtype), values)
    return out.permute(0, 3, 1, 2, 4).reshape(end - group.start, num_heads, head_dim)
