"""Matrix products with a model's weights: the one place that decides how weights lie in memory.

A Linear owns its weight and nobody else touches it, so that packed layouts, quantised weights or special
kernels for few rows are a change of this file.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor


class Linear:
    """y = x W^T + b; several projections of the same input are fused by stacking their rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._weight = weight  # (out_features, in_features), contiguous
        self._bias = bias  # (out_features,)

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self._weight.shape[0]

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, in_features) to (rows, out_features), in x's dtype."""
        return F.linear(x, self._weight, self._bias)
