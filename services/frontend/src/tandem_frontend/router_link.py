"""One stream with one router for the calls of all requests; what gathers in a turn of the event loop is one message."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import deque
from dataclasses import dataclass
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError
from tandem.v1 import router_pb2 as pb
from tandem.v1 import router_pb2_grpc
from tandem_common.batch_writer import BatchWriter
from tandem_common.errors import DeadlineExceeded, TandemError, Unavailable, error_for_code
from tandem_common.lane import Lane, take_lane
from tandem_common.rpc import open_channel
from tandem_common.telemetry import current_traceparent

# A router answers, or says that the request waits for a worker, within the first; it never holds a request for as
# long as the second.
ROUTE_DEADLINE_S = 1.0
ROUTE_WAIT_S = 120.0
_MAX_REPORTS = 64  # of each kind, in one message


class NoAnswer(Unavailable):
    """The router said nothing about the request: its stream broke, or its answer makes no sense."""


class Reports:
    """What became of earlier requests: told to whichever router is asked next. The oldest make room."""

    def __init__(self) -> None:
        self.observations: deque[pb.TtftObservation] = deque(maxlen=1024)
        self.served: deque[pb.ServedTokens] = deque(maxlen=1024)


Report = TypeVar("Report")


@dataclass(slots=True)
class _Call:
    answer: asyncio.Future[pb.RouteResponse]
    deadline: asyncio.TimerHandle


class RouterLink:
    """Opened with the first call, and again with the next one after it broke."""

    def __init__(self, address: str, reports: Reports) -> None:
        """`reports` are taken along, and away, with the calls."""
        self._address = address
        self._channel = open_channel(address)
        self._reports = reports
        self._calls: dict[int, _Call] = {}
        self._next_id = 1
        self._new: list[pb.RouteCall] = []
        self._cancelled: list[int] = []
        self._writer: BatchWriter[pb.RouteStreamRequest] = BatchWriter(self._take)
        self._lane = Lane(self._on_message, lambda: None)
        self._running: asyncio.Task[None] | None = None
        # The stream outlives the request that opens it and must not carry its id into logs and spans.
        self._context = contextvars.Context()

    async def ask(self, query: pb.RouteQuery) -> pb.RouteResponse:
        """The router's answer, a route or an error of its; DeadlineExceeded or NoAnswer when it gives none."""
        loop = asyncio.get_running_loop()
        if self._running is None:
            self._running = loop.create_task(self._run(), name="router", context=self._context)
        call_id, self._next_id = self._next_id, self._next_id % (2**32 - 1) + 1
        call = _Call(loop.create_future(), loop.call_later(ROUTE_DEADLINE_S, self._give_up, call_id))
        self._calls[call_id] = call
        self._new.append(pb.RouteCall(call_id=call_id, query=query, traceparent=current_traceparent()))
        self._writer.wake()
        try:
            return await call.answer
        finally:
            call.deadline.cancel()
            if self._calls.pop(call_id, None) is not None:
                self._cancel(call_id)  # the request is not wanted any more: leave the router's queue

    async def close(self) -> None:
        """End the stream and what is open in it."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await self._channel.close()

    async def _run(self) -> None:
        stream = router_pb2_grpc.RouterServiceStub(self._channel).RouteStream()
        writing = asyncio.create_task(self._write(stream))
        error: TandemError = NoAnswer("the router ended the stream")
        try:
            async for response in stream:
                self._receive(response)
        except grpc.aio.AioRpcError as broken:
            error = NoAnswer(f"the stream with the router broke ({broken.code().name})")
        finally:
            self._running = None
            self._new, self._cancelled = [], []
            calls, self._calls = self._calls, {}
            for call in calls.values():
                _fail(call, error)
            self._lane.close()
            writing.cancel()
            stream.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writing

    async def _write(
        self, stream: grpc.aio.StreamStreamCall[pb.RouteStreamRequest, pb.RouteStreamResponse]
    ) -> None:
        try:
            self._lane = Lane(self._on_message, stream.cancel)
            # The first calls do not wait for the lane.
            if (request := self._take()) is not None:
                await stream.write(request)
            await take_lane(self._lane, self._address, stream)
            await self._writer.run(self._write_to_lane if self._lane.is_open else stream.write)
        except Exception:  # noqa: BLE001 - grpc.aio raises several kinds; the reader sees the status
            stream.cancel()

    async def _write_to_lane(self, request: pb.RouteStreamRequest) -> None:
        self._lane.write(request.SerializeToString())
        await self._lane.room()

    def _on_message(self, message: bytes) -> None:
        """Over the lane."""
        try:
            self._receive(pb.RouteStreamResponse.FromString(message))
        except DecodeError:
            if self._running is not None:
                self._running.cancel()

    def _receive(self, response: pb.RouteStreamResponse) -> None:
        for answer in response.answers:
            self._on_answer(answer)

    def _take(self) -> pb.RouteStreamRequest | None:
        if not self._new and not self._cancelled:
            return None
        request = pb.RouteStreamRequest(
            calls=self._new,
            cancelled_call_ids=self._cancelled,
            observations=_some(self._reports.observations),
            served=_some(self._reports.served),
        )
        self._new, self._cancelled = [], []
        return request

    def _on_answer(self, answer: pb.RouteAnswer) -> None:
        call = self._calls.get(answer.call_id)
        if call is None:
            return
        if answer.HasField("waiting"):
            call.deadline.cancel()
            call.deadline = asyncio.get_running_loop().call_later(ROUTE_WAIT_S, self._give_up, answer.call_id)
            return
        del self._calls[answer.call_id]
        if answer.HasField("failure"):
            failure = answer.failure
            retry_after_ms = failure.retry_after_ms if failure.HasField("retry_after_ms") else None
            _fail(call, error_for_code(failure.code, failure.message, retry_after_ms=retry_after_ms))
        elif not answer.route.decode.worker_id:
            _fail(call, NoAnswer("the router named no worker"))
        elif not call.answer.done():
            call.answer.set_result(answer.route)

    def _give_up(self, call_id: int) -> None:
        call = self._calls.pop(call_id, None)
        if call is not None:
            self._cancel(call_id)
            _fail(call, DeadlineExceeded("the router did not answer in time"))

    def _cancel(self, call_id: int) -> None:
        self._cancelled.append(call_id)
        self._writer.wake()


def _some(reports: deque[Report]) -> list[Report]:
    return [reports.popleft() for _ in range(min(_MAX_REPORTS, len(reports)))]


def _fail(call: _Call, error: TandemError) -> None:
    if not call.answer.done():
        call.answer.set_exception(error)
