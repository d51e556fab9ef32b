"""The async client."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc
from tandem.v1 import inference_pb2, inference_pb2_grpc

from tandem_client.answer import Answer
from tandem_client.async_stream import AsyncAnswerStream
from tandem_client.connection import Connection
from tandem_client.errors import error_from_rpc
from tandem_client.requests import (
    GenerationOptions,
    Messages,
    chat_request,
    generate_request,
    tokenize_request,
)
from tandem_client.results import Completion, Model
from tandem_client.retries import Attempts, RetryBudget, RetryPolicy
from tandem_client.timeouts import Timeouts
from tandem_client.unary import LIST_MODELS_S, TOKENIZE_S, models_from_proto

_T = TypeVar("_T")


class AsyncClient:
    """Talks to a Tandem frontend over gRPC, from one event loop; close it, or use it with `async with`.

    >>> import asyncio
    >>> from tandem_client import AsyncClient
    >>> async def main():
    ...     async with AsyncClient("127.0.0.1:8001") as client:
    ...         answer = await client.chat("What is the capital of France?", model="tandem-tiny", max_tokens=32)
    ...         print(answer.finish_reason)
    >>> asyncio.run(main())
    stop

    Every call raises TandemError. A call that the server could not start is tried again within the bounds of
    `retry`; an answer that has begun never is.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        timeout: Timeouts | None = None,
        retry: RetryPolicy | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """Connects with the first call. `credentials` switch TLS on; ValueError for a malformed address."""
        self._connection = Connection(address=address, api_key=api_key, credentials=credentials)
        self._timeouts = timeout or Timeouts()
        self._retry = retry or RetryPolicy()
        self._budget = RetryBudget()
        self._metadata = grpc.aio.Metadata(*self._connection.metadata())
        # Made with the first call: a channel belongs to the event loop that is running then.
        self._channel: grpc.aio.Channel | None = None

    async def generate(
        self, prompt: str | Sequence[int], *, model: str, **options: Unpack[GenerationOptions]
    ) -> Completion:
        """Continue a text, or token ids; returns the whole answer."""
        async with self.stream_generate(prompt, model=model, **options) as stream:
            async for _ in stream:
                pass
            return stream.completion

    async def chat(
        self, messages: Messages, *, model: str, **options: Unpack[GenerationOptions]
    ) -> Completion:
        """Answer a conversation, or one turn of the user given as a string; returns the whole answer."""
        async with self.stream_chat(messages, model=model, **options) as stream:
            async for _ in stream:
                pass
            return stream.completion

    def stream_generate(
        self, prompt: str | Sequence[int], *, model: str, **options: Unpack[GenerationOptions]
    ) -> AsyncAnswerStream:
        """Continue a text, or token ids; the answer arrives piece by piece."""
        request = generate_request(model, prompt, options)
        return AsyncAnswerStream(
            self._answer(),
            lambda timeout_s: self._stub().Generate(request, timeout=timeout_s, metadata=self._metadata),
        )

    def stream_chat(
        self, messages: Messages, *, model: str, **options: Unpack[GenerationOptions]
    ) -> AsyncAnswerStream:
        """Answer a conversation, or one turn of the user given as a string, piece by piece."""
        request = chat_request(model, messages, options)
        return AsyncAnswerStream(
            self._answer(),
            lambda timeout_s: self._stub().Chat(request, timeout=timeout_s, metadata=self._metadata),
        )

    async def tokenize(self, text_or_messages: Messages, *, model: str) -> tuple[int, ...]:
        """Token ids of a text, or of a conversation put through the model's chat template."""
        request = tokenize_request(model, text_or_messages)
        response = await self._unary(
            TOKENIZE_S,
            lambda timeout_s: self._stub().Tokenize(request, timeout=timeout_s, metadata=self._metadata),
        )
        return tuple(response.token_ids)

    async def list_models(self) -> tuple[Model, ...]:
        """Models that can be asked now."""
        request = inference_pb2.ListModelsRequest()
        response = await self._unary(
            LIST_MODELS_S,
            lambda timeout_s: self._stub().ListModels(request, timeout=timeout_s, metadata=self._metadata),
        )
        return models_from_proto(response)

    async def close(self) -> None:
        """Close the connection, which cancels what is still running; idempotent."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def _stub(self) -> inference_pb2_grpc.InferenceServiceAsyncStub:
        if self._channel is None:
            connection, options = self._connection, self._connection.channel_options(self._timeouts)
            if connection.credentials is None:
                self._channel = grpc.aio.insecure_channel(connection.address, options)
            else:
                self._channel = grpc.aio.secure_channel(connection.address, connection.credentials, options)
        return inference_pb2_grpc.InferenceServiceStub(self._channel)

    def _attempts(self, total_s: float, *, idempotent: bool) -> Attempts:
        return Attempts(
            self._retry,
            self._budget,
            idempotent=idempotent,
            deadline_s=time.monotonic() + total_s,
            randomness=random.random,
        )

    def _answer(self) -> Answer:
        attempts = self._attempts(self._timeouts.total_s, idempotent=False)
        return Answer(attempts, self._timeouts, time.monotonic())

    async def _unary(self, limit_s: float, call: Callable[[float], Awaitable[_T]]) -> _T:
        attempts = self._attempts(min(limit_s, self._timeouts.total_s), idempotent=True)
        while True:
            try:
                response = await call(attempts.remaining_s(time.monotonic()))
            except grpc.aio.AioRpcError as failure:
                error = error_from_rpc(failure)
                await asyncio.sleep(attempts.wait_s(error, time.monotonic()))
            else:
                attempts.succeeded()
                return response

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
