"""One open stream with a frontend: commands in, one message per engine step out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from google.protobuf.message import DecodeError
from tandem.v1 import cluster_pb2, decode_pb2
from tandem_common.errors import (
    Conflict,
    InternalError,
    InvalidRequest,
    Overloaded,
    TandemError,
    Unavailable,
)
from tandem_common.generation_proto import generation_from_proto
from tandem_common.lane import Lane
from tandem_common.logs import get_logger
from tandem_worker.metrics import SESSION_OVERFLOWS
from tandem_worker.worker import Worker

from tandem_decode.outbox import Outbox
from tandem_decode.prefill_channels import PrefillChannels
from tandem_decode.stream import Stream

_log = get_logger("session")

Write = Callable[[decode_pb2.SessionResponse], Awaitable[None]]

MAX_STREAMS = 8192
# A frontend that lets more wait than this, or for longer, has stopped reading.
MAX_WAITING_BYTES = 8 << 20
MAX_WAITING_S = 10.0


class Session:
    """All requests of one frontend at this worker."""

    def __init__(
        self,
        worker: Worker,
        channels: PrefillChannels,
        frontend_id: str,
        *,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
        max_waiting_s: float = MAX_WAITING_S,
    ) -> None:
        self.worker = worker
        self.channels = channels
        self.frontend_id = frontend_id
        self.outbox = Outbox()
        self.lane = Lane(self._on_message, self._on_lane_lost, self.flush)
        self._max_waiting_bytes = max_waiting_bytes
        self._max_waiting_s = max_waiting_s
        self._streams: dict[int, Stream] = {}
        self._something = asyncio.Event()
        self._reason: TandemError | None = None
        worker.dispatcher.add_after_step(self, self.flush)

    def handle(self, request: decode_pb2.SessionRequest) -> None:
        """Act on one message; InvalidRequest when the protocol is broken, which ends the session."""
        command = request.WhichOneof("command")
        if command == "open":
            raise InvalidRequest("the session is open already")
        if command is None and not request.submits and not request.cancelled_stream_ids:
            raise InvalidRequest("a message without a command")
        if command == "submit":
            self._submit(request.submit)
        for submit in request.submits:
            self._submit(submit)
        if command == "cancel":
            self._cancel(request.cancel.stream_id)
        for stream_id in request.cancelled_stream_ids:
            self._cancel(stream_id)
        self.flush()

    def forget(self, stream: Stream) -> None:
        """A stream has ended."""
        self._streams.pop(stream.stream_id, None)

    def flush(self) -> None:
        """Send what waits; ends the session when too much does. Called after each engine step."""
        outbox, lane = self.outbox, self.lane
        if not outbox:
            return
        by_lane = lane.is_open and self._reason is None
        if by_lane and not lane.is_full:
            lane.write(outbox.take().SerializeToString())
            return
        # What a full lane does not take gathers here, and is merged.
        if (
            outbox.num_bytes > self._max_waiting_bytes
            or outbox.waiting_s(time.monotonic()) > self._max_waiting_s
        ):
            self._overflow()
        if not by_lane:
            self._something.set()

    def end(self, reason: TandemError) -> None:
        """Send what waits and end with `reason`. Idempotent; the first reason counts."""
        if self._reason is None:
            self._reason = reason
        self._something.set()

    async def write_out(self, write: Write) -> None:
        """Write what does not take the lane until the session ends; raises its reason."""
        while True:
            await self._something.wait()
            self._something.clear()
            if self.lane.is_open and self.outbox:  # the last words
                self.lane.write(self.outbox.take().SerializeToString())
            while self.outbox:
                try:
                    async with asyncio.timeout(self._max_waiting_s):
                        await write(self.outbox.take())
                except TimeoutError:
                    self._overflow()
                    break
            if self._reason is not None:
                raise self._reason

    def close(self) -> None:
        """Cancel everything of this session."""
        self.lane.close()
        self.worker.dispatcher.remove_after_step(self)
        for stream in list(self._streams.values()):
            stream.cancel()

    def _on_message(self, message: bytes) -> None:
        """Over the lane."""
        try:
            self.handle(decode_pb2.SessionRequest.FromString(message))
        except TandemError as error:
            self.end(error)
        except DecodeError:
            self.end(InvalidRequest("the message could not be parsed"))
        except Exception:  # noqa: BLE001 - the last line: nothing internal may reach the caller
            _log.exception("unexpected error in a session", frontend_id=self.frontend_id)
            self.end(InternalError("internal error"))

    def _on_lane_lost(self) -> None:
        self.end(Unavailable("the lane of the session was lost"))

    def _cancel(self, stream_id: int) -> None:
        if stream := self._streams.get(stream_id):
            stream.cancel()

    def _submit(self, submit: decode_pb2.Submit) -> None:
        stream_id = submit.stream_id
        if stream_id in self._streams:
            raise InvalidRequest(f"stream {stream_id} is in use")
        try:
            self.worker.gate.check(cluster_pb2.ROLE_DECODE)
            stream = self._make_stream(submit)
        except TandemError as error:
            self._refuse(stream_id, error)
            return
        self._streams[stream_id] = stream
        stream.start(submit.prefill if submit.HasField("prefill") else None)

    def _make_stream(self, submit: decode_pb2.Submit) -> Stream:
        config = self.worker.config
        if len(self._streams) >= MAX_STREAMS:
            raise Overloaded("too many requests in this session", retry_after_ms=1000)
        generation = generation_from_proto(submit.generation)
        if generation.model and generation.model != config.model_name:
            raise Conflict("this worker serves another model")
        timeout_s = min(submit.timeout_ms / 1000 or config.request_timeout_s, config.request_timeout_s)
        return Stream(self, submit.stream_id, generation, timeout_s)

    def _refuse(self, stream_id: int, error: TandemError) -> None:
        failed = decode_pb2.StreamError(
            code=error.code.value[0],
            message=error.message,
            retryable=error.retryable,
            retry_after_ms=error.retry_after_ms,
        )
        self.outbox.add_event(decode_pb2.StreamEvent(stream_id=stream_id, error=failed))
        self._something.set()
        _log.info("request refused", frontend_id=self.frontend_id, code=error.code.name)

    def _overflow(self) -> None:
        SESSION_OVERFLOWS.inc()
        _log.warning("ending a session: the frontend does not read", frontend_id=self.frontend_id)
        self.end(Overloaded("the frontend does not read what it asked for"))
