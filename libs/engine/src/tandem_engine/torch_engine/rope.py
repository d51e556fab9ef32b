"""Rotary position embedding: the table of angles and how queries and keys are turned by it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tandem_engine.torch_engine.model_config import RopeConfig


def inverse_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """Angle per position of each pair of dimensions (head_dim / 2, float32), scaled as `config` says.

    llama3 scaling follows Meta's Llama 3.1 release: short wavelengths stay, long ones are divided by `factor`,
    and those in between are interpolated.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (config.theta**exponents)
    if config.scaling == "linear":
        return frequencies / config.factor
    if config.scaling == "llama3":
        turns = config.original_max_position_embeddings / (2 * math.pi / frequencies)
        kept = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
        kept = kept.clamp(0.0, 1.0)
        return (1 - kept) * frequencies / config.factor + kept * frequencies
    return frequencies


class RotaryTable:
    """Cosines and sines of every position, in the model's dtype."""

    def __init__(
        self, config: RopeConfig, head_dim: int, num_positions: int, dtype: torch.dtype, device: str
    ) -> None:
        angles = torch.outer(torch.arange(num_positions).float(), inverse_frequencies(config, head_dim))
        cos, sin = angles.cos(), angles.sin()
        # A pair is (i, i + head_dim / 2): out = x * cos + swapped halves of x * (-sin, sin).
        table = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)))
        self._table = table.to(device=device, dtype=dtype)  # (2, num_positions, head_dim)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines for `rotate`, each (tokens, 1, head_dim)."""
        cos, sin = self._table.index_select(1, positions).unsqueeze(2)
        return cos, sin


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each head of x (tokens, heads, head_dim) by its token's angles."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
