"""Root-mean-square norm."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from tandem_engine.torch_engine.elementwise import rms_norm
from tandem_engine.torch_engine.model_config import ModelConfig
from tandem_engine.torch_engine.weights import Weights


class RMSNorm:
    """Root-mean-square norm over the last dimension, computed in float32.

    A weight in float32 makes the product with it exact too, as Gemma has it; the others round before it.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self._eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """Norm of x (..., size), in x's shape and dtype."""
        if self.weight.dtype is x.dtype:
            return rms_norm(x, self.weight, self._eps)
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self._eps).to(x.dtype)


def load_norm(weights: Weights, name: str, size: int, config: ModelConfig) -> RMSNorm:
    """The norm whose weight is called `name`.weight."""
    weight = weights.read(f"{name}.weight", size)
    return RMSNorm(weight.float() + 1.0 if config.unit_offset_norms else weight, config.rms_norm_eps)
