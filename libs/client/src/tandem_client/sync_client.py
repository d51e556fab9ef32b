"""The sync client."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc
from tandem.v1 import inference_pb2, inference_pb2_grpc

from tandem_client.answer import Answer
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
from tandem_client.sync_stream import AnswerStream
from tandem_client.timeouts import Timeouts
from tandem_client.unary import LIST_MODELS_S, TOKENIZE_S, models_from_proto

_T = TypeVar("_T")


class Client:
    """Talks to a Tandem frontend over gRPC. Safe to share between threads; close it, or use it with `with`.

    >>> from tandem_client import Client
    >>> with Client("127.0.0.1:8001") as client:
    ...     answer = client.chat("What is the capital of France?", model="tandem-tiny", max_tokens=32)
    ...     print(answer.finish_reason)
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
        connection = Connection(address=address, api_key=api_key, credentials=credentials)
        self._timeouts = timeout or Timeouts()
        self._retry = retry or RetryPolicy()
        self._budget = RetryBudget()
        self._metadata = connection.metadata()
        options = connection.channel_options(self._timeouts)
        if connection.credentials is None:
            self._channel = grpc.insecure_channel(connection.address, options)
        else:
            self._channel = grpc.secure_channel(connection.address, connection.credentials, options)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)

    def generate(
        self, prompt: str | Sequence[int], *, model: str, **options: Unpack[GenerationOptions]
    ) -> Completion:
        """Continue a text, or token ids; returns the whole answer."""
        with self.stream_generate(prompt, model=model, **options) as stream:
            for _ in stream:
                pass
            return stream.completion

    def chat(self, messages: Messages, *, model: str, **options: Unpack[GenerationOptions]) -> Completion:
        """Answer a conversation, or one turn of the user given as a string; returns the whole answer."""
        with self.stream_chat(messages, model=model, **options) as stream:
            for _ in stream:
                pass
            return stream.completion

    def stream_generate(
        self, prompt: str | Sequence[int], *, model: str, **options: Unpack[GenerationOptions]
    ) -> AnswerStream:
        """Continue a text, or token ids; the answer arrives piece by piece."""
        request = generate_request(model, prompt, options)
        return AnswerStream(
            self._answer(),
            lambda timeout_s: self._stub.Generate(request, timeout=timeout_s, metadata=self._metadata),
        )

    def stream_chat(
        self, messages: Messages, *, model: str, **options: Unpack[GenerationOptions]
    ) -> AnswerStream:
        """Answer a conversation, or one turn of the user given as a string, piece by piece."""
        request = chat_request(model, messages, options)
        return AnswerStream(
            self._answer(),
            lambda timeout_s: self._stub.Chat(request, timeout=timeout_s, metadata=self._metadata),
        )

    def tokenize(self, text_or_messages: Messages, *, model: str) -> tuple[int, ...]:
        """Token ids of a text, or of a conversation put through the model's chat template."""
        request = tokenize_request(model, text_or_messages)
        response = self._unary(
            TOKENIZE_S,
            lambda timeout_s: self._stub.Tokenize(request, timeout=timeout_s, metadata=self._metadata),
        )
        return tuple(response.token_ids)

    def list_models(self) -> tuple[Model, ...]:
        """Models that can be asked now."""
        request = inference_pb2.ListModelsRequest()
        response = self._unary(
            LIST_MODELS_S,
            lambda timeout_s: self._stub.ListModels(request, timeout=timeout_s, metadata=self._metadata),
        )
        return models_from_proto(response)

    def close(self) -> None:
        """Close the connection, which cancels what is still running; idempotent."""
        self._channel.close()

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

    def _unary(self, limit_s: float, call: Callable[[float], _T]) -> _T:
        attempts = self._attempts(min(limit_s, self._timeouts.total_s), idempotent=True)
        while True:
            try:
                response = call(attempts.remaining_s(time.monotonic()))
            except grpc.RpcError as failure:
                error = error_from_rpc(failure)
                time.sleep(attempts.wait_s(error, time.monotonic()))
            else:
                attempts.succeeded()
                return response

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
