"""Decode attention on a GPU, as two Triton kernels: keys and values are read where they lie in the paged pool.

A row's keys are split into stretches that are attended to side by side, each by one program for all query heads that
share a KV head; a second kernel adds the parts up (flash decoding, Dao et al. 2023). Numbers of programs depend on the
batch's size only, never on contexts, so that both kernels can be captured in a CUDA graph.
"""

# Triton's language has no types, and triton may not be installed where types are checked. Constants are in capitals.
# mypy: ignore-errors
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tandem_engine.torch_engine.paged_rows import PagedRows

# Keys that a program looks at together; fewer for wide heads, which need more registers each.
_TILE, _WIDE_TILE, _WIDE_DIM = 64, 32, 128
_MOST_SPLITS = 64
# tl.dot wants as many rows.
_LEAST_HEADS = 16
# Programs per processor at which splitting further brings nothing.
_PROGRAMS_PER_PROCESSOR = 2


class TritonAttention:
    """`PagedAttention` of `paged_rows` for a GPU with so many multiprocessors."""

    def __init__(self, num_processors: int) -> None:
        self._num_programs = _PROGRAMS_PER_PROCESSOR * num_processors

    def __call__(self, queries: Tensor, pool: Tensor, rows: PagedRows, layer: int, softcap: float) -> Tensor:
        """As the protocol says."""
        num_rows, num_heads, head_dim = queries.shape
        block_size, num_kv_heads = pool.shape[3:5]
        num_splits = self.num_splits(num_rows, num_kv_heads)
        parts = torch.empty(
            (num_rows, num_heads, num_splits, head_dim), dtype=torch.float32, device=queries.device
        )
        log_sums = torch.empty(parts.shape[:3], dtype=torch.float32, device=queries.device)
        out = torch.empty((num_rows, num_heads, head_dim), dtype=queries.dtype, device=queries.device)
        num_shared = num_heads // num_kv_heads
        padded_dim = triton.next_power_of_2(max(head_dim, 16))
        _attend_stretch[(num_rows, num_kv_heads, num_splits)](
            parts,
            log_sums,
            queries,
            pool[:, layer, 0],
            pool[:, layer, 1],
            rows.blocks,
            rows.tables,
            rows.positions,
            queries.stride(0),
            pool.stride(0),
            head_dim**-0.5,
            WINDOW=rows.window,
            SOFTCAP=softcap,
            BLOCK_SIZE=block_size,
            KV_HEADS=num_kv_heads,
            SHARED=num_shared,
            HEADS=triton.next_power_of_2(max(num_shared, _LEAST_HEADS)),
            DIM=head_dim,
            PADDED_DIM=padded_dim,
            TILE=_TILE if padded_dim <= _WIDE_DIM else _WIDE_TILE,
            SPLITS=num_splits,
        )
        _add_parts[(num_rows * num_heads,)](
            out, parts, log_sums, DIM=head_dim, PADDED_DIM=padded_dim, SPLITS=num_splits
        )
        return out

    def num_splits(self, num_rows: int, num_kv_heads: int) -> int:
        """Stretches of each row's keys: a power of two that gives every processor something to do."""
        wanted = -(-self._num_programs // (num_rows * num_kv_heads))
        return min(_MOST_SPLITS, triton.next_power_of_2(wanted))


@triton.jit
def _attend_stretch(
    parts,  # (rows, heads, SPLITS, DIM), float32: written
    log_sums,  # (rows, heads, SPLITS), float32: written; -inf where a stretch has no keys
    queries,  # (rows, heads, DIM), the heads of a row contiguous
    keys,  # of one layer: block_stride between blocks, each (BLOCK_SIZE, KV_HEADS, DIM)
    values,
    blocks,
    tables,
    positions,
    query_stride,
    block_stride,
    scale,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SHARED: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    TILE: tl.constexpr,
    SPLITS: tl.constexpr,
):
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    table = tl.load(tables + row)
    count = tl.load(positions + row).to(tl.int32) + 1
    first = 0
    if WINDOW:
        first = tl.maximum(count - WINDOW, 0)
    stretch = tl.cdiv(tl.cdiv(count - first, SPLITS), TILE) * TILE
    begin = first + split * stretch
    end = tl.minimum(begin + stretch, count)

    heads, dims = tl.arange(0, HEADS), tl.arange(0, PADDED_DIM)
    has_dim = dims[None, :] < DIM
    is_head = heads < SHARED
    head = kv_head * SHARED + heads
    query = tl.load(
        queries + row.to(tl.int64) * query_stride + head[:, None] * DIM + dims[None, :],
        mask=is_head[:, None] & has_dim,
        other=0.0,
    )
    peak = tl.full((HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((HEADS,), tl.float32)
    out = tl.zeros((HEADS, PADDED_DIM), tl.float32)
    for start in range(begin, end, TILE):
        at = start + tl.arange(0, TILE)
        # What lies beyond is not read: it may be anything, NaN too.
        inside = at < end
        block = tl.load(blocks + table + at // BLOCK_SIZE, mask=inside, other=0)
        place = block * block_stride + (at % BLOCK_SIZE) * (KV_HEADS * DIM) + kv_head * DIM
        place = place[:, None] + dims[None, :]
        wanted = inside[:, None] & has_dim
        key = tl.load(keys + place, mask=wanted, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        if SOFTCAP > 0.0:
            scores = SOFTCAP * (2.0 * tl.sigmoid(2.0 / SOFTCAP * scores) - 1.0)
        scores = tl.where(inside[None, :], scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        shrunk = tl.exp(peak - new_peak)
        weights = tl.exp(scores - new_peak[:, None])
        value = tl.load(values + place, mask=wanted, other=0.0)
        out = out * shrunk[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        total = total * shrunk + tl.sum(weights, 1)
        peak = new_peak
    is_empty = begin >= end
    total = tl.where(is_empty, 1.0, total)
    at = (row.to(tl.int64) * (KV_HEADS * SHARED) + head) * SPLITS + split
    tl.store(parts + at[:, None] * DIM + dims[None, :], out / total[:, None], mask=is_head[:, None] & has_dim)
    tl.store(log_sums + at, peak + tl.log(total), mask=is_head)


@triton.jit
def _add_parts(
    out,
    parts,
    log_sums,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    SPLITS: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    splits, dims = tl.arange(0, SPLITS), tl.arange(0, PADDED_DIM)
    has_dim = dims < DIM
    log_sum = tl.load(log_sums + head * SPLITS + splits)
    shares = tl.exp(log_sum - tl.max(log_sum, 0))
    shares = shares / tl.sum(shares, 0)
    part = tl.load(
        parts + (head * SPLITS + splits[:, None]) * DIM + dims[None, :], mask=has_dim[None, :], other=0.0
    )
    tl.store(
        out + head * DIM + dims, tl.sum(part * shares[:, None], 0).to(out.dtype.element_ty), mask=has_dim
    )
