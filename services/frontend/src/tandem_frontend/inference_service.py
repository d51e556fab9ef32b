"""`InferenceService` over gRPC: the same validation and generation as over HTTP, in typed messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from tandem.v1 import generation_pb2, inference_pb2_grpc
from tandem.v1 import inference_pb2 as pb
from tandem_common.errors import Cancelled, InvalidRequest, TandemError
from tandem_common.generation_proto import request_class_from_proto, sampling_from_proto
from tandem_common.logs import bound_request, get_logger
from tandem_common.telemetry import current_traceparent

from tandem_frontend.api_keys import ApiKeys
from tandem_frontend.chat_template import ChatTurn
from tandem_frontend.delta_queue import DeltaQueue, SlowReader
from tandem_frontend.frontend_metrics import FrontendMetrics
from tandem_frontend.generator import Completion, Generator
from tandem_frontend.http_messages import new_request_id
from tandem_frontend.models import ModelCatalog
from tandem_frontend.options import Conversation, GenerationOptions, Prompt, TextPrompt, TokenPrompt
from tandem_frontend.preparation import Caller, Preparation
from tandem_frontend.routing_headers import apply_routing_headers

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
Context = grpc.aio.ServicerContext[Any, Any]

_log = get_logger("grpc")


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """The servicer; errors are raised as TandemError and mapped by the server's interceptor."""

    def __init__(
        self,
        preparation: Preparation,
        generator: Generator,
        catalog: ModelCatalog,
        api_keys: ApiKeys,
        metrics: FrontendMetrics,
        stream_age_s: float,
    ) -> None:
        """`stream_age_s`: a client that leaves something unread for longer is ended."""
        self._preparation = preparation
        self._generator = generator
        self._catalog = catalog
        self._api_keys = api_keys
        self._metrics = metrics
        self._stream_age_s = stream_age_s

    # A coroutine that writes, not a generator, so that its clean-up runs at once when the client leaves.
    async def Generate(  # type: ignore[override]  # noqa: N802
        self, request: pb.GenerateRequest, context: Context
    ) -> None:
        """Continue a prompt."""
        async with self._caller("Generate", context) as caller:
            match request.WhichOneof("prompt"):
                case "text":
                    prompt: Prompt = TextPrompt(request.text)
                case "token_ids":
                    prompt = TokenPrompt(list(request.token_ids.ids))
                case _:
                    raise InvalidRequest("the prompt is missing; set text or token_ids", param="prompt")
            options = _options(request.options)
            await self._answer(request.model, prompt, options, caller, context, pb.GenerateResponse)

    # A coroutine that writes, not a generator, so that its clean-up runs at once when the client leaves.
    async def Chat(  # type: ignore[override]  # noqa: N802
        self, request: pb.ChatRequest, context: Context
    ) -> None:
        """Answer a conversation."""
        async with self._caller("Chat", context) as caller:
            prompt, options = _conversation(request.messages), _options(request.options)
            await self._answer(request.model, prompt, options, caller, context, pb.ChatResponse)

    async def Tokenize(  # noqa: N802
        self, request: pb.TokenizeRequest, context: Context
    ) -> pb.TokenizeResponse:
        """Token ids of a text or conversation."""
        async with self._caller("Tokenize", context):
            match request.WhichOneof("input"):
                case "text":
                    prompt: Prompt = TextPrompt(request.text)
                case "conversation":
                    prompt = _conversation(request.conversation.messages)
                case _:
                    raise InvalidRequest("the input is missing; set text or conversation", param="input")
            return pb.TokenizeResponse(token_ids=await self._preparation.tokenize(request.model, prompt))

    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        """Models that can be asked now."""
        async with self._caller("ListModels", context):
            return pb.ListModelsResponse(
                models=[
                    pb.Model(id=model.name, max_context_tokens=model.max_context_tokens)
                    for model in self._catalog.served()
                ]
            )

    @asynccontextmanager
    async def _caller(self, method: str, context: Context) -> AsyncIterator[Caller]:
        """Who asks; around a whole call, which it counts by its outcome."""
        outcome = "cancelled"
        try:
            request_id = new_request_id()
            metadata = _text_metadata(context)
            with bound_request(request_id):
                named = (("x-request-id", request_id),)
                # With the status too: of a call that failed at once, clients may see that alone.
                context.set_trailing_metadata(named)
                await context.send_initial_metadata(named)
                tenant = self._api_keys.tenant(metadata.get("authorization"))
                yield Caller(request_id=request_id, tenant=tenant, traceparent=current_traceparent())
            outcome = "ok"
        except TandemError as error:
            outcome = error.code.name.lower()
            raise
        except Exception:
            outcome = "internal"
            raise
        finally:
            self._metrics.requests.labels(f"{SERVICE_NAME}/{method}", outcome).inc()

    async def _answer(
        self,
        model: str,
        prompt: Prompt,
        options: GenerationOptions,
        caller: Caller,
        context: Context,
        response_class: type[pb.GenerateResponse | pb.ChatResponse],
    ) -> None:
        prepared = await self._preparation.prepare(model, prompt, options, caller)
        apply_routing_headers(_text_metadata(context), prepared.query)
        queue = DeltaQueue()
        work = asyncio.create_task(self._generator.generate(prepared, queue))
        work.add_done_callback(lambda _: queue.close())
        try:
            while (delta := await queue.take()) is not None:
                message = pb.TextDelta(text=delta.text, token_ids=delta.token_ids, logprobs=delta.logprobs)
                async with asyncio.timeout(self._stream_age_s):
                    await context.write(response_class(request_id=caller.request_id, delta=message))
            completion = await work
            await context.write(
                response_class(request_id=caller.request_id, completed=_completed(completion))
            )
        except (SlowReader, TimeoutError):
            self._metrics.slow_readers.inc()
            _log.warning("ending a stream whose client does not read")
            raise Cancelled("the client did not read its stream") from None
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)


def _text_metadata(context: Context) -> dict[str, str]:
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


def _conversation(messages: Iterable[pb.ChatMessage]) -> Conversation:
    return Conversation([ChatTurn(message.role, message.content) for message in messages])


def _options(message: pb.GenerationOptions) -> GenerationOptions:
    return GenerationOptions(
        sampling=sampling_from_proto(message.sampling),
        seeded=message.sampling.HasField("seed"),
        max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
        min_tokens=message.min_tokens,
        stop=tuple(message.stop),
        stop_token_ids=frozenset(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        request_class=request_class_from_proto(message.request_class),
        ttft_deadline_ms=message.ttft_deadline_ms,
    )


def _completed(completion: Completion) -> pb.Completed:
    usage = completion.usage
    return pb.Completed(
        reason=generation_pb2.FinishReason.ValueType(completion.reason.value),
        usage=pb.Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
        ),
        stop=completion.stop,
    )
