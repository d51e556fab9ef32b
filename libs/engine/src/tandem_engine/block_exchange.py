"""Blocks into and out of an engine that runs in a thread: asked for in the event loop, moved between two steps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from tandem_common.errors import Conflict, InvalidRequest, NotFound, TandemError
from tandem_common.generation import Generation

from tandem_engine.api import EngineDied, EngineInfo, FirstToken, Reservation, TokenOutput
from tandem_engine.batch import Runner
from tandem_engine.inbox import Inbox
from tandem_engine.scheduler import Scheduler
from tandem_engine.sequence import Phase, Sequence

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Read:
    """A wish to read blocks, perhaps before they are computed."""

    future: Future[None]
    request_id: str
    first_block: int
    num_blocks: int
    out: memoryview


@dataclass(frozen=True, kw_only=True, slots=True)
class ExchangeContext:
    """What the exchange shares with its engine; everything but the inbox is for the engine's thread."""

    info: EngineInfo
    scheduler: Scheduler
    runner: Runner
    inbox: Inbox
    lock: threading.Lock  # held while the scheduler changes
    report: Callable[[TokenOutput], None]  # of a first token


class LocalBlockExchange:
    """`BlockExchange` of tandem_engine.api.

    A caller's buffer is lent until its call returns: when the caller is cancelled while the engine copies, the call
    ends after the copy. All methods raise the error that ended the engine, once it has ended.
    """

    def __init__(self, context: ExchangeContext) -> None:
        self._context = context
        # Event loop:
        self._unanswered: set[Future[object]] = set()
        self._ended: Exception | None = None
        # Engine's thread:
        self._reserving: dict[str, Future[Reservation]] = {}
        self._reads: list[_Read] = []

    # In the event loop

    async def reserve(self, generation: Generation) -> Reservation:
        """Allocate blocks for all of `generation.token_ids`, waiting for room."""
        future: Future[Reservation] = Future()
        try:
            return await self._answer(future, lambda: self._reserve(generation, future))
        except asyncio.CancelledError:
            self._context.inbox.put(lambda: self.cancel(generation.request_id))
            raise

    async def write_blocks(self, request_id: str, first_block: int, payload: memoryview) -> None:
        """Fill blocks of a reserved sequence."""
        block_bytes, payload = self._context.info.block_bytes, payload.cast("B")
        num_blocks, rest = divmod(payload.nbytes, block_bytes)
        if rest:
            raise InvalidRequest(
                f"a payload of {payload.nbytes} bytes is not a whole number of {block_bytes}-byte blocks"
            )
        await self._ask(lambda: self._write(request_id, first_block, num_blocks, payload))

    async def activate(self, request_id: str, first_token: FirstToken) -> None:
        """Report the first token and go on decoding; Conflict when blocks are still to be written."""
        await self._ask(lambda: self._activate(request_id, first_token))

    async def read_blocks(self, request_id: str, first_block: int, num_blocks: int, out: memoryview) -> None:
        """Copy blocks of a sequence into `out`, waiting until they are computed."""
        wanted, out = num_blocks * self._context.info.block_bytes, out.cast("B")
        if out.nbytes != wanted or out.readonly:
            raise InvalidRequest(
                f"{num_blocks} blocks need a writable buffer of {wanted} bytes, not {out.nbytes}"
            )
        future: Future[None] = Future()
        read = _Read(
            future=future, request_id=request_id, first_block=first_block, num_blocks=num_blocks, out=out
        )
        await self._answer(future, lambda: self._try_read(read))

    def close(self, error: Exception) -> None:
        """The engine's thread has ended: answer everything that it did not, now and later, with this error."""
        self._ended = error
        for future in self._unanswered:
            if not future.done():
                future.set_exception(error)

    async def _ask(self, function: Callable[[], T]) -> T:
        future: Future[T] = Future()
        return await self._answer(future, lambda: _run(function, future))

    async def _answer(self, future: Future[T], command: Callable[[], None]) -> T:
        """Send a command, and wait until it has set the future."""
        if self._ended is not None:
            raise self._ended
        unanswered: set[Future[T]] = self._unanswered  # type: ignore[assignment]
        unanswered.add(future)
        self._context.inbox.put(command)
        waiter = asyncio.wrap_future(future)
        try:
            return await asyncio.shield(waiter)
        except asyncio.CancelledError:
            if not future.cancel():
                # The engine is at work on the caller's buffer. It is quick, so that waiting is safe.
                await _outlast(waiter)
            raise
        finally:
            unanswered.discard(future)

    # In the engine's thread

    def cancel(self, request_id: str) -> None:
        """End a request and everything that was asked about its blocks."""
        with self._context.lock:
            self._context.scheduler.cancel(request_id)
        gone = NotFound("the request was cancelled")
        if (future := self._reserving.pop(request_id, None)) is not None:
            _fail(future, gone)
        for read in [read for read in self._reads if read.request_id == request_id]:
            self._reads.remove(read)
            _fail(read.future, gone)

    def advance(self) -> None:
        """After each step: answer what has become possible."""
        for sequence in self._context.scheduler.take_granted():
            future = self._reserving.pop(sequence.request_id)
            if future.set_running_or_notify_cancel():
                future.set_result(
                    Reservation(
                        request_id=sequence.request_id,
                        num_blocks=len(sequence.table.block_ids),
                        num_held_blocks=sequence.table.num_shared_blocks,
                    )
                )
        if self._reads:
            reads, self._reads = self._reads, []
            for read in reads:
                self._try_read(read)

    def _reserve(self, generation: Generation, future: Future[Reservation]) -> None:
        if future.cancelled():
            return
        try:
            with self._context.lock:
                self._context.scheduler.reserve(generation)
        except TandemError as error:
            _fail(future, error)
        else:
            self._reserving[generation.request_id] = future

    def _write(self, request_id: str, first_block: int, num_blocks: int, payload: memoryview) -> None:
        sequence = self._context.scheduler.find(request_id)
        if sequence.phase is not Phase.RESERVED:
            raise Conflict(f"the request is {sequence.phase.value}, not reserved")
        # Blocks from the prefix cache belong to others too.
        first, end = sequence.table.num_shared_blocks, len(sequence.table.block_ids)
        if not first <= first_block <= first_block + num_blocks <= end:
            raise InvalidRequest(
                f"blocks {first_block} to {first_block + num_blocks} were not reserved for writing; "
                f"{first} to {end} are"
            )
        written = range(first_block, first_block + num_blocks)
        self._context.runner.write_blocks([sequence.table.block_ids[index] for index in written], payload)
        sequence.unwritten_blocks.difference_update(written)

    def _activate(self, request_id: str, first_token: FirstToken) -> None:
        with self._context.lock:
            output = self._context.scheduler.activate(request_id, first_token)
        self._context.report(output)

    def _try_read(self, read: _Read) -> None:
        """Copy now, or keep the wish until the blocks are computed."""
        try:
            sequence = self._context.scheduler.find(read.request_id)
            if not self._is_computed(sequence, read):
                if not read.future.cancelled():
                    self._reads.append(read)
                return
        except TandemError as error:
            _fail(read.future, error)
            return
        block_ids = sequence.table.block_ids[read.first_block : read.first_block + read.num_blocks]
        _run(lambda: self._context.runner.read_blocks(block_ids, read.out), read.future)

    def _is_computed(self, sequence: Sequence, read: _Read) -> bool:
        block_size, end = self._context.info.block_size, read.first_block + read.num_blocks
        num_all = -(-sequence.num_given_tokens // block_size)
        if not 0 <= read.first_block <= end <= num_all:
            raise InvalidRequest(
                f"blocks {read.first_block} to {end} do not exist; the sequence has {num_all}"
            )
        return sequence.num_computed_tokens >= min(end * block_size, sequence.num_given_tokens)


def _run(function: Callable[[], T], future: Future[T]) -> None:
    """Answer with what the function returns or raises, unless nobody waits any more. Defects end the engine."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except TandemError as error:
        future.set_exception(error)
    except Exception:
        future.set_exception(EngineDied("the engine failed while it moved blocks"))
        raise


def _fail(future: Future[T], error: TandemError) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)


async def _outlast(waiter: asyncio.Future[T]) -> None:
    """Wait for the end of something that cannot be stopped, whatever happens to the caller."""
    while not waiter.done():
        try:
            await asyncio.wait([waiter])
        except asyncio.CancelledError:
            continue
    if not waiter.cancelled():
        waiter.exception()  # nobody else will ask
