"""An answer that arrives piece by piece, for the async client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Protocol, Self

import grpc

from tandem_client.answer import Answer, Response
from tandem_client.errors import Cancelled, TandemError, error_from_rpc
from tandem_client.results import Completion, Delta


class _Call(Protocol):
    async def read(self) -> object: ...

    def cancel(self) -> bool: ...


class AsyncAnswerStream(AsyncIterator[Delta]):
    """Async iterator over the pieces of one answer, and async context manager; for one task at a time.

    The call starts with the first piece asked for. Leaving the `async with` block, `close()`, or cancelling the
    task that waits for a piece cancels the call on the server. Iterating raises TandemError.

        async with client.stream_chat("Tell me a story.", model="tandem-tiny") as stream:
            async for delta in stream:
                print(delta.text, end="", flush=True)
            print(stream.completion.usage)
    """

    def __init__(self, answer: Answer, start: Callable[[float], _Call]) -> None:
        """`start` makes the call, given the seconds that it may take. Clients make these objects."""
        self._answer = answer
        self._start = start
        self._call: _Call | None = None
        self._done = False

    @property
    def request_id(self) -> str:
        """The server's name for the request; "" before its first response."""
        return self._answer.request_id

    @property
    def completion(self) -> Completion:
        """The whole answer, once the iteration has ended by itself; ServerError before."""
        return self._answer.completion()

    async def close(self) -> None:
        """Cancel the call if it is still running; idempotent."""
        self._cancel()

    async def __anext__(self) -> Delta:
        while not self._done:
            try:
                delta = await self._read()
            except BaseException:
                self._cancel()
                raise
            if delta is not None:
                return delta
        raise StopAsyncIteration

    async def _read(self) -> Delta | None:
        """One message, or one failed attempt and the wait after it."""
        if self._call is None:
            self._call = self._start(self._answer.call_timeout_s(time.monotonic()))
        try:
            async with asyncio.timeout(self._answer.patience_s(time.monotonic())) as watchdog:
                message = await self._message(self._call)
        except TimeoutError:
            message = None
        if watchdog.expired():  # also when gRPC put another error in the place of the cancellation
            self._answer.timed_out(time.monotonic())
            self._cancel()
            return None
        if isinstance(message, Response):
            return self._answer.accept(message)
        if isinstance(message, TandemError):
            await self._recover(message)
        elif not self._done:
            self._answer.ended()
            self._cancel()
        return None

    async def _message(self, call: _Call) -> object:
        """The next message, gRPC's end mark, or the error that the call ended with."""
        try:
            return await call.read()
        except grpc.aio.AioRpcError as failure:
            return error_from_rpc(failure)
        except asyncio.CancelledError:
            # gRPC raises this in the reader's task too when the call was cancelled by `close` or by the server.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return Cancelled("the server cancelled the call")

    async def _recover(self, error: TandemError) -> None:
        """Wait for the time of the next attempt, or raise what the caller must see."""
        if self._done:  # closed by another task
            return
        self._call = None
        wait_s = self._answer.failed(error, time.monotonic())
        if wait_s is None:
            self._done = True
        else:
            await asyncio.sleep(wait_s)

    def _cancel(self) -> None:
        self._done = True
        if self._call is not None:
            self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cancel()
