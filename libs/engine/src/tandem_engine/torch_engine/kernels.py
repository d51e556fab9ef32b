"""Kernels in C for what torch has no operator for on a CPU.

Where there is no C compiler, or whatever else is lacking, there are no kernels, and callers go on with torch's own
operators: slower, and equal but for rounding.
"""

from __future__ import annotations

import ctypes
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tandem_common.logs import get_logger
from torch import Tensor

from tandem_engine.kernel_build import compiled_library

_STORAGE = {torch.float32: (), torch.bfloat16: ("-DSTORAGE_BFLOAT16",)}
_TASKS_PER_THREAD = 2
# What both attention kernels can do; as in decode_attention.c.
_MAX_SHARED, _MAX_HEAD_DIM, _MAX_BLOCK = 16, 256, 128
LANES = 16  # numbers that a kernel takes at once: sizes must be multiples of it

_log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkRows:
    """Rows with any numbers of new tokens each, for `chunk_attention`. Indexes are int64 and contiguous."""

    start: int  # first flat token
    num_tokens: int
    block_rows: Tensor  # (rows, blocks): keys' rows of layer 0
    tokens: Tensor  # (rows + 1,): where each row's tokens begin, counted from `start`, and where the last one's end
    positions: Tensor  # (rows,): each row's first token, counted in the slots of its block rows
    window: int  # keys that a token sees, itself included; 0: all


class Kernels:
    """The kernels of one dtype. Tensors are on the CPU, of that dtype, and live until the call returns."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._decode_attention = library.decode_attention
        self._decode_attention.argtypes = (
            *(ctypes.c_void_p,) * 6,
            *(ctypes.c_int64,) * 9,
            ctypes.c_float,
        )
        self._decode_attention.restype = ctypes.c_int
        self._chunk_attention = library.chunk_attention
        self._chunk_attention.argtypes = self._decode_attention.argtypes
        self._chunk_attention.restype = ctypes.c_int
        self._rms_norm = _function(library.rms_norm, 3, 4, ctypes.c_float)
        self._silu_gate = _function(library.silu_gate, 2, 2)
        self._rotate = _function(library.rotate, 4, 4)
        self._is_tiled = _function(library.is_tiled, 2, 2)
        self._is_tiled.restype = ctypes.c_int
        self._short_step = _function(library.short_step, 2, 1)

    @staticmethod
    def supports(
        *, dtype: torch.dtype, num_heads: int, num_kv_heads: int, head_dim: int, block_size: int
    ) -> bool:
        """Whether the attention kernels can do these sizes."""
        return (
            num_heads // num_kv_heads <= _MAX_SHARED
            and head_dim % (LANES * 4 // dtype.itemsize) == 0
            and head_dim <= _MAX_HEAD_DIM
            and block_size <= _MAX_BLOCK
        )

    def decode_attention(
        self, queries: Tensor, pool: Tensor, block_rows: Tensor, starts: Tensor, counts: Tensor, layer: int
    ) -> Tensor:
        """One query per row and head against the row's keys [starts, counts), of `queries`' shape.

        `queries` (rows, heads, head_dim) has its heads contiguous; `pool` as in KVCache; `block_rows` (rows, blocks)
        are block rows of layer 0's keys; `starts` and `counts` (rows,); all three int64 and contiguous. Scores are
        scaled by 1/sqrt(head_dim).
        """
        num_rows, num_heads, head_dim = queries.shape
        out = torch.empty((num_rows, num_heads, head_dim), dtype=queries.dtype)
        status = self._decode_attention(
            out.data_ptr(),
            queries.data_ptr(),
            pool.data_ptr(),
            block_rows.data_ptr(),
            starts.data_ptr(),
            counts.data_ptr(),
            num_rows,
            block_rows.shape[1],
            2 * layer,
            pool.shape[3],
            num_heads,
            pool.shape[4],
            head_dim,
            queries.stride(0),
            # Few rows are split by heads, to give every thread something to do.
            min(pool.shape[4], -(-_TASKS_PER_THREAD * torch.get_num_threads() // num_rows)),
            head_dim**-0.5,
        )
        if status:
            raise ValueError(f"decode_attention does not support queries of shape {tuple(queries.shape)}")
        return out

    def chunk_attention(self, queries: Tensor, pool: Tensor, rows: ChunkRows, layer: int) -> Tensor:
        """Attention of the rows' new tokens, each to what its row holds up to itself: (their number, heads, head_dim).

        `queries` (tokens, heads, head_dim) are those of the whole step, each token's heads contiguous; `pool` as in
        KVCache. Scores are scaled by 1/sqrt(head_dim).
        """
        num_heads, head_dim = queries.shape[1:]
        queries = queries[rows.start : rows.start + rows.num_tokens]
        out = torch.empty(queries.shape, dtype=queries.dtype)
        status = self._chunk_attention(
            out.data_ptr(),
            queries.data_ptr(),
            pool.data_ptr(),
            rows.block_rows.data_ptr(),
            rows.tokens.data_ptr(),
            rows.positions.data_ptr(),
            rows.positions.shape[0],
            rows.block_rows.shape[1],
            2 * layer,
            pool.shape[3],
            num_heads,
            pool.shape[4],
            head_dim,
            queries.stride(0),
            rows.window,
            head_dim**-0.5,
        )
        if status:
            raise ValueError(f"chunk_attention does not support queries of shape {tuple(queries.shape)}")
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Norm over the last dimension of x (rows, size) or (tokens, heads, size), each token's heads contiguous."""
        outer, size = x.shape[0], x.shape[-1]
        out = torch.empty(x.shape, dtype=x.dtype)
        inner = x.shape[1] if x.ndim == 3 else 1
        self._rms_norm(out.data_ptr(), x.data_ptr(), weight.data_ptr(), outer, inner, size, x.stride(0), eps)
        return out

    def silu_gate(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up of (rows, gate and up), contiguous: (rows, width)."""
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty((rows, width), dtype=gate_up.dtype)
        self._silu_gate(out.data_ptr(), gate_up.data_ptr(), rows, width)
        return out

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """X * cos + swapped halves of x * sin; x (tokens, heads, size), each token's heads contiguous."""
        out = torch.empty(x.shape, dtype=x.dtype)
        tokens, heads, size = x.shape
        self._rotate(
            out.data_ptr(), x.data_ptr(), cos.data_ptr(), sin.data_ptr(), tokens, heads, size, x.stride(0)
        )
        return out

    def is_tiled(self, tiles: Tensor, weight: Tensor) -> bool:
        """Whether `tiles` (see Linear.tiles) hold `weight` (outputs, inputs), contiguous."""
        return bool(self._is_tiled(tiles.data_ptr(), weight.data_ptr(), *weight.shape))

    def short_step(self, model: ctypes.Structure, step: ctypes.Structure, num_threads: int) -> None:
        """Run short_step.c; both structs and all they point to are its."""
        self._short_step(ctypes.byref(model), ctypes.byref(step), num_threads)


def _function(function: Any, num_pointers: int, num_sizes: int, *rest: Any) -> Any:
    function.argtypes = (*(ctypes.c_void_p,) * num_pointers, *(ctypes.c_int64,) * num_sizes, *rest)
    function.restype = None
    return function


@cache
def load_kernels(dtype: torch.dtype) -> Kernels | None:
    """The kernels for tensors of `dtype`, compiled now unless they were before; None when that is not possible."""
    try:
        return Kernels(ctypes.CDLL(str(compiled_library(Path(__file__).parent, _STORAGE[dtype]))))
    except (OSError, subprocess.SubprocessError, KeyError, AttributeError) as error:
        _log.info("kernels.unavailable", reason=f"{type(error).__name__}: {error}")
        return None
