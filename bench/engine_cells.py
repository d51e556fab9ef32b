"""The cells of `bench/engine.py`: so many sequences with prompts of one length, prefilled or decoded."""

from __future__ import annotations

from dataclasses import dataclass

from engine_models import Shape
from machine_limits import MachineLimits

# Tokens that each sequence draws in a cell that decodes while all of them do.
DECODE_TOKENS = 24
# Prompt tokens of a step, as in engine_worker.py for a CPU (a GPU takes more): while the last prompts are computed, the
# first sequences decode.
STEP_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row of the table."""

    kind: str  # "prefill" or "decode"
    num_sequences: int
    prompt_tokens: int

    @property
    def name(self) -> str:
        """How the command line and the table call it."""
        return f"{self.kind} {self.num_sequences}x{self.prompt_tokens}"

    @property
    def max_tokens(self) -> int:
        """Tokens generated per sequence."""
        if self.kind == "prefill":
            return 1
        # An engine may end one long prompt per step, beside the tokens of those that decode already.
        whole = self.prompt_tokens <= STEP_TOKENS // 4
        num_steps = (
            -(-self.num_sequences * self.prompt_tokens // STEP_TOKENS) if whole else self.num_sequences
        )
        return 1 + num_steps + DECODE_TOKENS

    def kv_bytes(self, shape: Shape) -> int:
        """Keys and values of all its tokens, each sequence's rounded up to large blocks."""
        per_sequence = -(-(self.prompt_tokens + self.max_tokens) // 128) * 128
        return self.num_sequences * per_sequence * shape.kv_bytes_per_token

    def tokens_per_s(self, begin: float, end: float, tokens: float) -> float:
        """Prompt tokens until all had their first token, or the tokens from then on until the first sequence ended."""
        if self.kind == "prefill":
            return self.num_sequences * self.prompt_tokens / begin
        return tokens / (end - begin)

    def limit(self, shape: Shape, limits: MachineLimits) -> tuple[float, str]:
        """Tokens per second that the machine allows at best, and what sets that: "products" or "reads"."""
        rows, length = self.num_sequences, self.prompt_tokens
        if self.kind == "prefill":
            flops = shape.least_flops(rows * length, rows * length * (length + 1) // 2, rows)
            return limits.best_rate(rows * length, flops, shape.least_bytes(0))
        keys = rows * (length + DECODE_TOKENS // 2)
        return limits.best_rate(rows, shape.least_flops(rows, keys, rows), shape.least_bytes(keys))


# Those of one prompt of 8,192 tokens are for GPUs: on a CPU they have to be named.
CELLS = tuple(
    Cell(kind="prefill", num_sequences=rows, prompt_tokens=length)
    for rows, length in ((1, 512), (1, 2048), (8, 512), (1, 8192))
) + tuple(
    Cell(kind="decode", num_sequences=rows, prompt_tokens=length)
    for length in (32, 1024)
    for rows in (1, 8, 32, 64)
)
