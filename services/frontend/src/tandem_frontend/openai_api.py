"""POST /v1/chat/completions and POST /v1/completions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from aiohttp import HttpVersion11, web
from tandem_common.errors import Cancelled, TandemError
from tandem_common.telemetry import current_traceparent

from tandem_frontend.answer_format import (
    DONE,
    AnswerFormat,
    ChatFormat,
    CompletionFormat,
    Envelope,
    error_event,
)
from tandem_frontend.backlog import Backlog
from tandem_frontend.frontend_metrics import FrontendMetrics
from tandem_frontend.generator import Completion, Generator, Usage
from tandem_frontend.http_app import REQUEST_ID, TENANT, Refusal
from tandem_frontend.openai_requests import OpenAIRequest, parse_chat, parse_completion
from tandem_frontend.openai_responses import error_answer
from tandem_frontend.preparation import Caller, Preparation, PreparedRequest, for_choice
from tandem_frontend.routing_headers import apply_routing_headers
from tandem_frontend.sse_stream import SseChoice, SseStream
from tandem_frontend.text_stream import Delta, DeltaSink
from tandem_frontend.token_bytes import TokenBytes

_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # Proxies must pass events on as they come.
    "X-Accel-Buffering": "no",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpLimits:
    """What a client may take of time and memory."""

    body_timeout_s: float
    stream_buffer_bytes: int
    stream_buffer_age_s: float
    stream_keepalive_s: float


class OpenAIApi:
    """The two endpoints; they differ in how bodies are read and answers written."""

    def __init__(
        self,
        preparation: Preparation,
        generator: Generator,
        token_bytes: TokenBytes,
        metrics: FrontendMetrics,
        limits: HttpLimits,
    ) -> None:
        self._preparation = preparation
        self._generator = generator
        self._token_bytes = token_bytes
        self._metrics = metrics
        self._limits = limits

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        asked = parse_chat(await self._body(request))
        envelope = _envelope(request, asked, "chatcmpl")
        return await self._answer(request, asked, ChatFormat(envelope, self._token_bytes))

    async def completion(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions."""
        asked = parse_completion(await self._body(request))
        envelope = _envelope(request, asked, "cmpl")
        return await self._answer(request, asked, CompletionFormat(envelope, self._token_bytes))

    async def _body(self, request: web.Request) -> bytes:
        """The body; Refusal for other types, encodings, sizes and paces."""
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Refusal(415, "send the body without Content-Encoding")
        if request.content_type != "application/json":
            raise Refusal(415, "send JSON with the header `Content-Type: application/json`")
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                return await request.read()
        except TimeoutError:
            raise Refusal(408, "the body took too long") from None

    async def _answer(
        self,
        request: web.Request,
        asked: OpenAIRequest,
        format: AnswerFormat,  # noqa: A002
    ) -> web.StreamResponse:
        caller = Caller(
            request_id=request[REQUEST_ID], tenant=request[TENANT], traceparent=current_traceparent()
        )
        choices: list[PreparedRequest] = []
        for prompt in asked.prompts:
            prepared = await self._preparation.prepare(asked.model, prompt, asked.options, caller)
            apply_routing_headers(request.headers, prepared.query)
            first = len(choices)
            choices += [for_choice(prepared, first + i, i) for i in range(asked.n)]
        if asked.stream:
            return await self._stream(request, asked, choices, format)
        sinks = [_Collected() for _ in choices]
        completions = await self._generate(choices, sinks)
        answers = [(sink.deltas, completion) for sink, completion in zip(sinks, completions, strict=True)]
        return web.Response(
            body=format.whole(answers, _total(completions, asked.n)), content_type="application/json"
        )

    async def _stream(
        self,
        request: web.Request,
        asked: OpenAIRequest,
        choices: Sequence[PreparedRequest],
        format: AnswerFormat,  # noqa: A002
    ) -> web.StreamResponse:
        """Send events as they come.

        What fails before the first one is still answered with a status of its own, unless it takes so long that the
        headers have gone out to keep the connection alive.
        """
        backlog = Backlog(
            max_bytes=self._limits.stream_buffer_bytes, max_age_s=self._limits.stream_buffer_age_s
        )
        stream = SseStream(backlog, self._metrics.slow_readers.inc, request[REQUEST_ID])
        sinks = [SseChoice(stream, format, index) for index in range(len(choices))]

        def ended(index: int, completion: Completion) -> None:
            sinks[index].end(format.last_event(index, completion))

        work = asyncio.create_task(self._generate(choices, sinks, ended))
        work.add_done_callback(lambda _: stream.began.set())
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.stream_keepalive_s):
                    await stream.began.wait()
            if work.done():
                work.result()  # raises what went wrong
            response = web.StreamResponse(headers=_STREAM_HEADERS)
            chunked = request.version >= HttpVersion11
            if chunked:
                response.enable_chunked_encoding()
            await response.prepare(request)
            if request.transport is None:
                raise Cancelled("the client has gone")
            stream.attach(request.transport, chunked=chunked, keepalive_s=self._limits.stream_keepalive_s)
            try:
                completions = await work
            except TandemError as error:
                stream.send(error_event(error_answer(error)))
            else:
                if asked.include_usage:
                    stream.send(format.usage_event(_total(completions, asked.n)))
                stream.send(DONE)
            stream.close()
            await self._finish(request, response)
            return response
        finally:
            stream.close()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _finish(self, request: web.Request, response: web.StreamResponse) -> None:
        """End the response; a client that does not read the rest loses the connection."""
        try:
            async with asyncio.timeout(self._limits.stream_buffer_age_s):
                await response.write_eof()
        except (TimeoutError, ConnectionError):
            if request.transport is not None:
                request.transport.abort()

    async def _generate(
        self,
        choices: Sequence[PreparedRequest],
        sinks: Sequence[DeltaSink],
        ended: Callable[[int, Completion], None] = lambda index, completion: None,
    ) -> list[Completion]:
        """Generate all choices at once; the first error ends the others."""

        async def one(index: int) -> Completion:
            completion = await self._generator.generate(choices[index], sinks[index])
            ended(index, completion)
            return completion

        if len(choices) == 1:
            return [await one(0)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(index)) for index in range(len(choices))]
        except ExceptionGroup as errors:
            raise _first(errors) from None
        return [task.result() for task in tasks]


class _Collected:
    """A DeltaSink for answers that are sent whole."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []

    def on_delta(self, delta: Delta) -> None:
        """Keep it."""
        self.deltas.append(delta)


def _envelope(request: web.Request, asked: OpenAIRequest, prefix: str) -> Envelope:
    return Envelope(
        id=f"{prefix}-{request[REQUEST_ID].removeprefix('req-')}",
        created=int(datetime.now(UTC).timestamp()),
        model=asked.model,
        usage_in_chunks=asked.include_usage,
    )


def _total(completions: Sequence[Completion], n: int) -> Usage:
    """Usage of all choices; a prompt counts once, however many answers it gets."""
    firsts = completions[::n]
    return Usage(
        prompt_tokens=sum(completion.usage.prompt_tokens for completion in firsts),
        completion_tokens=sum(completion.usage.completion_tokens for completion in completions),
        cached_tokens=sum(completion.usage.cached_tokens for completion in firsts),
    )


def _first(errors: ExceptionGroup[Exception]) -> Exception:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error
