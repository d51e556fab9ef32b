"""Matrix products with a model's weights: the one place that decides how weights lie in memory.

A Linear owns its weight and nobody else touches it, so that packed layouts, quantised weights or special
kernels for few rows are a change of this file.

On a CPU that multiplies bfloat16, weights are packed once into the tiles that oneDNN's kernels read in order.
Without that it packs them anew in every product, which costs more than the product when there are few rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

# oneDNN as torch's own compiler calls it; there is no public name.
_ONEDNN: Any = torch.ops.mkldnn

# The layout is chosen for products of this many rows, and serves all others too.
_PACKED_FOR_ROWS = 32


def packs(dtype: torch.dtype, device: str) -> bool:
    """Whether weights of this dtype are packed on this device: a packed weight is a copy of its tensor."""
    return (
        dtype is torch.bfloat16
        and device == "cpu"
        and torch._C._has_mkldnn  # noqa: SLF001 - what torch.backends.mkldnn.is_available() returns, typed
        and hasattr(_ONEDNN, "_reorder_linear_weight")
        and bool(_ONEDNN._is_mkldnn_bf16_supported())  # noqa: SLF001
    )


class Linear:
    """y = x W^T + b; several projections of the same input are fused by stacking their rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.out_features = weight.shape[0]
        self._bias = bias  # (out_features,)
        self._is_packed = packs(weight.dtype, weight.device.type)
        # (out_features, in_features), contiguous or packed
        self._weight = (
            _ONEDNN._reorder_linear_weight(weight, _PACKED_FOR_ROWS) if self._is_packed else weight  # noqa: SLF001
        )

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, in_features) to (rows, out_features), in x's dtype."""
        if self._is_packed:
            product: Tensor = _ONEDNN._linear_pointwise(x, self._weight, self._bias, "none", [], "")  # noqa: SLF001
            return product
        return F.linear(x, self._weight, self._bias)
