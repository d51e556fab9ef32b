"""Steps as one call in C, from token ids to the likeliest tokens or to logits.

With few rows a product takes as long as its weights take to come from memory, and calling torch's operators between
products would cost as much again; with many, what lies between them still costs a fifth of a small model's step.
`short_step.c` does what `model.Transformer` does, with the same roundings, out of the same memory: here its parts are
laid out for it.
"""

from __future__ import annotations

import ctypes
import sys
from array import array
from typing import Protocol

import torch
from torch import Tensor

from tandem_engine.batch import Batch
from tandem_engine.torch_engine.flat_batch import flatten
from tandem_engine.torch_engine.kernels import LANES, Kernels, load_kernels
from tandem_engine.torch_engine.kv_cache import KVCache
from tandem_engine.torch_engine.linear import TILE, Linear
from tandem_engine.torch_engine.mlp import MLP
from tandem_engine.torch_engine.model import Layer, Transformer
from tandem_engine.torch_engine.model_config import ModelConfig
from tandem_engine.torch_engine.norm import RMSNorm
from tandem_engine.torch_engine.short_step_structs import Attention, LayerParts, Matrix, ModelParts, Step

# Above this many tokens processors with tile units (AMX) are faster by torch's operators, which use them.
_MAX_TOKENS_BESIDE_AMX = 32
# Rows of a stretch of tokens that attend together: as in C.
_STRETCH_ROWS = 192


class StepKernel(Protocol):
    """What runs a step; see `Kernels`."""

    def short_step(self, model: ctypes.Structure, step: ctypes.Structure, num_threads: int) -> None:
        """Compute, and leave results where `step` says."""
        ...


class ShortStep:
    """One model and its pool, seen by the kernel. What it points to belongs to the model and the cache."""

    def __init__(self, model: Transformer, config: ModelConfig, cache: KVCache) -> None:
        """Lay out a model for which `fits` was true, from the thread that will compute it."""
        kernels = load_kernels(cache.dtype)
        assert kernels is not None
        self.kernels: StepKernel = kernels
        self._cache = cache
        self._kept: list[object] = [model]  # what C points to
        self._vocab_size = config.vocab_size
        has_tile_units = cache.dtype is torch.bfloat16 and torch.cpu._is_amx_tile_supported()  # noqa: SLF001
        self.max_tokens = _MAX_TOKENS_BESIDE_AMX if has_tile_units else sys.maxsize
        self._row_numbers = (
            3 * config.hidden_size
            + (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
            + config.intermediate_size
        )
        # What torch would say is kept: between steps its code has left the processor's caches.
        self._num_threads = torch.get_num_threads()
        self._scratch = torch.empty(0, dtype=cache.dtype)
        self._scratch_address = self._num_scratch_rows = 0
        self._stretch_tokens = _STRETCH_ROWS * config.num_kv_heads // config.num_heads
        layers = (LayerParts * config.num_layers)(
            *(self._layer(layer, config, index, model) for index, layer in enumerate(model.layers))
        )
        self._kept.append(layers)
        self._model = ModelParts(
            layers=ctypes.addressof(layers),
            num_layers=config.num_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            rotary_dim=model.rotations.table(0).shape[-1],
            vocab=config.vocab_size,
            gelu=config.activation != "silu",
            attention=Attention(
                block_stride=cache.pool.stride(0),
                block_size=cache.block_size,
                heads=config.num_heads,
                kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                scale=config.head_dim**-0.5,
                softcap=config.attention_softcap,
            ),
            pool=cache.pool.data_ptr(),
            embeddings=None if model.embeddings.table is None else model.embeddings.table.data_ptr(),
            head=self._matrix(model.head),
            norm=self._norm(model.norm),
            eps=config.rms_norm_eps,
            embedding_scale=model.embeddings.scale,
            query_scale=config.query_scale,
            logit_softcap=config.logit_softcap,
        )

    @staticmethod
    def fits(model: Transformer, config: ModelConfig, cache: KVCache) -> bool:
        """Whether the kernel knows all parts of a model and their sizes."""
        return (
            cache.device.type == "cpu"
            and load_kernels(cache.dtype) is not None
            and Kernels.supports(
                dtype=cache.dtype,
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                block_size=cache.block_size,
            )
            and config.hidden_size % LANES == 0
            and config.intermediate_size % TILE == 0
            and all(_layer_fits(layer, model.rotations.table(i)) for i, layer in enumerate(model.layers))
            and model.head.tiles is not None
        )

    def takes(self, batch: Batch) -> bool:
        """Whether a batch is faster this way."""
        return sum(row.num_new_tokens for row in batch.sequences) <= self.max_tokens

    def likeliest(self, batch: Batch, num_drawing: int) -> list[int]:
        """Compute a step; the likeliest token of each of the rows that draw one, of several the first."""
        likeliest = array("q", bytes(8 * num_drawing))
        best = array("f", bytes(4 * num_drawing * self._num_threads))
        tokens = array("q", bytes(8 * num_drawing * self._num_threads))
        self._run(
            batch,
            likeliest=likeliest.buffer_info()[0],
            best=best.buffer_info()[0],
            best_tokens=tokens.buffer_info()[0],
        )
        return likeliest.tolist()

    def logits(self, batch: Batch) -> Tensor:
        """Compute a step; logits (drawing rows, vocab_size), float32."""
        logits = torch.empty(sum(row.draws_token for row in batch.sequences), self._vocab_size)
        self._run(batch, logits=logits.data_ptr())
        return logits

    def _run(self, batch: Batch, **results: int) -> None:
        flat = flatten(batch, block_size=self._cache.block_size, stretch_tokens=self._stretch_tokens)
        self._cache.clear(flat.begun_blocks)
        num_rows = len(flat.token_ids)
        if self._num_scratch_rows < num_rows:
            self._scratch = torch.empty(num_rows * self._row_numbers, dtype=self._cache.dtype)
            self._scratch_address, self._num_scratch_rows = self._scratch.data_ptr(), num_rows
        step = Step(
            rows=num_rows,
            token_ids=flat.token_ids.buffer_info()[0],
            positions=flat.positions.buffer_info()[0],
            blocks=flat.blocks.buffer_info()[0],
            tables=flat.tables.buffer_info()[0],
            num_single=len(flat.single),
            single=flat.single.buffer_info()[0],
            num_stretches=len(flat.stretches) // 2,
            stretches=flat.stretches.buffer_info()[0],
            num_drawing=len(flat.drawing),
            drawing=flat.drawing.buffer_info()[0],
            scratch=self._scratch_address,
            **results,
        )
        self.kernels.short_step(self._model, step, self._num_threads)

    def _layer(self, layer: Layer, config: ModelConfig, index: int, model: Transformer) -> LayerParts:
        assert isinstance(layer.mlp, MLP)
        attention, mlp = layer.attention, layer.mlp
        cos, sin = model.rotations.table(index)
        return LayerParts(
            qkv=self._matrix(attention.qkv),
            output=self._matrix(attention.output),
            gate_up=self._matrix(mlp.gate_up),
            down=self._matrix(mlp.down),
            attention_norm=self._norm(layer.attention_norm),
            q_norm=self._norm(attention.q_norm),
            k_norm=self._norm(attention.k_norm),
            after_attention=self._norm(layer.after_attention),
            mlp_norm=self._norm(layer.mlp_norm),
            after_mlp=self._norm(layer.after_mlp),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            window=config.windows[index],
        )

    def _matrix(self, linear: Linear) -> Matrix:
        assert linear.tiles is not None
        bias = None
        if linear.bias is not None:  # as wide as the tiles
            bias = self._pointer_to(
                torch.nn.functional.pad(linear.bias, (0, -linear.out_features % TILE)).contiguous()
            )
        return Matrix(
            tiles=linear.tiles.data_ptr(), bias=bias, outputs=linear.out_features, inputs=linear.in_features
        )

    def _norm(self, norm: RMSNorm | None) -> int | None:
        return None if norm is None else self._pointer_to(norm.weight.float())

    def _pointer_to(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()


def _layer_fits(layer: Layer, rotations: Tensor) -> bool:
    if not isinstance(layer.mlp, MLP):
        return False
    linears = (layer.attention.qkv, layer.attention.output, layer.mlp.gate_up, layer.mlp.down)
    return rotations.shape[-1] % (2 * LANES) == 0 and all(linear.tiles is not None for linear in linears)
