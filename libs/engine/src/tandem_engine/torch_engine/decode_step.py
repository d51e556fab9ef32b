"""A decode step as a function of one tensor of integers: nothing in it waits for the device or depends on the host.

So it can be captured in a CUDA graph, once for each number of rows, and replayed after copying the integers alone:

    token ids (rows) | positions (rows) | tables (rows) | blocks (the rest)

where a row's entry in `tables` says where in `blocks` its block table begins. A batch is padded to the next size. Rows
of padding have a block of their own, which nobody else reads.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass

import torch
from torch import Tensor

from tandem_engine.torch_engine.flat_batch import FlatBatch
from tandem_engine.torch_engine.kv_cache import KVCache
from tandem_engine.torch_engine.model import Transformer
from tandem_engine.torch_engine.paged_rows import PagedRows
from tandem_engine.torch_engine.step_inputs import StepInputs

_SMALL_SIZES = (1, 2, 4)
_SIZE_STEP = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeResult:
    """What a step made of each row."""

    tokens: Tensor  # (rows,): the likeliest ones
    logits: Tensor  # (rows, vocab_size), float32


def decode_sizes(max_rows: int) -> list[int]:
    """Numbers of rows to capture steps for, rising: at most 7 rows are padding."""
    sizes = [size for size in _SMALL_SIZES if size < max_rows]
    return [*sizes, *range(_SIZE_STEP, max_rows, _SIZE_STEP), max_rows]


class DecodeStep:
    """Steps of one model and its pool. `windows` are the model's; the scratch block is nobody else's."""

    def __init__(
        self, model: Transformer, cache: KVCache, *, windows: frozenset[int], scratch_block: int
    ) -> None:
        self.cache = cache
        self.vocab_size = model.head.out_features
        self._model = model
        self._windows = windows
        self._scratch_block = scratch_block

    def num_integers(self, num_rows: int, max_context_tokens: int) -> int:
        """Length of the tensor for so many rows, however long they are."""
        max_blocks = math.ceil(max_context_tokens / self.cache.block_size)
        return num_rows * (3 + max_blocks + 1) + 1  # a table may be a block longer

    def pack(self, flat: FlatBatch, size: int) -> array[int]:
        """The integers of a batch that decodes only, padded to `size` rows."""
        padding = [0] * (size - len(flat.token_ids))
        # Padding stands at position 0 of the scratch block, whose number comes behind all others.
        tables = [len(flat.blocks)] * len(padding)
        packed = flat.token_ids + array("q", padding)
        packed += flat.positions + array("q", padding)
        packed += flat.tables + array("q", tables)
        packed += flat.blocks
        packed.append(self._scratch_block)
        return packed

    def compute(self, integers: Tensor, size: int) -> DecodeResult:
        """Store the rows' keys and values and compute what follows their tokens; `integers` as in `pack`."""
        token_ids, positions, tables = integers[: 3 * size].view(3, size)
        blocks, cache = integers[3 * size :], self.cache
        block_size, device = cache.block_size, cache.device
        block_of_token = blocks[tables + positions // block_size]
        slots = block_of_token * cache.token_rows_per_block + positions % block_size
        layers = torch.arange(cache.num_layers, device=device).unsqueeze(1) * (2 * block_size)
        groups = {
            window: PagedRows(start=0, blocks=blocks, tables=tables, positions=positions, window=window)
            for window in self._windows
        }
        inputs = StepInputs(
            token_ids=token_ids,
            positions=positions,
            key_rows=layers + slots,
            value_rows=layers + slots + block_size,
            groups={window: [group] for window, group in groups.items()},
            last_tokens=torch.arange(size, device=device),
            drawing=list(range(size)),
            begun_blocks=[],  # whoever runs the step has cleared them
        )
        logits = self._model(inputs, cache)
        return DecodeResult(tokens=logits.max(-1).indices, logits=logits)
