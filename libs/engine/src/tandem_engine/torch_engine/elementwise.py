"""Small steps between products: one pass over memory each where there are kernels, torch's operators elsewhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from tandem_engine.torch_engine.kernels import LANES, Kernels, load_kernels


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension of x, computed in float32, in x's shape and dtype."""
    kernels = _kernels(x, x.shape[-1], weight)
    if kernels is not None and x.ndim <= 3 and _has_consecutive_heads(x):
        return kernels.rms_norm(x, weight, eps)
    return F.rms_norm(x, weight.shape, weight, eps)


def silu_gate(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, where gate and up are the halves of each row of (rows, 2 * width)."""
    kernels = _kernels(gate_up, gate_up.shape[1] // 2)
    if kernels is not None and gate_up.is_contiguous():
        return kernels.silu_gate(gate_up)
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Sum of x * cos and swapped * sin, where swapped is x with the halves of its heads swapped.

    x is (tokens, heads, size), cos and sin are (tokens, 1, size).
    """
    kernels = _kernels(x, x.shape[2] // 2, cos, sin)
    if kernels is not None and _has_consecutive_heads(x) and cos.is_contiguous() and sin.is_contiguous():
        return kernels.rotate(x, cos, sin)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def _kernels(x: Tensor, size: int, *others: Tensor) -> Kernels | None:
    if size % LANES or x.device.type != "cpu" or any(other.dtype is not x.dtype for other in others):
        return None
    return load_kernels(x.dtype)


def _has_consecutive_heads(x: Tensor) -> bool:
    """Whether the heads (or the only row) of each token lie one after another, without gaps."""
    return x.stride(-1) == 1 and (x.ndim < 3 or x.stride(1) == x.shape[2])
