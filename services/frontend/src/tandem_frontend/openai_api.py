"""POST /v1/chat/completions and POST /v1/completions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from tandem_common.errors import TandemError
from tandem_common.telemetry import current_traceparent

from tandem_frontend.answer_format import (
    DONE,
    AnswerFormat,
    ChatFormat,
    CompletionFormat,
    Envelope,
    error_event,
)
from tandem_frontend.frontend_metrics import FrontendMetrics
from tandem_frontend.generator import Completion, Generator, Usage
from tandem_frontend.http_app import Refusal
from tandem_frontend.http_messages import HttpRequest, HttpResponse
from tandem_frontend.openai_requests import OpenAIRequest, parse_chat, parse_completion
from tandem_frontend.openai_responses import error_answer
from tandem_frontend.preparation import Caller, Preparation, PreparedRequest, for_choice
from tandem_frontend.routing_headers import apply_routing_headers
from tandem_frontend.sse_stream import SseChoice, SseStream, StreamLimits
from tandem_frontend.text_stream import Delta, DeltaSink
from tandem_frontend.token_bytes import TokenBytes


class OpenAIApi:
    """The two endpoints; they differ in how bodies are read and answers written."""

    def __init__(
        self,
        preparation: Preparation,
        generator: Generator,
        token_bytes: TokenBytes,
        metrics: FrontendMetrics,
        limits: StreamLimits,
    ) -> None:
        self._preparation = preparation
        self._generator = generator
        self._token_bytes = token_bytes
        self._metrics = metrics
        self._limits = limits

    async def chat(self, request: HttpRequest) -> HttpResponse | None:
        """POST /v1/chat/completions."""
        asked = parse_chat(_json_body(request))
        return await self._answer(
            request, asked, ChatFormat(_envelope(request, asked, "chatcmpl"), self._token_bytes)
        )

    async def completion(self, request: HttpRequest) -> HttpResponse | None:
        """POST /v1/completions."""
        asked = parse_completion(_json_body(request))
        return await self._answer(
            request, asked, CompletionFormat(_envelope(request, asked, "cmpl"), self._token_bytes)
        )

    async def _answer(
        self,
        request: HttpRequest,
        asked: OpenAIRequest,
        format: AnswerFormat,  # noqa: A002
    ) -> HttpResponse | None:
        caller = Caller(request_id=request.id, tenant=request.tenant, traceparent=current_traceparent())
        choices: list[PreparedRequest] = []
        for prompt in asked.prompts:
            prepared = await self._preparation.prepare(asked.model, prompt, asked.options, caller)
            apply_routing_headers(request.headers, prepared.query)
            first = len(choices)
            choices += [for_choice(prepared, first + i, i) for i in range(asked.n)]
        if asked.stream:
            await self._stream(request, asked, choices, format)
            return None
        sinks = [_Collected() for _ in choices]
        completions = await self._generate(choices, sinks)
        answers = [(sink.deltas, completion) for sink, completion in zip(sinks, completions, strict=True)]
        return HttpResponse(format.whole(answers, _total(completions, asked.n)))

    async def _stream(
        self,
        request: HttpRequest,
        asked: OpenAIRequest,
        choices: Sequence[PreparedRequest],
        format: AnswerFormat,  # noqa: A002
    ) -> None:
        """Send events as they come.

        What fails before the first one is raised and has a status of its own, unless it takes so long that the head has
        gone out to keep the connection alive.
        """
        stream = SseStream(request, self._limits, self._metrics.slow_readers.inc)
        sinks = [SseChoice(stream, format, index) for index in range(len(choices))]

        def ended(index: int, completion: Completion) -> None:
            if len(choices) > 1:
                stream.send(sinks[index].last(format.last_event(index, completion)))

        try:
            completions = await self._generate(choices, sinks, ended)
        except TandemError as error:
            if not request.is_answered:
                raise
            stream.finish(error_event(error_answer(error)))
        else:
            last = sinks[0].last(format.last_event(0, completions[0])) if len(choices) == 1 else b""
            usage = format.usage_event(_total(completions, asked.n)) if asked.include_usage else b""
            stream.finish(last + usage + DONE)
        finally:
            stream.close()

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

    def text_writer(self) -> None:
        """There is none."""


def _json_body(request: HttpRequest) -> bytes:
    """The body; Refusal for other types and encodings: a compressed body could unpack to anything."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "send the body without Content-Encoding")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "send JSON with the header `Content-Type: application/json`")
    return request.body


def _envelope(request: HttpRequest, asked: OpenAIRequest, prefix: str) -> Envelope:
    return Envelope(
        id=f"{prefix}-{request.id.removeprefix('req-')}",
        created=int(time.time()),
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
