"""One generation from routing to its end, across as many workers as it takes.

A worker that fails for a reason that is its own (a broken session, silence, a retryable error) is left: the prompt
and the tokens so far are submitted to another one, which goes on where the first stopped. The sink sees
no gap and no repeat, because tokens reach it from one live attempt at a time and every draw depends on seed
and position only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tandem.v1 import decode_pb2, generation_pb2
from tandem_common.errors import DeadlineExceeded, InvalidRequest, TandemError, Unavailable
from tandem_common.generation import FinishReason
from tandem_common.logs import get_logger
from tandem_common.token_ids import pack_token_ids

from tandem_frontend.histogram import StepHistogram
from tandem_frontend.plain_stream import PlainStream, TokenTimes
from tandem_frontend.preparation import PreparedRequest
from tandem_frontend.routing import Route, RouterClient
from tandem_frontend.sessions import Session, SessionPool
from tandem_frontend.text_stream import TextStream

_log = get_logger("generation")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLimits:
    """How long to wait, and how often to start again."""

    first_token_timeout_s: float
    token_timeout_s: float
    request_timeout_s: float
    max_migrations: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """What runs use: where to go, and how to talk there."""

    router: RouterClient
    sessions: SessionPool
    limits: RunLimits
    itl_s: StepHistogram


@dataclass(frozen=True, slots=True)
class _AttemptEnd:
    """How an attempt on one worker ended: with a reason, or with an error."""

    reason: FinishReason | None = None
    error: TandemError | None = None
    retryable: bool = False


class GenerationRun:
    """Runs one prepared request; `text` receives its tokens."""

    def __init__(self, request: PreparedRequest, text: TextStream, backend: Backend) -> None:
        self._request = request
        self._text = text
        self._backend = backend
        self.times = TokenTimes(backend.itl_s)
        self.num_cached_tokens = 0
        self.num_migrations = 0
        self.decode_worker_ids: list[str] = []
        self.prefill_worker_id = ""

    @property
    def token_ids(self) -> Sequence[int]:
        """Generated so far."""
        return self._text.token_ids

    async def run(self) -> FinishReason:
        """Generate to the end; raises what is wrong, after the tokens so far. Cancelling stops the worker."""
        limits = self._backend.limits
        try:
            async with asyncio.timeout(limits.request_timeout_s) as timeout:
                return await self._run(timeout)
        except TimeoutError:
            raise DeadlineExceeded(f"the request took longer than {limits.request_timeout_s:g} s") from None

    async def _run(self, timeout: asyncio.Timeout) -> FinishReason:
        limits = self._backend.limits
        excluded = list(self._request.query.excluded_worker_ids)  # as the client wishes
        while True:
            if len(self.token_ids) >= self._request.generation.stopping.max_tokens:
                return FinishReason.LENGTH  # the worker died between its last token and saying so
            query = self._request.query
            if excluded:
                query.ClearField("excluded_worker_ids")
                query.excluded_worker_ids.extend(excluded)
            route = await self._backend.router.route(query)
            routed_at = time.monotonic()
            num_before = len(self.token_ids)
            try:
                end = await self._attempt(route, timeout)
            finally:
                self._backend.router.note_served(query, len(self.token_ids) - num_before)
            if self.times.first_at is not None and self.times.first_at >= routed_at:
                self._backend.router.observe(route, self.times.first_at - routed_at)
            if end.reason is not None:
                self._text.finish()
                return end.reason
            assert end.error is not None
            if not end.retryable or self.num_migrations >= limits.max_migrations:
                raise _shown(end.error)
            self.num_migrations += 1
            excluded.append(route.decode.worker_id)
            _log.warning(
                "going on elsewhere",
                request_id=self._request.generation.request_id,
                left_worker_id=route.decode.worker_id,
                num_tokens=len(self.token_ids),
                reason=end.error.code.name,
            )

    async def _attempt(self, route: Route, timeout: asyncio.Timeout) -> _AttemptEnd:
        """Submit to one worker and wait for the end there."""
        loop = asyncio.get_running_loop()
        message = self._request.message
        if self.token_ids:
            message = generation_pb2.Generation()
            message.CopyFrom(self._request.message)
            message.token_ids += pack_token_ids(self.token_ids)
        deadline = timeout.when()
        remaining_s = deadline - loop.time() if deadline is not None else 0.0
        self.decode_worker_ids.append(route.decode.worker_id)
        attempt = _Attempt(self, self._backend.limits)
        try:
            session = self._backend.sessions.get(route.decode)
            attempt.submitted(
                session,
                session.submit(message, route.prefill, max(1, round(1000 * remaining_s)), attempt),
            )
        except Unavailable as error:
            attempt.on_error(error, retryable=True)
        try:
            return await attempt.ended
        finally:
            attempt.close()

    def accept(
        self, token_ids: Sequence[int], logprobs: Sequence[generation_pb2.TokenLogprobs], now: float
    ) -> bool:
        """Tokens from the live attempt; False when a stop string ended the text."""
        self.times.note(now)
        return self._text.accept(token_ids, logprobs)

    def plain(self) -> PlainStream | None:
        """The quick way for the next tokens of the live attempt, if there is one now."""
        if self._request.generation.sampling.logprobs is not None:
            return None
        return self._text.plain(self.times)

    def started(self, started: decode_pb2.StreamStarted) -> None:
        """Only the first attempt's cache counts: later ones find what this request itself left there."""
        if not self.prefill_worker_id:
            self.num_cached_tokens = started.num_cached_tokens
            self.prefill_worker_id = started.prefill_worker_id


class _Attempt:
    """The request on one worker: a StreamSink with a watchdog."""

    def __init__(self, run: GenerationRun, limits: RunLimits) -> None:
        self._run = run
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[_AttemptEnd] = self._loop.create_future()
        self._session: Session | None = None
        self._stream_id = 0
        self._began_at = time.monotonic()
        self._got_tokens = False
        self._is_plain = False  # tokens may take the quick way
        self._patience_s = limits.first_token_timeout_s
        self._timer = self._loop.call_later(self._patience_s, self._look)

    def submitted(self, session: Session, stream_id: int) -> None:
        """From now on there is something to cancel."""
        self._session, self._stream_id = session, stream_id

    def close(self) -> None:
        """Stop the worker if it is still at it, and the watchdog."""
        self._timer.cancel()
        if self._session is not None:
            self._session.cancel(self._stream_id)

    def on_tokens(self, token_ids: Sequence[int], logprobs: Sequence[generation_pb2.TokenLogprobs]) -> None:
        """Pass them on; a stop string ends the attempt."""
        if self.ended.done():
            return
        now = time.monotonic()
        if not self._got_tokens:
            self._got_tokens = True
            self._patience_s = self._limits.token_timeout_s
            self._timer.cancel()
            self._timer = self._loop.call_later(self._patience_s, self._look)
        if not self._run.accept(token_ids, logprobs, now):
            self._end(_AttemptEnd(reason=FinishReason.STOP))
            self.close()
        elif not self._is_plain and self._session is not None and (plain := self._run.plain()) is not None:
            self._is_plain = True
            self._session.take_plainly(self._stream_id, plain)

    def on_started(self, started: decode_pb2.StreamStarted) -> None:
        """Pass it on."""
        self._run.started(started)

    def on_finished(self, finished: decode_pb2.StreamFinished) -> None:
        """The worker is done with the request."""
        match finished.reason:
            case generation_pb2.FINISH_REASON_STOP:
                self._end(_AttemptEnd(reason=FinishReason.STOP))
            case generation_pb2.FINISH_REASON_LENGTH:
                self._end(_AttemptEnd(reason=FinishReason.LENGTH))
            case _:
                # Nobody but us cancels, and then nobody listens; so the worker gave it up.
                self.on_error(Unavailable("the worker gave the request up"), retryable=True)

    def on_error(self, error: TandemError, *, retryable: bool) -> None:
        """The worker cannot go on, or is gone."""
        self._end(_AttemptEnd(error=error, retryable=retryable))

    def _end(self, end: _AttemptEnd) -> None:
        if not self.ended.done():
            self.ended.set_result(end)

    def _look(self) -> None:
        """Watchdog: silence for too long ends the attempt."""
        silent_s = time.monotonic() - max(self._began_at, self._run.times.last_at)
        if silent_s >= self._patience_s:
            error = Unavailable(f"the worker sent no token for {silent_s:.0f} s")
            self.on_error(error, retryable=True)
        else:
            self._timer = self._loop.call_later(self._patience_s - silent_s, self._look)


def _shown(error: TandemError) -> TandemError:
    """What the client is told: the worker's words about the request, or that we gave up."""
    if isinstance(error, InvalidRequest) or error.retry_after_ms is not None:
        return error
    if isinstance(error, Unavailable):
        return Unavailable(error.message, retry_after_ms=1000)
    return error
