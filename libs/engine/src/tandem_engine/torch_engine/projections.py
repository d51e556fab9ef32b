"""Loading a Linear from the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from tandem_engine.torch_engine.linear import Linear
from tandem_engine.torch_engine.weights import Weights


def load_linear(
    weights: Weights, parts: Mapping[str, int], in_features: int, *, bias: bool = False
) -> Linear:
    """Projections of one input, fused; `parts` gives their names and widths in order."""
    rows = list(parts.values())
    weight = weights.stack([f"{name}.weight" for name in parts], rows, in_features)
    return Linear(weight, weights.stack([f"{name}.bias" for name in parts], rows) if bias else None)
