"""From what a client asked for to a Generation with its block hashes: the one path for HTTP and gRPC.

Tokenizing and hashing of long prompts run in a small pool of threads, so that they never hold up the streams of
others; short ones are quicker done at once, in turns when many come together.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from tandem.v1 import generation_pb2, router_pb2
from tandem_common.errors import Overloaded
from tandem_common.generation import MAX_SEED, Generation, StoppingParams
from tandem_common.generation_proto import generation_to_proto
from tandem_common.hashing import block_hashes, namespace_root, pack_hashes, tenant_salt

from tandem_frontend.models import ModelCatalog, ServedModel
from tandem_frontend.options import Conversation, GenerationOptions, Prompt, TextPrompt, TokenPrompt
from tandem_frontend.turns import Turns

# Below this many characters or tokens a prompt takes about a millisecond.
INLINE_SIZE = 2048
# Hashing and checking what need not be tokenized again takes about as long below this many characters.
INLINE_KNOWN_SIZE = 8192
NUM_THREADS = 2
MAX_WAITING = 256
RETRY_AFTER_MS = 1000

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who asks, and the id that everything about this request carries."""

    request_id: str
    tenant: str
    traceparent: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedRequest:
    """Ready to be routed and generated."""

    generation: Generation
    message: generation_pb2.Generation  # the same, made where it holds up nobody
    query: router_pb2.RouteQuery
    stop: tuple[str, ...]
    continues_text: bool  # the answer goes on after a raw prompt


class Preparation:
    """Makes PreparedRequests; owns the threads."""

    def __init__(self, catalog: ModelCatalog, cluster_secret: bytes) -> None:
        self._catalog = catalog
        self._tokenizer = catalog.local.tokenizer
        self._secret = cluster_secret
        self._pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="tokenize")
        self._num_waiting = 0
        self._turns = Turns()
        self._namespace = functools.lru_cache(maxsize=1024)(self._namespace_of)

    async def prepare(
        self, model: str, prompt: Prompt, options: GenerationOptions, caller: Caller
    ) -> PreparedRequest:
        """Check everything and tokenize; InvalidRequest, NotFound, Unavailable or Overloaded."""
        served = self._catalog.find(model)
        if self._is_quick(prompt):
            await self._turns.mine()
            with self._turns.work():
                return self._prepare(served, prompt, options, caller)
        return await self._in_thread(lambda: self._prepare(served, prompt, options, caller))

    async def tokenize(self, model: str, prompt: Prompt) -> Sequence[int]:
        """Token ids of a prompt, as `prepare` would send them."""
        self._catalog.find(model)
        if self._is_quick(prompt):
            return self._encode(prompt)
        return await self._in_thread(lambda: self._encode(prompt))

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._num_waiting >= MAX_WAITING:
            raise Overloaded("too many prompts are waiting to be tokenized", retry_after_ms=RETRY_AFTER_MS)
        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._num_waiting -= 1

    def _namespace_of(self, revision: str, tenant: str) -> bytes:
        return namespace_root(revision, tenant_salt=tenant_salt(self._secret, tenant))

    def _is_quick(self, prompt: Prompt) -> bool:
        size = _size(prompt)
        if size <= INLINE_SIZE:
            return True
        return (
            size <= INLINE_KNOWN_SIZE
            and isinstance(prompt, Conversation)
            and self._tokenizer.num_unknown(prompt.turns) <= INLINE_SIZE
        )

    def _encode(self, prompt: Prompt) -> Sequence[int]:
        match prompt:
            case TextPrompt(text):
                return self._tokenizer.encode_text(text)
            case TokenPrompt(token_ids):
                return token_ids
            case Conversation(turns):
                return self._tokenizer.encode_chat(turns)

    def _prepare(
        self, model: ServedModel, prompt: Prompt, options: GenerationOptions, caller: Caller
    ) -> PreparedRequest:
        token_ids = self._encode(prompt)
        # A prompt that fills the context gets one token.
        room = max(1, model.max_context_tokens - len(token_ids))
        max_tokens = options.max_tokens
        if max_tokens is None:
            max_tokens = room if options.default_max_tokens is None else min(options.default_max_tokens, room)
        ends = () if options.ignore_eos else self._tokenizer.end_token_ids
        sampling = options.sampling
        if not options.seeded:
            sampling = sampling.with_seed(secrets.randbits(MAX_SEED.bit_length()))
        namespace = self._namespace(model.revision, caller.tenant)
        generation = Generation(
            request_id=caller.request_id,
            model=model.name,
            token_ids=token_ids,
            num_prompt_tokens=len(token_ids),
            namespace=namespace,
            sampling=sampling,
            stopping=StoppingParams(
                max_tokens=max_tokens,
                min_tokens=options.min_tokens,
                stop_token_ids=options.stop_token_ids.union(i for i in ends if i < model.vocab_size),
            ),
            request_class=options.request_class,
            traceparent=caller.traceparent,
        )
        generation.check_limits(
            vocab_size=model.vocab_size,
            max_context_tokens=model.max_context_tokens,
            knows_prompt=not isinstance(prompt, TokenPrompt)
            and self._tokenizer.num_token_ids <= model.vocab_size,
        )
        query = router_pb2.RouteQuery(
            request_id=caller.request_id,
            model=model.name,
            num_tokens=len(token_ids),
            block_hashes=pack_hashes(block_hashes(namespace, token_ids, model.block_size)),
            max_tokens=max_tokens,
            request_class=generation_pb2.RequestClass.ValueType(options.request_class.value),
            tenant=caller.tenant,
            ttft_deadline_ms=options.ttft_deadline_ms,
        )
        return PreparedRequest(
            generation=generation,
            message=generation_to_proto(generation),
            query=query,
            stop=options.stop,
            continues_text=not isinstance(prompt, Conversation),
        )


def for_choice(request: PreparedRequest, index: int, repetition: int) -> PreparedRequest:
    """The same request for choice `index` of several: an id and, from the second answer on, a seed of its own."""
    if index == 0:
        return request
    generation = request.generation
    request_id = f"{generation.request_id}-{index}"
    seed = (generation.sampling.seed + repetition) % (MAX_SEED + 1)
    query = router_pb2.RouteQuery()
    query.CopyFrom(request.query)
    query.request_id = request_id
    generation = dataclasses.replace(
        generation, request_id=request_id, sampling=dataclasses.replace(generation.sampling, seed=seed)
    )
    return dataclasses.replace(
        request, generation=generation, message=generation_to_proto(generation), query=query
    )


def _size(prompt: Prompt) -> int:
    """Characters or tokens."""
    match prompt:
        case TextPrompt(text):
            return len(text)
        case TokenPrompt(token_ids):
            return len(token_ids)
        case Conversation(turns):
            return sum(len(turn.content) for turn in turns)
