"""One prompt that another worker asked for: computed here, shipped while it is computed, then let go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from tandem.v1 import generation_pb2, prefill_pb2
from tandem_common.errors import DeadlineExceeded, InternalError, TandemError
from tandem_common.generation import Generation
from tandem_engine.api import PrefillMode, PrefillProgress, TokenLogprobs, TokenOutput
from tandem_worker.worker import Worker

from tandem_prefill.destination import Destination
from tandem_prefill.shipping import Shipping

Write = Callable[[prefill_pb2.PrefillResponse], Awaitable[None]]


class PrefillCall:
    """Owns its request in the engine. `run` may be called once; what it holds is free when it returns or raises."""

    def __init__(self, worker: Worker, generation: Generation, destination: Destination) -> None:
        self._worker = worker
        self._generation = generation
        self._destination = destination
        self._num_computed_tokens = 0
        self._num_cached_tokens: int | None = None
        self._first_token: TokenOutput | None = None
        self._error: TandemError | None = None
        self._changed = asyncio.Event()

    def on_progress(self, progress: PrefillProgress) -> None:
        """The blocks below can be read."""
        self._num_computed_tokens = progress.num_computed_tokens
        self._num_cached_tokens = progress.num_cached_tokens
        self._changed.set()

    def on_tokens(self, output: TokenOutput) -> None:
        """The first token: the whole prompt is computed."""
        self._first_token = output
        if self._num_cached_tokens is None:
            self._num_cached_tokens = output.num_cached_tokens or 0
        self._changed.set()

    def on_failure(self, error: TandemError) -> None:
        """The engine gave up, the worker drains, or a later call replaces this one."""
        self._error = error
        self._changed.set()

    async def run(self, write: Write) -> None:
        """Compute, ship and answer; raises a TandemError when that is not possible."""
        worker, destination = self._worker, self._destination
        engine_id = worker.dispatcher.claim(self._generation.request_id, self)
        try:
            async with worker.leases.hold(
                lease_id=destination.lease_id,
                request_id=engine_id,
                peer_worker_id=destination.card.worker_id,
                first_block=destination.first_block,
                num_blocks=destination.num_blocks,
            ) as lease:
                worker.engine.submit(replace(self._generation, request_id=engine_id), PrefillMode.HOLD)
                shipping = Shipping(worker, engine_id, destination, lease)
                await self._accept(write)
                worker.leases.table.stage(lease)
                await self._ship(shipping, write)
                await write(prefill_pb2.PrefillResponse(done=self._done(shipping)))
        except TimeoutError:
            raise DeadlineExceeded("the handoff took too long, or was released") from None
        finally:
            worker.dispatcher.release(engine_id)

    async def _accept(self, write: Write) -> None:
        while self._num_cached_tokens is None:
            await self._change()
        accepted = prefill_pb2.PrefillAccepted(num_cached_tokens=self._num_cached_tokens)
        await write(prefill_pb2.PrefillResponse(accepted=accepted))

    async def _ship(self, shipping: Shipping, write: Write) -> None:
        """Ship every wanted block as soon as it is complete; the last, incomplete one with the first token."""
        destination = self._destination
        block_size = self._worker.engine.info.block_size
        next_block = destination.first_block
        while next_block < destination.num_blocks or self._first_token is None:
            if self._error is not None:
                raise self._error
            end_block = (
                destination.num_blocks
                if self._first_token is not None
                else min(self._num_computed_tokens // block_size, destination.num_blocks)
            )
            if end_block <= next_block:
                await self._change()
                continue
            await shipping.ship(next_block, end_block)
            next_block = end_block
            progress = prefill_pb2.PrefillProgress(
                num_computed_tokens=self._num_computed_tokens,
                num_shipped_blocks=next_block - destination.first_block,
            )
            await write(prefill_pb2.PrefillResponse(progress=progress))

    async def _change(self) -> None:
        """Wait for news from the engine; raises what it failed with."""
        await self._changed.wait()
        self._changed.clear()
        if self._error is not None:
            raise self._error

    def _done(self, shipping: Shipping) -> prefill_pb2.PrefillDone:
        first = self._first_token
        if first is None or not first.token_ids:
            raise InternalError("the engine computed a prompt and drew no token")
        return prefill_pb2.PrefillDone(
            first_token_id=first.token_ids[0],
            logprobs=_logprobs_to_proto(first.logprobs[0]) if first.logprobs else None,
            shipped_bytes=shipping.shipped_bytes,
            transport=shipping.transport,
        )


def _logprobs_to_proto(logprobs: TokenLogprobs) -> generation_pb2.TokenLogprobs:
    return generation_pb2.TokenLogprobs(
        logprob=logprobs.logprob,
        top_token_ids=logprobs.top_token_ids,
        top_logprobs=logprobs.top_logprobs,
    )
