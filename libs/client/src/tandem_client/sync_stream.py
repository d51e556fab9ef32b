"""An answer that arrives piece by piece, for the sync client."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, Self

import grpc

from tandem_client.answer import Answer, Response
from tandem_client.errors import error_from_rpc
from tandem_client.results import Completion, Delta
from tandem_client.watchdog import Watchdog


class _Call(Iterator[Response], Protocol):
    def cancel(self) -> bool: ...


class AnswerStream(Iterator[Delta]):
    """Iterator over the pieces of one answer, and context manager; not for use by two threads at once.

    The call starts with the first piece asked for. Leaving the `with` block, `close()`, or dropping the object
    before the end cancels the call on the server. Iterating raises TandemError.

        with client.stream_chat("Tell me a story.", model="tandem-tiny") as stream:
            for delta in stream:
                print(delta.text, end="", flush=True)
            print(stream.completion.usage)
    """

    def __init__(self, answer: Answer, start: Callable[[float], _Call]) -> None:
        """`start` makes the call, given the seconds that it may take. Clients make these objects."""
        self._answer = answer
        self._start = start
        self._call: _Call | None = None
        # Weakly, so that the watchdog's thread does not keep a dropped stream alive.
        cancel_call = weakref.WeakMethod(self._cancel_call)
        self._watchdog = Watchdog(lambda: _call_if_alive(cancel_call))
        self._done = False

    @property
    def request_id(self) -> str:
        """The server's name for the request; "" before its first response."""
        return self._answer.request_id

    @property
    def completion(self) -> Completion:
        """The whole answer, once the iteration has ended by itself; ServerError before."""
        return self._answer.completion()

    def close(self) -> None:
        """Cancel the call if it is still running; idempotent."""
        self._done = True
        self._watchdog.close()
        self._cancel_call()

    def __next__(self) -> Delta:
        while not self._done:
            try:
                delta = self._read()
            except BaseException:
                self.close()
                raise
            if delta is not None:
                return delta
        raise StopIteration

    def _read(self) -> Delta | None:
        """One message, or one failed attempt and the wait after it."""
        if self._call is None:
            self._call = self._start(self._answer.call_timeout_s(time.monotonic()))
        self._watchdog.arm(self._answer.patience_s(time.monotonic()))
        try:
            response = next(self._call, None)
        except grpc.RpcError as rpc_error:
            if self._watchdog.expired:
                self._answer.timed_out(time.monotonic())
                self.close()
                return None
            self._watchdog.disarm()
            self._call = None
            if self._done:  # closed by another thread
                return None
            error = error_from_rpc(rpc_error)
            wait_s = self._answer.failed(error, time.monotonic())
            if wait_s is None:
                self.close()
            else:
                time.sleep(wait_s)
            return None
        if response is None:
            self._answer.ended()
            self.close()
            return None
        return self._answer.accept(response)

    def _cancel_call(self) -> None:
        call = self._call
        if call is not None:
            call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _call_if_alive(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    bound = method()
    if bound is not None:
        bound()
