"""The paged pool of keys and values.

One tensor holds everything: (num_blocks, layers, 2, block_size, kv_heads, head_dim). A block with all its
layers is contiguous, so that a handoff copies whole blocks. The same memory seen as rows:

    block rows  row (block * layers + layer) * 2 + k_or_v    holds block_size * kv_heads * head_dim numbers
    token rows  row block_row * block_size + offset          holds kv_heads * head_dim numbers

so that storing a token and gathering a block are each one copy of consecutive memory.

In a block that is in use, slots that no token was written to yet are zero, never garbage: attention multiplies
them by a probability of zero, and zero times NaN would be NaN. `clear` makes that so for a block about to be
begun. The pool itself starts without content: memory that is never used is never taken.
"""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from tandem_engine.pool_memory import prefer_huge_pages, shareable_memory
from tandem_engine.torch_engine.device_copies import as_tensor, finish
from tandem_engine.torch_engine.kernels import Kernels
from tandem_engine.torch_engine.model_config import ModelConfig
from tandem_engine.torch_engine.paged_rows import PagedAttention


class KVCache:
    """Keys and values of all blocks of one model, and what attends to them in place, if anything: C or Triton."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: str,
        kernels: Kernels | None = None,
        paged: PagedAttention | None = None,
        shared: bool = False,
    ) -> None:
        """`shared`: in memory that other processes can be let to read, if it is the host's and the system has such."""
        supported = Kernels.supports(
            dtype=dtype,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            block_size=block_size,
        )
        self.kernels = kernels if supported else None
        self.paged = paged
        self.block_size = block_size
        self.num_layers = config.num_layers
        self.block_shape = block_shape(config, block_size)
        self.block_bytes = math.prod(self.block_shape) * dtype.itemsize
        shape = (num_blocks, *self.block_shape)
        on_host = device == "cpu"
        self.memory = shareable_memory(num_blocks * self.block_bytes) if shared and on_host else None
        if self.memory is not None:
            self._pool = torch.frombuffer(self.memory.view, dtype=dtype).view(shape)
        else:
            self._pool = torch.empty(shape, dtype=dtype, device=device)
            if on_host:
                prefer_huge_pages(self._pool.data_ptr(), self._pool.nbytes)
        self._token_rows = self._pool.view(-1, config.num_kv_heads * config.head_dim)
        self._block_rows = self._pool.view(-1, block_size * config.num_kv_heads * config.head_dim)
        self._copies = None if on_host else torch.cuda.Stream(self._pool.device)  # type: ignore[no-untyped-call]
        self._memory = self._pool.view(-1).view(torch.uint8).numpy().data if on_host else None

    @property
    def num_blocks(self) -> int:
        """Blocks in the pool."""
        return self._pool.shape[0]

    @property
    def pool(self) -> Tensor:
        """Everything: (num_blocks, layers, 2, block_size, kv_heads, head_dim)."""
        return self._pool

    @property
    def device(self) -> torch.device:
        """Where the pool lies."""
        return self._pool.device

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self._pool.dtype

    @property
    def token_rows_per_block(self) -> int:
        """Distance between the same token's rows in two neighbouring blocks."""
        return self.num_layers * 2 * self.block_size

    @property
    def block_rows_per_block(self) -> int:
        """Distance between the same layer's rows in two neighbouring blocks."""
        return self.num_layers * 2

    def store(self, key_rows: Tensor, keys: Tensor, value_rows: Tensor, values: Tensor) -> None:
        """Write the keys and values of one layer (tokens, kv_heads, head_dim) to their token rows (tokens,)."""
        self._token_rows.index_copy_(0, key_rows, keys.flatten(1))
        self._token_rows.index_copy_(0, value_rows, values.flatten(1))

    def gather(self, block_rows: Tensor) -> Tensor:
        """Copy block rows (n,) of one layer out of the pool: (n, block_size * kv_heads * head_dim)."""
        return self._block_rows.index_select(0, block_rows)

    def clear(self, block_ids: Sequence[int]) -> None:
        """Zero blocks that are about to be begun and will not be filled in the same step."""
        if self._memory is None:
            self._fill(block_ids, 0.0)
            return
        # A few blocks in every step: an operator costs more than what it would write.
        for block_id in block_ids:
            ctypes.memset(self._pool.data_ptr() + block_id * self.block_bytes, 0, self.block_bytes)

    def poison(self, block_ids: Sequence[int]) -> None:
        """Fill blocks with NaN, so that reading one that is not owned shows."""
        self._fill(block_ids, float("nan"))

    def views(self, block_ids: Sequence[int]) -> list[memoryview] | None:
        """The memory of blocks, a view for each stretch of neighbours; None when the pool is not the host's."""
        memory, size = self._memory, self.block_bytes
        if memory is None:
            return None
        return [memory[first * size : (first + count) * size] for _, first, count in _runs(block_ids)]

    def read(self, block_ids: Sequence[int], out: memoryview) -> None:
        """Copy blocks, one after another, into `out`; ValueError unless it has room for exactly these.

        On a GPU beside the step that is computed, whose blocks these are not; from any thread.
        """
        target = self._payload(block_ids, out)
        if self._memory is not None:
            # By one thread, wherever it is called from, and without the interpreter lock.
            for start, first, count in _runs(block_ids):
                ctypes.memmove(
                    target[start].data_ptr(), self._pool[first].data_ptr(), count * self.block_bytes
                )
            return
        with self._beside():
            for start, first, count in _runs(block_ids):
                target[start : start + count].copy_(self._pool[first : first + count], non_blocking=True)
            finish(self.device)

    def write(self, block_ids: Sequence[int], payload: memoryview) -> None:
        """Fill blocks from `payload`, laid out as in `read`; ValueError when its size differs."""
        # torch wants writable memory even for reading; what came in as bytes is copied once more.
        source = self._payload(block_ids, memoryview(bytearray(payload)) if payload.readonly else payload)
        with self._beside():
            for start, first, count in _runs(block_ids):
                self._pool[first : first + count].copy_(source[start : start + count], non_blocking=True)
            finish(self.device)

    def _beside(self) -> AbstractContextManager[object]:
        """Work in it is not queued behind the step."""
        return nullcontext() if self._copies is None else torch.cuda.stream(self._copies)

    def _fill(self, block_ids: Sequence[int], value: float) -> None:
        if block_ids:
            self._pool.index_fill_(0, as_tensor(array("q", block_ids), self._pool.device), value)

    def _payload(self, block_ids: Sequence[int], payload: memoryview) -> Tensor:
        expected = len(block_ids) * self.block_bytes
        if payload.nbytes != expected:
            raise ValueError(
                f"{len(block_ids)} blocks of {self.block_bytes} bytes need {expected} bytes, got {payload.nbytes}"
            )
        if not expected:
            return self._pool[:0]
        return torch.frombuffer(payload, dtype=self._pool.dtype).view(-1, *self.block_shape)


def block_shape(config: ModelConfig, block_size: int) -> tuple[int, ...]:
    """Shape of one block: layers, keys and values, tokens, KV heads, head size."""
    return (config.num_layers, 2, block_size, config.num_kv_heads, config.head_dim)


def _runs(block_ids: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Stretches of consecutive blocks, as (index of the first, its block, how many): each is one copy."""
    start = 0
    for index in range(1, len(block_ids) + 1):
        if index == len(block_ids) or block_ids[index] != block_ids[index - 1] + 1:
            yield start, block_ids[start], index - start
            start = index
