"""What calls return. All of it is immutable."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from tandem.v1 import generation_pb2, inference_pb2

from tandem_client.errors import ServerError


class FinishReason(enum.StrEnum):
    """Why an answer ended."""

    STOP = "stop"  # the model ended it, or one of the stop strings or tokens asked for
    LENGTH = "length"  # max_tokens or the model's context length was reached
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens read and written; `cached_tokens` of the prompt's did not have to be computed."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TopToken:
    """One of the likeliest tokens at a position."""

    token_id: int
    logprob: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprobs:
    """Natural logarithm of the chosen token's probability, and the likeliest alternatives, likeliest first."""

    logprob: float
    top: tuple[TopToken, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """A piece of an answer. `text` may lag behind the tokens while a character is incomplete.

    `logprobs` has one entry per token, and is empty unless asked for.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """A whole answer. `stop` is the stop string that ended it, if one did; it is not in the text."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    request_id: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    stop: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model that can be asked now; `max_context_tokens` bounds prompt and answer together."""

    id: str
    max_context_tokens: int


_REASONS = {
    generation_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    generation_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    generation_pb2.FINISH_REASON_CANCELLED: FinishReason.CANCELLED,
}


def delta_from_proto(message: inference_pb2.TextDelta) -> Delta:
    """The piece that a message holds."""
    return Delta(
        text=message.text,
        token_ids=tuple(message.token_ids),
        logprobs=tuple(_logprobs_from_proto(entry) for entry in message.logprobs),
    )


def usage_from_proto(message: inference_pb2.Usage) -> Usage:
    """The usage that a message holds."""
    return Usage(
        prompt_tokens=message.prompt_tokens,
        completion_tokens=message.completion_tokens,
        cached_tokens=message.cached_tokens,
    )


def finish_reason_from_proto(value: generation_pb2.FinishReason.ValueType) -> FinishReason:
    """The reason; ServerError for one that this version does not know."""
    try:
        return _REASONS[value]
    except KeyError:
        raise ServerError(f"the server gave a reason ({value}) that this version does not know") from None


def _logprobs_from_proto(message: generation_pb2.TokenLogprobs) -> TokenLogprobs:
    pairs = zip(message.top_token_ids, message.top_logprobs, strict=False)
    top = tuple(TopToken(token_id=token_id, logprob=logprob) for token_id, logprob in pairs)
    return TokenLogprobs(logprob=message.logprob, top=top)
