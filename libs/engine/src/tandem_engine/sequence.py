"""One request as the scheduler sees it: its tokens, its blocks, and where it stands."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from tandem_common.generation import FinishReason, Generation, RequestClass, SamplingParams, StoppingParams

from tandem_engine.api import PrefillMode
from tandem_engine.batch import ScheduledSequence
from tandem_engine.block_pool import CacheEntry
from tandem_engine.block_table import BlockTable
from tandem_engine.integrity import require

# Class first (interactive before batch), then arrival: smaller is more senior.
Seniority = tuple[int, int]
# Class first, then how soon its prompt is due, then arrival: see `scheduler`.
Turn = tuple[int, int, int]


class Phase(enum.Enum):
    """Where a sequence stands; values are those of RequestSnapshot.phase."""

    WAITING = "waiting"  # holds nothing: new, preempted, or waiting for a reservation
    RESERVED = "reserved"  # holds blocks that another worker fills
    PREFILLING = "prefilling"  # known tokens are being computed
    DECODING = "decoding"  # all known tokens but the last are computed
    HELD = "held"  # prompt computed, first token out, blocks kept until released


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """Tokens, blocks and phase of one request. Compared by identity; ordered by seniority, prompts by their turn.

    `num_computed_tokens` counts tokens whose keys and values are in the blocks. A token that was just drawn is
    known but not computed, so a decoding sequence always has exactly one token to compute.
    """

    request_id: str
    seniority: Seniority
    turn: Turn
    request_class: RequestClass
    prefill: PrefillMode
    is_remote: bool  # its prompt is computed by another worker, into blocks reserved here
    token_ids: list[int]
    num_prompt_tokens: int
    num_given_tokens: int  # that it came with: the prompt and what was generated before a resumption
    max_length: int  # of the token ids, within the model's context
    sampling: SamplingParams
    stopping: StoppingParams
    stop_token_ids: frozenset[int]
    table: BlockTable
    phase: Phase = Phase.WAITING
    num_prefilled_tokens: int = 0  # computed tokens, as long as it does not decode
    num_cached_tokens: int | None = None  # prompt tokens found in the cache when it was first admitted
    num_reported_tokens: int = 0  # computed tokens last reported as progress
    has_output: bool = False  # a token of it was reported
    decode_row: ScheduledSequence | None = None  # as of the last step outside of columns: see `row`
    unwritten_blocks: set[int] = field(default_factory=set)  # RESERVED only: indices in the table

    @property
    def num_computed_tokens(self) -> int:
        """Tokens whose keys and values are in the blocks."""
        return len(self.token_ids) - 1 if self.phase is Phase.DECODING else self.num_prefilled_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Known tokens that are still to be computed."""
        return len(self.token_ids) - self.num_computed_tokens

    def find_prefix(self) -> list[CacheEntry]:
        """Cached blocks that it can start from: what is computed here always leaves a token to draw from."""
        return self.table.find_prefix(self.token_ids, len(self.token_ids) - (0 if self.is_remote else 1))

    def open(self, prefix: list[CacheEntry]) -> None:
        """Take blocks for all known tokens, the first of them from the prefix cache."""
        self.table.open(prefix, len(self.token_ids))
        self.num_prefilled_tokens = self.table.num_shared_tokens
        if self.num_cached_tokens is None:
            self.num_cached_tokens = min(self.num_computed_tokens, self.num_prompt_tokens)
        if self.is_remote:
            self.unwritten_blocks = set(range(len(prefix), len(self.table.block_ids)))

    def close(self) -> None:
        """Give up all blocks; the sequence waits, or has ended."""
        self.table.release()
        self.decode_row = None
        self.num_prefilled_tokens = 0
        self.phase = Phase.WAITING

    def append(self, token_id: int) -> FinishReason | None:
        """Take a token that was drawn; says why the sequence ends, if it does.

        A stop token that ends it is not appended. It does not end it before `min_tokens`.
        """
        token_ids = self.token_ids
        if (
            token_id in self.stop_token_ids
            and len(token_ids) - self.num_prompt_tokens >= self.stopping.min_tokens
        ):
            return FinishReason.STOP
        token_ids.append(token_id)
        return FinishReason.LENGTH if len(token_ids) >= self.max_length else None

    def row(self, num_new_tokens: int) -> ScheduledSequence:
        """It as a row of a step that computes so many of its tokens."""
        return ScheduledSequence(
            self.request_id,
            self.token_ids,
            self.num_computed_tokens,
            num_new_tokens,
            self.table.block_ids,
            self.num_prompt_tokens,
            self.sampling,
            self.stopping,
            num_new_tokens == self.num_uncomputed_tokens,
        )

    def check_integrity(self, block_size: int) -> None:
        """Raise BrokenInvariant unless phase, tokens and blocks agree."""
        name, num_blocks = self.request_id, len(self.table.block_ids)
        known, computed = len(self.token_ids), self.num_computed_tokens
        require(
            self.table.num_shared_blocks * block_size <= max(computed, 0),
            f"{name} shares what is not computed",
        )
        require(computed <= num_blocks * block_size, f"{name} has computed more than its blocks hold")
        match self.phase:
            case Phase.WAITING:
                require(num_blocks == 0 and computed == 0, f"{name} waits, but has blocks")
            case Phase.PREFILLING:
                require(
                    computed < known <= num_blocks * block_size,
                    f"{name} has nothing to prefill, or no blocks",
                )
            case Phase.DECODING | Phase.HELD:
                require(
                    known - computed == 1, f"{name} has {known - computed} tokens to compute instead of one"
                )
            case Phase.RESERVED:
                require(known <= num_blocks * block_size, f"{name} has too few reserved blocks")
        require(self.is_remote or not self.unwritten_blocks, f"{name} is used, but has unwritten blocks")


def make_sequence(
    generation: Generation,
    prefill: PrefillMode | None,
    table: BlockTable,
    order: tuple[int, int],
    max_context_tokens: int,
) -> Sequence:
    """A waiting sequence; `order` is how many came before, and how soon its prompt is due.

    Without a `prefill` mode its prompt is computed by another worker.
    """
    arrival, due = order
    # The last token drawn needs no room in the context.
    room = max(1, max_context_tokens - generation.num_prompt_tokens)
    return Sequence(
        request_id=generation.request_id,
        seniority=(generation.request_class.value, arrival),
        turn=(generation.request_class.value, due, arrival),
        request_class=generation.request_class,
        prefill=prefill or PrefillMode.LOCAL,
        is_remote=prefill is None,
        token_ids=list(generation.token_ids),
        num_prompt_tokens=generation.num_prompt_tokens,
        num_given_tokens=len(generation.token_ids),
        max_length=generation.num_prompt_tokens + min(generation.stopping.max_tokens, room),
        sampling=generation.sampling,
        stopping=generation.stopping,
        stop_token_ids=generation.stopping.stop_token_ids,
        table=table,
    )
