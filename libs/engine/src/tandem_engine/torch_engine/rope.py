"""Rotary position embedding: the table of angles and how queries and keys are turned by it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tandem_engine.torch_engine import elementwise
from tandem_engine.torch_engine.model_config import ModelConfig
from tandem_engine.torch_engine.rope_config import RopeConfig

Rotation = tuple[Tensor, Tensor]  # cosines and signed sines of a step's tokens, each (tokens, 1, rotary_dim)


def inverse_frequencies(config: RopeConfig, head_dim: int, num_positions: int = 1) -> Tensor:
    """Angle per position of each pair of dimensions (rotary_dim / 2, float32), scaled as `config` says.

    llama3 scaling follows Meta's Llama 3.1 release: short wavelengths stay, long ones are divided by `factor`,
    and those in between are interpolated. longrope divides each by a factor of its own (Ding et al. 2024), for
    which the context's length decides.
    """
    rotary_dim = config.rotary_dim(head_dim)
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.int64).float() / rotary_dim
    frequencies = 1.0 / (config.theta**exponents)
    if config.scaling == "linear":
        return frequencies / config.factor
    if config.scaling == "llama3":
        turns = config.original_max_position_embeddings / (2 * math.pi / frequencies)
        kept = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
        kept = kept.clamp(0.0, 1.0)
        return (1 - kept) * frequencies / config.factor + kept * frequencies
    if config.scaling == "longrope":
        factors = config.long_factors if config.is_long(num_positions) else config.short_factors
        return frequencies / torch.tensor(factors)
    return frequencies


class RotaryTable:
    """Cosines and sines of every position, in the model's dtype."""

    def __init__(
        self, config: RopeConfig, head_dim: int, num_positions: int, dtype: torch.dtype, device: str
    ) -> None:
        frequencies = inverse_frequencies(config, head_dim, num_positions)
        angles = torch.outer(torch.arange(num_positions).float(), frequencies)
        cos, sin = angles.cos() * config.attention_factor, angles.sin() * config.attention_factor
        # A pair is (i, i + rotary_dim / 2): out = x * cos + swapped halves of x * (-sin, sin).
        table = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)))
        self.table = table.to(device=device, dtype=dtype)  # (2, num_positions, rotary_dim)

    def at(self, positions: Tensor) -> Rotation:
        """Cosines and signed sines for `rotate`, each (tokens, 1, rotary_dim)."""
        cos, sin = self.table.index_select(1, positions).unsqueeze(2)
        return cos, sin


class LayerRotations:
    """The tables of a model's layers: one, or another one for layers with a window."""

    def __init__(self, config: ModelConfig, num_positions: int, dtype: torch.dtype, device: str) -> None:
        layers = [config.window_rope if window else config.rope for window in config.windows]
        self._ropes = list(dict.fromkeys(layers))
        self._table_of_layer = [self._ropes.index(rope) for rope in layers]
        self._tables = [
            RotaryTable(rope, config.head_dim, num_positions, dtype, device) for rope in self._ropes
        ]
        self.is_long = config.rope.is_long(num_positions)

    def table(self, layer: int) -> Tensor:
        """Cosines and signed sines of a layer's every position, (2, positions, rotary_dim)."""
        return self._tables[self._table_of_layer[layer]].table

    def at(self, positions: Tensor) -> list[Rotation]:
        """For each layer what `rotate` needs at these positions (tokens,)."""
        rotations = [table.at(positions) for table in self._tables]
        return [rotations[table] for table in self._table_of_layer]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first rotary_dim numbers of each head of x (tokens, heads, head_dim) by its token's angles."""
    rotary_dim = cos.shape[-1]
    if rotary_dim < x.shape[-1]:
        return torch.cat((rotate(x[..., :rotary_dim], cos, sin), x[..., rotary_dim:]), -1)
    return elementwise.rotate(x, cos, sin)
