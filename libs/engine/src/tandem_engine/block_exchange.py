"""Blocks into and out of an engine that runs in a thread: lent in the event loop, also while a step is computed.

The scheduler lends blocks under the engine's lock, which is free while the runner computes, so that handing over
what is computed never waits for the end of a step.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from tandem_common.errors import Conflict, InvalidRequest, NotFound, TandemError
from tandem_common.generation import Generation

from tandem_engine.api import EngineDied, EngineInfo, FirstToken, Reservation, TokenOutput
from tandem_engine.batch import Runner
from tandem_engine.inbox import Inbox
from tandem_engine.loans import Loan
from tandem_engine.pool_memory import PoolMemory
from tandem_engine.scheduler import Scheduler
from tandem_engine.sequence import Phase, Sequence
from tandem_engine.staging import StagingWindows

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Wish:
    """A wish to read blocks, perhaps before they are computed."""

    future: Future[Loan]
    request_id: str
    first_block: int
    num_blocks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ExchangeContext:
    """What the exchange shares with its engine."""

    info: EngineInfo
    scheduler: Scheduler
    runner: Runner
    inbox: Inbox
    lock: threading.Lock  # held while the scheduler or its pool changes, in whichever thread
    report: Callable[[TokenOutput], None]  # of a first token


class LocalBlockExchange:
    """`BlockExchange` of tandem_engine.api. All methods raise the error that ended the engine, once it has ended."""

    def __init__(self, context: ExchangeContext) -> None:
        self._context = context
        # Event loop:
        self._unanswered: set[Future[object]] = set()
        self._ended: Exception | None = None
        # Engine's thread:
        self._reserving: dict[str, Future[Reservation]] = {}
        self._wishes: list[_Wish] = []

    @property
    def memory(self) -> PoolMemory | None:
        """What blocks lie in that are lent to be shared: the pool, or windows that they are copied to."""
        windows = self._windows
        return windows.memory if windows else self._context.runner.memory

    @property
    def max_shared_bytes(self) -> int:
        """Most that can be lent at once to be shared."""
        if windows := self._windows:
            return windows.window_bytes
        return self._context.info.num_blocks * self._context.info.block_bytes

    @cached_property
    def _windows(self) -> StagingWindows | None:
        """Made when first asked for, where the pool cannot be shared."""
        runner = self._context.runner
        if runner.memory is not None:
            return None
        try:
            windows = StagingWindows(self._context.info.block_bytes)
        except OSError:
            return None
        runner.page_lock(windows.memory.view)
        return windows

    # In the event loop

    async def reserve(self, generation: Generation) -> Reservation:
        """Allocate blocks for all of `generation.token_ids`, waiting for room."""
        future: Future[Reservation] = Future()
        try:
            return await self._answer(future, lambda: self._reserve(generation, future))
        except asyncio.CancelledError:
            self._context.inbox.put(lambda: self.cancel(generation.request_id))
            raise

    @contextlib.asynccontextmanager
    async def writing(
        self, request_id: str, first_block: int, num_blocks: int
    ) -> AsyncIterator[list[memoryview]]:
        """Borrow blocks of a reserved sequence, to fill them; NotFound at the end when it was cancelled meanwhile."""
        context, written = self._context, range(first_block, first_block + num_blocks)
        self._check_alive()
        with context.lock:
            sequence = context.scheduler.find(request_id)
            _check_writable(sequence, written)
            loan = context.scheduler.loans.lend(request_id, sequence.table.block_ids)
        try:
            block_ids = loan.block_ids[written.start : written.stop]
            views = context.runner.view_blocks(block_ids)
            if views is None:
                staged = context.runner.host_memory(num_blocks * context.info.block_bytes)
                yield [staged]
                await _outlast(asyncio.to_thread(context.runner.write_blocks, block_ids, staged))
            else:
                yield views
            with context.lock:
                if context.scheduler.find(request_id) is not sequence:
                    raise NotFound("the request was cancelled")
                sequence.unwritten_blocks.difference_update(written)
        finally:
            self._give_back(loan)

    async def activate(self, request_id: str, first_token: FirstToken) -> None:
        """Report the first token and go on decoding; Conflict when blocks are still to be written."""
        await self._ask(lambda: self._activate(request_id, first_token))

    @contextlib.asynccontextmanager
    async def reading(
        self, request_id: str, first_block: int, num_blocks: int, *, shared: bool = False
    ) -> AsyncIterator[list[memoryview]]:
        """Borrow blocks of a sequence, waiting until they are computed."""
        context = self._context
        loan = await self._borrow(request_id, first_block, num_blocks)
        try:
            block_ids = loan.block_ids[first_block : first_block + num_blocks]
            num_bytes = num_blocks * context.info.block_bytes
            if shared and self._windows is not None:
                async with self._windows.window(num_bytes) as staged:
                    yield [await self._read(block_ids, staged)]
                return
            views = context.runner.view_blocks(block_ids)
            if views is None:
                views = [await self._read(block_ids, context.runner.host_memory(num_bytes))]
            yield views
        finally:
            self._give_back(loan)

    def close(self, error: Exception) -> None:
        """The engine's thread has ended: answer everything that it did not, now and later, with this error."""
        self._ended = error
        for future in self._unanswered:
            if not future.done():
                future.set_exception(error)

    async def _read(self, block_ids: Seq[int], out: memoryview) -> memoryview:
        await _outlast(asyncio.to_thread(self._context.runner.read_blocks, block_ids, out))
        return out

    async def _borrow(self, request_id: str, first_block: int, num_blocks: int) -> Loan:
        self._check_alive()
        # A request that is not known may have been submitted just now: the engine's thread will know.
        with contextlib.suppress(NotFound), self._context.lock:
            loan = self._lend(request_id, first_block, num_blocks)
            if loan is not None:
                return loan
        wish = _Wish(future=Future(), request_id=request_id, first_block=first_block, num_blocks=num_blocks)
        try:
            return await self._answer(wish.future, lambda: self._keep(wish))
        except asyncio.CancelledError:
            if not wish.future.cancel() and wish.future.exception() is None:
                self._give_back(wish.future.result())
            raise

    def _give_back(self, loan: Loan) -> None:
        pool, num_available = self._context.scheduler.pool, 0
        with self._context.lock:
            num_available = pool.num_available
            self._context.scheduler.loans.give_back(loan)
            num_available -= pool.num_available
        if num_available:
            # Its request was gone: somebody may have waited for these blocks.
            self._context.inbox.put(_do_nothing)

    async def _ask(self, function: Callable[[], T]) -> T:
        future: Future[T] = Future()
        return await self._answer(future, lambda: _run(function, future))

    async def _answer(self, future: Future[T], command: Callable[[], None]) -> T:
        """Send a command, and wait until it has set the future."""
        self._check_alive()
        self._context.inbox.put(command)
        return await self._answered(future)

    async def _answered(self, future: Future[T]) -> T:
        """Wait for a future that the engine's thread sets; cancelling the wait cancels it, if there is time."""
        unanswered: set[Future[T]] = self._unanswered  # type: ignore[assignment]
        unanswered.add(future)
        try:
            return await asyncio.wrap_future(future)
        finally:
            unanswered.discard(future)

    def _check_alive(self) -> None:
        if self._ended is not None:
            raise self._ended

    # In the engine's thread

    def cancel(self, request_id: str) -> None:
        """End a request and everything that was asked about its blocks; what is lent stays lent."""
        gone = NotFound("the request was cancelled")
        with self._context.lock:
            self._context.scheduler.cancel(request_id)
        if (future := self._reserving.pop(request_id, None)) is not None:
            _fail(future, gone)
        for wish in [wish for wish in self._wishes if wish.request_id == request_id]:
            self._wishes.remove(wish)
            _fail(wish.future, gone)

    def advance(self) -> None:
        """After each step: answer what has become possible."""
        if not self._wishes and not self._context.scheduler.has_granted:
            return
        with self._context.lock:
            granted = self._context.scheduler.take_granted()
            self._wishes = [wish for wish in self._wishes if not self._fulfil(wish)]
        for sequence in granted:
            future = self._reserving.pop(sequence.request_id)
            if future.set_running_or_notify_cancel():
                future.set_result(
                    Reservation(
                        request_id=sequence.request_id,
                        num_blocks=len(sequence.table.block_ids),
                        num_held_blocks=sequence.table.num_shared_blocks,
                    )
                )

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

    def _keep(self, wish: _Wish) -> None:
        with self._context.lock:
            if not self._fulfil(wish):
                self._wishes.append(wish)

    def _activate(self, request_id: str, first_token: FirstToken) -> None:
        with self._context.lock:
            output = self._context.scheduler.activate(request_id, first_token)
        self._context.report(output)

    def _fulfil(self, wish: _Wish) -> bool:
        """Under the lock: lend what is wished for, or answer why not; False when it is not computed yet."""
        if wish.future.cancelled():
            return True
        try:
            loan = self._lend(wish.request_id, wish.first_block, wish.num_blocks)
        except TandemError as error:
            _fail(wish.future, error)
            return True
        if loan is None:
            return False
        if wish.future.set_running_or_notify_cancel():
            wish.future.set_result(loan)
        else:
            self._context.scheduler.loans.give_back(loan)
        return True

    # In either thread, under the lock

    def _lend(self, request_id: str, first_block: int, num_blocks: int) -> Loan | None:
        """A loan of what is wished for, None when it is not computed yet."""
        sequence = self._context.scheduler.find(request_id)
        block_size, end = self._context.info.block_size, first_block + num_blocks
        num_all = -(-sequence.num_given_tokens // block_size)
        if not 0 <= first_block <= end <= num_all:
            raise InvalidRequest(f"blocks {first_block} to {end} do not exist; the sequence has {num_all}")
        if sequence.num_computed_tokens < min(end * block_size, sequence.num_given_tokens):
            return None
        return self._context.scheduler.loans.lend(request_id, sequence.table.block_ids)


def _check_writable(sequence: Sequence, written: range) -> None:
    if sequence.phase is not Phase.RESERVED:
        raise Conflict(f"the request is {sequence.phase.value}, not reserved")
    # Blocks from the prefix cache belong to others too.
    first, end = sequence.table.num_shared_blocks, len(sequence.table.block_ids)
    if not first <= written.start <= written.stop <= end:
        raise InvalidRequest(
            f"blocks {written.start} to {written.stop} were not reserved for writing; {first} to {end} are"
        )


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


async def _outlast(work: Coroutine[object, object, None]) -> None:
    """Wait for the end of something that cannot be stopped, whatever happens to the caller."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError


def _do_nothing() -> None:
    """A command that only wakes the engine."""
