"""The seam between a worker and its engine. Torch-free: token ids in, token ids out.

An engine has an inbox (submit, cancel) and an outbox (`deliver`, one StepOutput per engine step). All methods are
called from the worker's event loop and never block it; the engine computes elsewhere. The blocks of a
sequence move through `BlockExchange`.

A request's life in an engine:

    submit(prefill=LOCAL)  waiting → prefilling → decoding → finished
    submit(prefill=HOLD)   waiting → prefilling → held (first token out, blocks kept) → release
    reserve                reserved (blocks allocated, filled through writing) → activate → decoding → finished

`cancel` and `release` end it from any state. A request whose end was reported is forgotten.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from tandem_common.errors import TandemError
from tandem_common.generation import FinishReason, Generation

from tandem_engine.pool_memory import PoolMemory


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineInfo:
    """What an engine is; fixed once it has started."""

    name: str  # "torch", "simulated", ...
    vocab_size: int  # width of the model's output
    max_context_tokens: int  # prompt and output together
    block_size: int  # tokens per block
    num_blocks: int
    max_step_tokens: int
    max_sequences: int
    dtype: str  # of keys and values: "float32", "bfloat16"
    block_shape: tuple[int, ...]  # of one block: layers, 2 (keys, values), block_size, KV heads, head size
    block_bytes: int
    layout_digest: bytes  # equal digests can exchange blocks


class PrefillMode(enum.Enum):
    """What happens after the prompt of a submitted request is computed."""

    LOCAL = "local"  # go on decoding here
    HOLD = "hold"  # give the first token, then keep the blocks until release


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprobs:
    """Log-probability of a token and of the likeliest alternatives (after penalties, before temperature)."""

    logprob: float
    top_token_ids: Sequence[int] = ()
    top_logprobs: Sequence[float] = ()


# Not frozen, like what else is made in every step: freezing doubles what that costs, and nobody changes one.
@dataclass(kw_only=True, slots=True)
class TokenOutput:
    """New tokens of one request in one step.

    A stop token that ends the sequence is not among `token_ids`; it is named in `stop_token_id`. The one token of a
    PrefillMode.HOLD request is always in `token_ids` and without `finish_reason`: what it means is decided where
    the sequence goes on, by `activate`.
    `num_cached_tokens` is set with the first token only: prompt tokens that were not computed here.
    """

    request_id: str
    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprobs] | None = None  # one per token, when asked for
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    num_cached_tokens: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefillProgress:
    """How far a prompt is after this step; the blocks below num_computed_tokens can be read."""

    request_id: str
    num_computed_tokens: int  # cached ones included
    num_cached_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestFailure:
    """A request that the engine gave up; the others are not affected."""

    request_id: str
    error: TandemError


@dataclass(kw_only=True, slots=True)
class StepCost:
    """What a step computed and how long it took: the sample that speeds are fitted to."""

    duration_ms: float
    num_prefill_tokens: int = 0
    prefill_token_context: int = 0  # sum over chunks of tokens * context tokens before the chunk
    num_decode_sequences: int = 0
    decode_kv_tokens: int = 0

    def lasting(self, duration_ms: float) -> StepCost:
        """The same work in that time."""
        return StepCost(
            duration_ms=duration_ms,
            num_prefill_tokens=self.num_prefill_tokens,
            prefill_token_context=self.prefill_token_context,
            num_decode_sequences=self.num_decode_sequences,
            decode_kv_tokens=self.decode_kv_tokens,
        )


@dataclass(kw_only=True, slots=True)
class StepOutput:
    """Everything that one engine step made known; empty steps are not reported.

    Most tokens are plain: the one new token of a request that goes on, of which there is nothing else to say. They come
    as two columns, since an object for each costs more than all else that is done with them. A request is either among
    them or in `tokens`, or in neither.
    """

    plain_request_ids: Sequence[str] = ()
    plain_token_ids: Sequence[int] = ()  # one per plain request
    tokens: Sequence[TokenOutput] = ()
    progress: Sequence[PrefillProgress] = ()  # of PrefillMode.HOLD requests only
    failures: Sequence[RequestFailure] = ()
    removed_hashes: Sequence[bytes] = ()  # blocks evicted from the prefix cache, before those stored
    stored_hashes: Sequence[bytes] = ()
    cost: StepCost | None = None  # None when nothing was computed

    def reports(self) -> Iterator[TokenOutput]:
        """All tokens, the plain ones too, for those who are in no hurry."""
        for request_id, token_id in zip(self.plain_request_ids, self.plain_token_ids, strict=True):
            yield TokenOutput(request_id=request_id, token_ids=(token_id,))
        yield from self.tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestSnapshot:
    """One request inside the engine, for GetState."""

    request_id: str
    phase: str  # "waiting", "prefilling", "decoding", "held", "reserved"
    num_tokens: int
    num_computed_tokens: int
    num_blocks: int


class PassableTokens(NamedTuple):
    """A queued prompt: newcomers with fewer tokens than `below_tokens` are computed before it."""

    below_tokens: int
    tokens: int
    context: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSnapshot:
    """What the engine holds, as of its last step or idle moment."""

    requests: Sequence[RequestSnapshot] = field(default_factory=tuple)
    num_running: int = 0  # sequences in the batch
    num_waiting: int = 0
    queued_prefill_tokens: int = 0  # accepted and not yet computed
    queued_prefill_context: int = 0  # sum over those of the tokens before the step that computes each
    passable: Sequence[PassableTokens] = ()  # of those prompts, the few that most newcomers pass
    num_reserved: int = 0  # sequences with blocks here whose prompts other workers compute
    reserved_tokens: int = 0  # known tokens of those
    num_decoding: int = 0
    decode_kv_tokens: int = 0
    num_used_blocks: int = 0  # held by requests
    num_cached_blocks: int = 0  # held by the prefix cache only
    num_awaited_blocks: int = 0  # for the known tokens of sequences that wait for blocks


@dataclass(frozen=True, kw_only=True, slots=True)
class Reservation:
    """Blocks allocated for a sequence whose prompt another worker computes.

    Blocks [0, num_held_blocks) came from the local prefix cache and need not be written; blocks
    [num_held_blocks, num_blocks) are to be filled through `writing`.
    """

    request_id: str
    num_blocks: int
    num_held_blocks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstToken:
    """The token that a prefill worker drew, with what the decode worker must report along with it."""

    token_id: int
    num_cached_tokens: int
    logprobs: TokenLogprobs | None = None


class EngineDied(Exception):
    """The engine cannot make progress any more; its worker must exit."""


# The blocks asked for, in order: each view is one or more whole ones, in the engine's own memory where it can be.
Borrowed = AbstractAsyncContextManager[Sequence[memoryview]]


class BlockExchange(Protocol):
    """Moving the blocks of a sequence into and out of an engine.

    A block is contiguous, in `EngineInfo.block_shape` and `dtype`. Blocks are lent for the time of an `async with`,
    without waiting for a step that is being computed; whatever becomes of their sequence meanwhile, nobody else gets
    them before its end. Unknown or cancelled requests raise NotFound.
    """

    @property
    def memory(self) -> PoolMemory | None:
        """What blocks lie in that are lent to be shared: the pool, or windows that they are copied to.

        None when other processes cannot be let to read anything.
        """
        ...

    @property
    def max_shared_bytes(self) -> int:
        """Most that can be lent at once to be shared."""
        ...

    async def reserve(self, generation: Generation) -> Reservation:
        """Allocate blocks for all of `generation.token_ids`, waiting for room; InvalidRequest if it never fits."""
        ...

    def writing(self, request_id: str, first_block: int, num_blocks: int) -> Borrowed:
        """Borrow blocks of a reserved sequence, to fill them: index `first_block` of that sequence and on.

        They count as written when the block of code ends without an exception.
        """
        ...

    async def activate(self, request_id: str, first_token: FirstToken) -> None:
        """All blocks are written: report the first token and go on decoding; Conflict if one is not."""
        ...

    def reading(
        self, request_id: str, first_block: int, num_blocks: int, *, shared: bool = False
    ) -> Borrowed:
        """Borrow blocks of the tokens that a sequence came with, waiting until they are computed.

        They may be read while later ones are computed. `shared`: they must lie in `memory`; at most `max_shared_bytes`.
        """
        ...


class Engine(Protocol):
    """One model, ready to continue sequences."""

    @property
    def info(self) -> EngineInfo:
        """What it is; valid after `start`."""
        ...

    @property
    def blocks(self) -> BlockExchange:
        """Its blocks."""
        ...

    async def start(self) -> None:
        """Load and get ready; raises ModelError with what is wrong with the model and how to mend it."""
        ...

    async def stop(self) -> None:
        """End all requests silently and free everything. Idempotent."""
        ...

    def submit(self, generation: Generation, prefill: PrefillMode = PrefillMode.LOCAL) -> None:
        """Queue a request; what is wrong with it is reported by a RequestFailure."""
        ...

    def cancel(self, request_id: str) -> None:
        """End a request and free its blocks, without a report; also releases a held one. Idempotent."""
        ...

    async def deliver(self, take: Callable[[StepOutput], None]) -> None:
        """Have `take` called in the event loop with each output as it comes; there is one consumer.

        Raises EngineDied when the engine failed and what `take` raises; returns after `stop`.
        """
        ...

    def steps(self) -> AsyncIterator[StepOutput]:
        """The same as an iterator, which costs a task's turn per step."""
        ...

    def snapshot(self) -> EngineSnapshot:
        """What it holds now."""
        ...


class ModelError(Exception):
    """A model cannot be loaded; the message says what is wrong and how to mend it."""
