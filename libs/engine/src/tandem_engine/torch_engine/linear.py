"""Matrix products with a model's weights: the one place that decides how weights lie in memory.

A Linear owns its weight and nobody else touches it, so that packed layouts, quantised weights or special
kernels for few rows are a change of this file.

On a CPU weights are packed once into the tiles that oneDNN's kernels read in order. Without that it packs them anew in
every product, which costs more than the product when there are few rows. The kernel for steps of few tokens reads
the same tiles, so that each weight lies in memory once.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from tandem_engine.torch_engine.kernels import load_kernels

# oneDNN as torch's own compiler calls it; there is no public name.
_ONEDNN: Any = torch.ops.mkldnn

# The layout is chosen for products of this many rows, and serves all others too.
_PACKED_FOR_ROWS = 32
TILE = 64  # outputs of a tile


@cache
def packs(dtype: torch.dtype, device: str) -> bool:
    """Whether weights of this dtype are packed on this device: a packed weight is a copy of its tensor."""
    return (
        device == "cpu"
        and torch._C._has_mkldnn  # noqa: SLF001 - what torch.backends.mkldnn.is_available() returns, typed
        and hasattr(_ONEDNN, "_reorder_linear_weight")
        and (dtype is torch.float32 or bool(_ONEDNN._is_mkldnn_bf16_supported()))  # noqa: SLF001
    )


@cache
def has_tiles(dtype: torch.dtype, device: str) -> bool:
    """Whether packed weights of this dtype have `Linear.tiles` on this device."""
    return Linear(torch.randn(2 * TILE, TILE, device=device).to(dtype)).tiles is not None


class Linear:
    """y = x W^T + b; several projections of the same input are fused by stacking their rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self.bias = bias  # (out_features,)
        self._is_packed = packs(weight.dtype, weight.device.type)
        # (out_features, in_features), contiguous or packed
        self._weight = (
            _ONEDNN._reorder_linear_weight(weight, _PACKED_FOR_ROWS) if self._is_packed else weight  # noqa: SLF001
        )
        # (tiles, in_features / pack, TILE, pack), pack being what fits into 32 bits, the last outputs padded: the
        # packed weight's own memory. None when it is not known to lie so.
        self.tiles = _tiles(self._weight, weight) if self._is_packed else None

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, in_features) to (rows, out_features), in x's dtype."""
        if self._is_packed:
            product: Tensor = _ONEDNN._linear_pointwise(x, self._weight, self.bias, "none", [], "")  # noqa: SLF001
            return product
        return F.linear(x, self._weight, self.bias)


def _tiles(packed: Tensor, weight: Tensor) -> Tensor | None:
    """The memory of `packed` as tiles, if that is what it is; compared with `weight`, since nobody promises it."""
    kernels = load_kernels(weight.dtype)
    num_outputs, num_inputs = weight.shape
    num_tiles, pack = -(-num_outputs // TILE), 4 // weight.dtype.itemsize
    num_bytes = num_tiles * TILE * num_inputs * weight.dtype.itemsize
    if kernels is None or not hasattr(_ONEDNN, "data_ptr") or _ONEDNN._nbytes(packed) != num_bytes:  # noqa: SLF001
        return None
    memory: Any = (ctypes.c_char * num_bytes).from_address(_ONEDNN.data_ptr(packed))
    memory.owner = packed  # which lives for as long as anybody looks at its memory
    tiles = torch.frombuffer(memory, dtype=weight.dtype).view(num_tiles, num_inputs // pack, TILE, pack)
    return tiles if kernels.is_tiled(tiles, weight) else None
