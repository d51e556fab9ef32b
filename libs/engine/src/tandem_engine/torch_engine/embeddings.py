"""Token embeddings: a table, or rows of the output's weight where a model uses one weight for both."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from tandem_engine.torch_engine.linear import TILE, Linear


class Embeddings:
    """A vector per token id, times `scale`. A weight that lies in the head's tiles is not held a second time."""

    def __init__(self, table: Tensor, scale: float, head: Linear | None) -> None:
        """`head` was made of the same `table` (vocab_size, hidden); None when they are two weights."""
        # Rounded to the model's dtype, as it was in training.
        self.scale: float = table.new_tensor(scale).item()
        self._tiles = head.tiles if head is not None else None
        self.table = table if self._tiles is None else None

    def __call__(self, token_ids: Tensor) -> Tensor:
        """(tokens,) to (tokens, hidden)."""
        if self._tiles is not None:
            x = self._tiles[token_ids // TILE, :, token_ids % TILE].flatten(1)
        else:
            assert self.table is not None
            x = F.embedding(token_ids, self.table)
        return x * self.scale if self.scale != 1.0 else x
