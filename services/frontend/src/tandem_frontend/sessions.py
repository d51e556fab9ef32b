"""One `DecodeService.Session` per decode worker, shared by all requests that it decodes.

The token path is synchronous: a message is read from the session's lane by the event loop itself (where there is no
lane, from gRPC by a task), and each of its rows is handed straight to the sink of its request (or to the quick way that
it has opened, see `plain_stream`), which writes to the client's socket before the next row is looked at. No task is
woken and nothing is queued in between. Only while the event loop is behind are messages gathered for a few
milliseconds, so that the tokens of one request that came meanwhile cost one call, one event and one write.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError
from tandem.v1 import decode_pb2 as pb
from tandem.v1 import decode_pb2_grpc, generation_pb2, router_pb2
from tandem_common.batch_writer import BatchWriter
from tandem_common.errors import InternalError, TandemError, Unavailable, error_for_code
from tandem_common.lane import Lane, take_lane
from tandem_common.logs import get_logger
from tandem_common.rpc import open_channel

from tandem_frontend.loop_pressure import LoopPressure
from tandem_frontend.plain_stream import PlainStream
from tandem_frontend.step_rows import GatheredRows, Row, rows_of

# Commands that a worker has not taken; more means that it does not read any more.
MAX_COMMANDS = 8192
_MAX_STREAM_ID = 2**32 - 1
# How many messages are gathered while the event loop is behind, and for how long at most.
_MAX_GATHERED = 8
_GATHER_S = 0.05
_LAST_WORDS_S = 0.5

_log = get_logger("sessions")


class StreamSink(Protocol):
    """One request inside a session. Called from the reader, in order; must not block."""

    def on_tokens(self, token_ids: Sequence[int], logprobs: Sequence[generation_pb2.TokenLogprobs]) -> None:
        """New tokens, and their log-probabilities if asked for."""
        ...

    def on_started(self, started: pb.StreamStarted) -> None:
        """The first token came."""
        ...

    def on_finished(self, finished: pb.StreamFinished) -> None:
        """The last call: the sequence has ended."""
        ...

    def on_error(self, error: TandemError, *, retryable: bool) -> None:
        """The last call: it failed here; when `retryable`, nothing is wrong with the request itself."""
        ...


class Session:
    """Commands to, and tokens from, one incarnation of one decode worker."""

    def __init__(self, worker: router_pb2.WorkerRef, frontend_id: str, pressure: LoopPressure) -> None:
        self._pressure = pressure
        self._gathered = GatheredRows()
        self._gathering: asyncio.TimerHandle | None = None
        self.worker_id = worker.worker_id
        self.epoch = worker.epoch
        self.broken = False
        self._channel = open_channel(worker.address)
        self._streams: dict[int, StreamSink] = {}
        self._plain: dict[int, PlainStream] = {}  # of some of them
        self._next_id = 1
        self._address = worker.address
        self._lane = Lane(self._on_message, lambda: None)
        self._opening = pb.OpenSession(frontend_id=frontend_id, epoch=worker.epoch)
        # Commands that are not written yet.
        self._submits: list[pb.Submit] = []
        self._cancelled_ids: list[int] = []
        self._writer: BatchWriter[pb.SessionRequest] = BatchWriter(self._take_commands)

    @property
    def num_streams(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    def submit(
        self,
        generation: generation_pb2.Generation,
        prefill: router_pb2.WorkerRef | None,
        timeout_ms: int,
        sink: StreamSink,
    ) -> int:
        """Start a request; everything about it goes to `sink`. Returns its stream id. Unavailable when broken."""
        if self.broken:
            raise Unavailable("the session with the worker has ended")
        stream_id = self._next_id
        self._next_id = self._next_id % _MAX_STREAM_ID + 1
        self._streams[stream_id] = sink
        self._submits.append(
            pb.Submit(stream_id=stream_id, generation=generation, prefill=prefill, timeout_ms=timeout_ms)
        )
        self._command_came()
        return stream_id

    def take_plainly(self, stream_id: int, plain: PlainStream) -> None:
        """Offer the tokens of a request to `plain` before its sink."""
        self._plain[stream_id] = plain

    def cancel(self, stream_id: int) -> None:
        """Forget a request and tell the worker; nothing more reaches its sink. Idempotent."""
        if self._forget(stream_id) is not None and not self.broken:
            self._cancelled_ids.append(stream_id)
            self._command_came()

    async def run(self) -> None:
        """Talk until the stream ends or this is cancelled; then tell every request that is left."""
        reason = "the worker ended the session"
        call = decode_pb2_grpc.DecodeServiceStub(self._channel).Session()
        writer = asyncio.create_task(self._write(call))
        try:
            try:
                async for response in call:
                    self._receive(response)
            except grpc.aio.AioRpcError as error:
                reason = f"the session with the worker broke ({error.code().name})"
            await self._lane.ended()  # what the worker said last may still be on its way
        finally:
            self._hand_on()
            self._break(reason)
            self._lane.close()
            writer.cancel()
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writer
            await self._channel.close()

    async def _write(self, call: grpc.aio.StreamStreamCall[pb.SessionRequest, pb.SessionResponse]) -> None:
        """Open the session, then send commands, over the lane if there is one."""
        try:
            await call.write(pb.SessionRequest(open=self._opening))
            loop = asyncio.get_running_loop()
            # The session ends with its lane. The worker's own word about the end comes first, if there is one.
            self._lane = Lane(self._on_message, lambda: loop.call_later(_LAST_WORDS_S, call.cancel))
            await take_lane(self._lane, self._address, call)
            await self._writer.run(self._write_to_lane if self._lane.is_open else call.write)
        except Exception as error:  # noqa: BLE001 - grpc.aio raises several kinds; the reader sees the status
            _log.debug("writing to a session failed", worker_id=self.worker_id, error=type(error).__name__)
            call.cancel()

    async def _write_to_lane(self, request: pb.SessionRequest) -> None:
        self._lane.write(request.SerializeToString())
        await self._lane.room()

    def _on_message(self, message: bytes) -> None:
        """Over the lane."""
        try:
            self._receive(pb.SessionResponse.FromString(message))
        except DecodeError:
            self._break("the worker sent what cannot be read")
            self._lane.close()  # which ends the session there

    def _command_came(self) -> None:
        if len(self._submits) + len(self._cancelled_ids) > MAX_COMMANDS:
            self._break("the worker takes no commands")
        self._writer.wake()

    def _take_commands(self) -> pb.SessionRequest | None:
        """All commands that wait, as one message."""
        if not self._submits and not self._cancelled_ids:
            return None
        request = pb.SessionRequest(submits=self._submits, cancelled_stream_ids=self._cancelled_ids)
        self._submits, self._cancelled_ids = [], []
        return request

    def _receive(self, response: pb.SessionResponse) -> None:
        """Hand a message on, now or together with those of the next milliseconds; events never wait."""
        if not self._pressure.behind and not self._gathered.num_messages:
            self._dispatch(response)
            return
        now = time.monotonic()
        self._pressure.num_merged += len(response.stream_ids)
        for row, event in self._gathered.add(response):
            if row is not None:
                self._hand_on_row(event.stream_id, row, now)
            self._on_event(event)
        if self._gathered.num_messages >= _MAX_GATHERED:
            self._hand_on()
        elif self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_later(_GATHER_S, self._hand_on)

    def _hand_on(self) -> None:
        """Hand on what was gathered."""
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        now = time.monotonic()
        for stream_id, row in self._gathered.take().items():
            self._hand_on_row(stream_id, row, now)

    def _hand_on_row(self, stream_id: int, row: Row, now: float) -> None:
        self._pressure.num_merged -= 1
        self._pressure.num_handed_on += 1
        self._on_row(stream_id, row.token_ids, row.logprobs, now)

    def _dispatch(self, response: pb.SessionResponse) -> None:
        """Hand each row, then each event, to its request."""
        now = time.monotonic()
        self._pressure.num_handed_on += len(response.stream_ids)
        if response.token_counts or response.logprobs:
            logprobs = {entry.stream_id: entry.tokens for entry in response.logprobs}
            for stream_id, token_ids in rows_of(response):
                self._on_row(stream_id, token_ids, logprobs.get(stream_id, ()), now)
        else:
            self._on_step(response.stream_ids[:], response.token_ids[:], now)
        for event in response.events:
            self._on_event(event)

    def _on_step(self, stream_ids: Iterable[int], token_ids: Iterable[int], now: float) -> None:
        """One token each, as in nearly every message: the loop that all else waits for."""
        plain_streams = self._plain
        for stream_id, token_id in zip(stream_ids, token_ids, strict=False):
            plain = plain_streams.get(stream_id)
            try:
                if plain is not None and plain.take(token_id, now):
                    continue
            except Exception:  # noqa: BLE001 - as below
                self._fail(stream_id)
            self._on_tokens(stream_id, [token_id], ())

    def _on_row(
        self,
        stream_id: int,
        token_ids: Sequence[int],
        logprobs: Sequence[generation_pb2.TokenLogprobs],
        now: float,
    ) -> None:
        """Any number of tokens."""
        plain = self._plain.get(stream_id)
        try:
            if plain is not None and not logprobs and plain.take_all(token_ids, now):
                return
        except Exception:  # noqa: BLE001 - as below
            self._fail(stream_id)
        self._on_tokens(stream_id, token_ids, logprobs)

    def _on_tokens(
        self, stream_id: int, token_ids: Sequence[int], logprobs: Sequence[generation_pb2.TokenLogprobs]
    ) -> None:
        """A defect in one request's sink ends that request only."""
        sink = self._streams.get(stream_id)
        if sink is not None:
            try:
                sink.on_tokens(token_ids, logprobs)
            except Exception:  # noqa: BLE001 - one bad request never harms another
                self._fail(stream_id)

    def _on_event(self, event: pb.StreamEvent) -> None:
        sink = self._streams.get(event.stream_id)
        if sink is not None:
            try:
                self._apply(event, sink)
            except Exception:  # noqa: BLE001 - as above
                self._fail(event.stream_id)

    def _apply(self, event: pb.StreamEvent, sink: StreamSink) -> None:
        match event.WhichOneof("event"):
            case "started":
                sink.on_started(event.started)
            case "finished":
                self._forget(event.stream_id)
                sink.on_finished(event.finished)
            case "error":
                self._forget(event.stream_id)
                error = event.error
                retry_after_ms = error.retry_after_ms if error.HasField("retry_after_ms") else None
                sink.on_error(
                    error_for_code(error.code, error.message, retry_after_ms=retry_after_ms),
                    retryable=error.retryable,
                )

    def _forget(self, stream_id: int) -> StreamSink | None:
        self._plain.pop(stream_id, None)
        return self._streams.pop(stream_id, None)

    def _fail(self, stream_id: int) -> None:
        """In the handler of an exception."""
        _log.exception("a request's sink failed", worker_id=self.worker_id)
        sink = self._streams.get(stream_id)
        self.cancel(stream_id)
        if sink is not None:
            sink.on_error(InternalError("internal error"), retryable=False)

    def _break(self, reason: str) -> None:
        if self.broken:
            return
        self.broken = True
        streams, self._streams, self._plain = self._streams, {}, {}
        if streams:
            _log.warning(reason, worker_id=self.worker_id, epoch=self.epoch, num_streams=len(streams))
        for sink in streams.values():
            sink.on_error(Unavailable(reason), retryable=True)


class SessionPool:
    """Sessions by worker, opened when first needed. Owns their tasks."""

    def __init__(self, frontend_id: str, pressure: LoopPressure) -> None:
        self._frontend_id = frontend_id
        self._pressure = pressure
        self._sessions: dict[str, Session] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # Sessions outlive the request that opens them and must not carry its id into logs and spans.
        self._context = contextvars.copy_context()

    def get(self, worker: router_pb2.WorkerRef) -> Session:
        """The session with this incarnation of a worker; Unavailable for one that a later one has replaced."""
        session = self._sessions.get(worker.worker_id)
        if session is not None and not session.broken:
            if session.epoch == worker.epoch:
                return session
            if session.epoch > worker.epoch:
                raise Unavailable("the worker was restarted meanwhile")
        session = Session(worker, self._frontend_id, self._pressure)
        self._sessions[worker.worker_id] = session
        task = asyncio.create_task(session.run(), name=f"session {worker.worker_id}", context=self._context)
        self._tasks.add(task)
        task.add_done_callback(self._on_end(session))
        return session

    @property
    def num_sessions(self) -> int:
        """Sessions that are open."""
        return len(self._sessions)

    async def close(self) -> None:
        """End all sessions; the requests in them are told."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _on_end(self, session: Session) -> Callable[[asyncio.Task[None]], None]:
        def forget(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if self._sessions.get(session.worker_id) is session:
                del self._sessions[session.worker_id]
            if not task.cancelled() and (error := task.exception()) is not None:
                _log.error("a session ended oddly", worker_id=session.worker_id, error=type(error).__name__)

        return forget
