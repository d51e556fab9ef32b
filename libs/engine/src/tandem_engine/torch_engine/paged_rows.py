"""Rows that decode on a GPU, and what attends for them there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class PagedRows:
    """Rows with one new token each, whose keys and values are read in place. Integers are int64, on the device."""

    start: int  # first flat token
    blocks: Tensor  # (n,): the rows' block tables, one after another
    tables: Tensor  # (rows,): where in `blocks` each one's begins
    positions: Tensor  # (rows,): of the new token, which sees itself and what is before it
    window: int  # keys that a token sees, itself included; 0: all


class PagedAttention(Protocol):
    """The kernels of `triton_attention`, or in tests what they are compared with. Never waits for the device."""

    def __call__(self, queries: Tensor, pool: Tensor, rows: PagedRows, layer: int, softcap: float) -> Tensor:
        """Attention of one query per row, (rows, heads, head_dim), in the shape of `queries`.

        `queries` has each row's heads contiguous; `pool` is that of KVCache. Scores are scaled by 1/sqrt(head_dim) and,
        unless `softcap` is 0, kept within it by a tanh.
        """
        ...
