"""All calls of one frontend over one stream: most are answered in the message that follows theirs, without a task."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from google.protobuf.message import DecodeError
from tandem.v1 import router_pb2 as pb
from tandem_common.batch_writer import BatchWriter
from tandem_common.errors import InternalError, InvalidRequest, Overloaded, TandemError, Unavailable
from tandem_common.lane import Lane
from tandem_common.logs import get_logger

from tandem_router.dispatcher import Dispatched, Pending

MAX_OPEN_CALLS = 16_384

_log = get_logger("route_stream")


class Decide(Protocol):
    """What the servicer does for a call."""

    def observe(self, observations: Sequence[pb.TtftObservation], served: Sequence[pb.ServedTokens]) -> None:
        """Learn how earlier requests turned out."""
        ...

    def begin(self, query: pb.RouteQuery, traceparent: str) -> pb.RouteResponse | Pending:
        """Decide, or let it wait; raises TandemError."""
        ...

    def end(self, query: pb.RouteQuery, dispatched: Dispatched) -> pb.RouteResponse:
        """The answer to a call that waited."""
        ...

    def refused(self, query: pb.RouteQuery, error: TandemError) -> None:
        """A call was refused."""
        ...

    def leave(self, pending: Pending) -> None:
        """A call that waits is not wanted any more. Idempotent."""
        ...


class RouteStream:
    """One per stream; `close` at its end."""

    def __init__(self, decide: Decide, ended: asyncio.Future[None]) -> None:
        """`ended` gets the reason when what comes over the lane ends the stream."""
        self._decide = decide
        self._ended = ended
        self.lane = Lane(
            self._on_message, lambda: self._end_stream(Unavailable("the lane was lost")), self._flush
        )
        self._answers: list[pb.RouteAnswer] = []
        self._pending: dict[int, Pending] = {}
        self.writer: BatchWriter[pb.RouteStreamResponse] = BatchWriter(self._take)

    def handle(self, request: pb.RouteStreamRequest) -> None:
        """Take calls and cancellations. Overloaded when too many calls wait: that ends the stream."""
        self._decide.observe(request.observations, request.served)
        for call in request.calls:
            self._answers.append(self._begin(call))
        for call_id in request.cancelled_call_ids:
            if (pending := self._pending.pop(call_id, None)) is not None:
                self._decide.leave(pending)
        self._flush()

    def close(self) -> None:
        """Nobody listens any more."""
        pending, self._pending = self._pending, {}
        for call in pending.values():
            self._decide.leave(call)

    def _begin(self, call: pb.RouteCall) -> pb.RouteAnswer:
        try:
            answer = self._decide.begin(call.query, call.traceparent)
        except TandemError as error:
            return self._refused(call, error)
        except Exception:  # noqa: BLE001 - one bad call never harms another
            _log.exception("a call failed in an unexpected way")
            return _failure(call.call_id, InternalError("internal error"))
        if isinstance(answer, pb.RouteResponse):
            return pb.RouteAnswer(call_id=call.call_id, route=answer)
        if len(self._pending) >= MAX_OPEN_CALLS or call.call_id in self._pending:
            self._decide.leave(answer)
            raise Overloaded("too many calls wait in this stream", retry_after_ms=1000)
        self._pending[call.call_id] = answer
        answer.future.add_done_callback(partial(self._end, call))
        return pb.RouteAnswer(call_id=call.call_id, waiting=pb.RouteWaiting())

    def _end(self, call: pb.RouteCall, future: asyncio.Future[Dispatched]) -> None:
        """A call that waited has an outcome."""
        pending = self._pending.pop(call.call_id, None)
        if pending is None or future.cancelled():
            return
        self._decide.leave(pending)
        error = future.exception()
        if error is None:
            route = self._decide.end(call.query, future.result())
            self._answers.append(pb.RouteAnswer(call_id=call.call_id, route=route))
        else:
            refusal = error if isinstance(error, TandemError) else InternalError("internal error")
            self._answers.append(self._refused(call, refusal))
        self._flush()

    def _flush(self) -> None:
        """Over the lane at once, over gRPC soon."""
        if not self.lane.is_open:
            self.writer.wake()
        elif not self.lane.is_full and (response := self._take()) is not None:
            self.lane.write(response.SerializeToString())

    def _on_message(self, message: bytes) -> None:
        """Over the lane."""
        try:
            self.handle(pb.RouteStreamRequest.FromString(message))
        except TandemError as error:
            self._end_stream(error)
        except DecodeError:
            self._end_stream(InvalidRequest("the message could not be parsed"))

    def _end_stream(self, reason: TandemError) -> None:
        if not self._ended.done():
            self._ended.set_exception(reason)

    def _refused(self, call: pb.RouteCall, error: TandemError) -> pb.RouteAnswer:
        self._decide.refused(call.query, error)
        return _failure(call.call_id, error)

    def _take(self) -> pb.RouteStreamResponse | None:
        if not self._answers:
            return None
        answers, self._answers = self._answers, []
        return pb.RouteStreamResponse(answers=answers)


def _failure(call_id: int, error: TandemError) -> pb.RouteAnswer:
    failure = pb.RouteFailure(
        code=error.code.value[0], message=error.message, retry_after_ms=error.retry_after_ms
    )
    return pb.RouteAnswer(call_id=call_id, failure=failure)
