"""The seam inside an engine: what the scheduler hands to a model runner for one step, and what comes back.

Everything in a Batch is lent for the duration of `Runner.execute`: token lists and block tables are those of the
living sequences, and a runner must neither change nor keep them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tandem_common.generation import SamplingParams, StoppingParams

from tandem_engine.api import EngineInfo, TokenLogprobs
from tandem_engine.pool_memory import PoolMemory


@dataclass(slots=True)
class ScheduledSequence:
    """One row of a step: compute token_ids[num_computed_tokens : num_computed_tokens + num_new_tokens]."""

    request_id: str
    token_ids: Sequence[int]  # all known tokens of the sequence
    num_computed_tokens: int  # tokens whose keys and values are in the blocks already
    num_new_tokens: int  # at least 1
    block_ids: Sequence[int]  # block table; covers num_computed_tokens + num_new_tokens, and may be longer
    num_prompt_tokens: int  # the first of token_ids; the others were generated
    sampling: SamplingParams
    stopping: StoppingParams
    draws_token: bool  # the row reaches the last known token: draw the next one
    # A runner's own note, as long as the row is used: a sequence that goes on decoding keeps its row.
    note: object = field(default=None, compare=False, repr=False)

    @property
    def position(self) -> int:
        """Index in the sequence of the token that the row draws; with the seed, it decides the draw."""
        return self.num_computed_tokens + self.num_new_tokens


@dataclass(slots=True)
class Batch:
    """The rows of one step: decodes (one new token each) first, then prompt chunks."""

    sequences: list[ScheduledSequence]
    num_counted: int = 0  # of the decodes, those whose known tokens are counted in `counted_tokens`
    counted_tokens: int = 0


@dataclass(slots=True)
class DrawnToken:
    """A token that a runner drew, with the log-probabilities that the request asked for."""

    token_id: int
    logprobs: TokenLogprobs


# What a row drew: the token's id alone unless log-probabilities come with it; None when it is not to draw.
Draw = int | DrawnToken | None


class Runner(Protocol):
    """A model and its pool of blocks. Methods are called from the engine's own thread unless they say otherwise."""

    def load(self) -> EngineInfo:
        """Load the model and allocate the blocks; raises ModelError with the fix."""
        ...

    def execute(self, batch: Batch) -> list[Draw]:
        """Compute one step: one entry per row, None where `draws_token` is False. Any exception is fatal."""
        ...

    @property
    def memory(self) -> PoolMemory | None:
        """What the views of `view_blocks` lie in, when other processes can be let to read it."""
        ...

    def page_lock(self, memory: memoryview) -> None:
        """Let the device, if there is one, read and write this memory of the host by itself: only speed depends on it.

        For as long as the process lives.
        """
        ...

    def view_blocks(self, block_ids: Sequence[int]) -> list[memoryview] | None:
        """The memory of blocks itself, in order, each view one or more whole ones; None when it is on a device.

        Called from any thread, also during `execute`, for blocks that no step computes.
        """
        ...

    def host_memory(self, num_bytes: int) -> memoryview:
        """Memory of the host for `read_blocks` and `write_blocks`, asked for where blocks cannot be viewed.

        From any thread; its content is undefined.
        """
        ...

    def read_blocks(self, block_ids: Sequence[int], out: memoryview) -> None:
        """Copy blocks, one after another, into `out` (len(block_ids) * block_bytes bytes); from any thread, too."""
        ...

    def write_blocks(self, block_ids: Sequence[int], payload: memoryview) -> None:
        """Fill blocks from `payload`, laid out as in `read_blocks`; from any thread, too."""
        ...

    def poison_blocks(self, block_ids: Sequence[int]) -> None:
        """For tests: fill freed blocks with garbage (NaN), so that reading one shows."""
        ...

    def close(self) -> None:
        """Free everything. Idempotent; also called when `load` failed."""
        ...
