"""What OpenAI's endpoints answer, as types: they encode the answers and describe them in the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from tandem_common.errors import TandemError
from tandem_common.generation import FinishReason

from tandem_frontend.generator import Usage

FinishName = Literal["stop", "length"]


class PromptTokensDetails(msgspec.Struct, kw_only=True):
    """Of the prompt's tokens, those that no worker had to compute."""

    cached_tokens: int


class UsageBody(msgspec.Struct, kw_only=True):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(msgspec.Struct, kw_only=True):
    """An alternative to a token."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, kw_only=True):
    """A token with its log-probability."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, kw_only=True):
    """Log-probabilities of a chat answer."""

    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct, kw_only=True):
    """Log-probabilities of a completion, in columns."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class AnswerMessage(msgspec.Struct, kw_only=True):
    """An answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(msgspec.Struct, kw_only=True):
    """One answer of a chat completion."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishName


class ChatCompletion(msgspec.Struct, kw_only=True):
    """The answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody


class ChatDelta(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(msgspec.Struct, kw_only=True):
    """One answer's part of a chunk."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishName | None


class ChatCompletionChunk(msgspec.Struct, kw_only=True):
    """One event of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: UsageBody | msgspec.UnsetType | None = msgspec.UNSET


class CompletionChoice(msgspec.Struct, kw_only=True):
    """One answer of a completion, or its part of a chunk."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishName | None


class TextCompletion(msgspec.Struct, kw_only=True):
    """The answer of POST /v1/completions, and each event when streamed."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody | msgspec.UnsetType | None = msgspec.UNSET


class ModelBody(msgspec.Struct, kw_only=True):
    """One model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "tandem"
    max_model_len: int


class ModelList(msgspec.Struct, kw_only=True):
    """The answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelBody]


class ErrorBody(msgspec.Struct, kw_only=True):
    """What went wrong; `param` names the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(msgspec.Struct, kw_only=True):
    """Every answer with a status of 400 or more, and the last event of a stream that failed."""

    error: ErrorBody


def usage_body(usage: Usage) -> UsageBody:
    """Usage as OpenAI writes it."""
    return UsageBody(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_tokens),
    )


def finish_name(reason: FinishReason) -> FinishName:
    """OpenAI's word for how an answer ended."""
    return "length" if reason is FinishReason.LENGTH else "stop"


def error_answer(error: TandemError) -> ErrorAnswer:
    """An error in OpenAI's shape."""
    return ErrorAnswer(
        error=ErrorBody(
            message=error.message,
            type=error.openai_type,
            param=error.param,
            code=_CODES.get(type(error).__name__),
        )
    )


_CODES = {
    "Unauthenticated": "invalid_api_key",
    "NotFound": "not_found",
    "Overloaded": "rate_limit_exceeded",
    "Unavailable": "service_unavailable",
    "DeadlineExceeded": "timeout",
    "InternalError": "internal_error",
}


def encode(answer: Any) -> bytes:
    """JSON."""
    return msgspec.json.encode(answer)
