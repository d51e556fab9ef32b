"""Requests as messages of the contract. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, TypeVar

from tandem.v1 import generation_pb2, inference_pb2

from tandem_client.errors import InvalidRequest

_T = TypeVar("_T")
_FieldsT = TypeVar("_FieldsT", generation_pb2.SamplingParams, inference_pb2.GenerationOptions)

_SAMPLING_FIELDS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "logprobs",
)
_OPTION_FIELDS = ("max_tokens", "min_tokens", "stop_token_ids", "ignore_eos")
_CLASSES = {
    "interactive": generation_pb2.REQUEST_CLASS_INTERACTIVE,
    "batch": generation_pb2.REQUEST_CLASS_BATCH,
}


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


class GenerationOptions(TypedDict, total=False):
    """How an answer is made: keyword arguments of every generating call. What is left out is the server's choice."""

    # Most tokens of the answer; left out: up to the model's context length.
    max_tokens: int
    # No stop token or string ends the answer before this many tokens.
    min_tokens: int
    # 0 always takes the likeliest token; 1 draws as the model says; at most 2.
    temperature: float
    # Draw among the k likeliest tokens; 0: all.
    top_k: int
    # Draw among the fewest tokens that have this much probability together.
    top_p: float
    # Drop tokens less likely than this share of the likeliest.
    min_p: float
    # Above 1 makes tokens seen before less likely.
    repetition_penalty: float
    # Subtracted once from the logits of tokens already in the answer.
    presence_penalty: float
    # Subtracted from the logits of tokens already in the answer, times their count.
    frequency_penalty: float
    # Added to the logits, by token id.
    logit_bias: Mapping[int, float]
    # The same seed and prompt give the same answer.
    seed: int
    # Alternatives reported with each token; 0: the chosen token's log-probability only.
    logprobs: int
    # The answer ends before any of these strings.
    stop: str | Sequence[str]
    # The answer ends before any of these tokens.
    stop_token_ids: Sequence[int]
    # Go on after the model's own end tokens.
    ignore_eos: bool
    # "batch" work waits for "interactive" work.
    request_class: Literal["interactive", "batch"]
    # Seconds after which the first token is of no more use: the server refuses at once what it cannot make.
    ttft_deadline_s: float


Messages = str | Sequence[ChatMessage | Mapping[str, str]]


def generate_request(
    model: str, prompt: str | Sequence[int], options: GenerationOptions
) -> inference_pb2.GenerateRequest:
    """A prompt to be continued; InvalidRequest for a value that the contract cannot carry."""
    request = inference_pb2.GenerateRequest(model=model, options=_options(options))
    if isinstance(prompt, str):
        _carry("prompt", lambda: setattr(request, "text", prompt))
    else:
        request.token_ids.SetInParent()
        _carry("prompt", lambda: request.token_ids.ids.extend(prompt))
    return request


def chat_request(model: str, messages: Messages, options: GenerationOptions) -> inference_pb2.ChatRequest:
    """A conversation to be answered; a plain string is one turn of the user."""
    return inference_pb2.ChatRequest(model=model, messages=_messages(messages), options=_options(options))


def tokenize_request(model: str, text_or_messages: Messages) -> inference_pb2.TokenizeRequest:
    """A text, or a conversation to be put through the model's chat template."""
    if isinstance(text_or_messages, str):
        request = inference_pb2.TokenizeRequest(model=model)
        _carry("text", lambda: setattr(request, "text", text_or_messages))
        return request
    conversation = inference_pb2.Conversation(messages=_messages(text_or_messages))
    return inference_pb2.TokenizeRequest(model=model, conversation=conversation)


def _messages(messages: Messages) -> list[inference_pb2.ChatMessage]:
    if isinstance(messages, str):
        messages = [ChatMessage("user", messages)]
    return [_message(message) for message in messages]


def _message(message: ChatMessage | Mapping[str, str]) -> inference_pb2.ChatMessage:
    if isinstance(message, ChatMessage):
        role, content = message.role, message.content
    else:
        if set(message) != {"role", "content"}:
            raise InvalidRequest(
                f"a message needs exactly role and content, got {', '.join(map(str, message))}"
            )
        role, content = message["role"], message["content"]
    return _carry("messages", lambda: inference_pb2.ChatMessage(role=role, content=content))


def _options(options: GenerationOptions) -> inference_pb2.GenerationOptions:
    values: dict[str, Any] = dict(options)
    if unknown := sorted(set(values) - set(GenerationOptions.__annotations__)):
        known = ", ".join(sorted(GenerationOptions.__annotations__))
        raise TypeError(f"unknown option {unknown[0]!r}; there are: {known}")
    sampling = generation_pb2.SamplingParams()
    message = inference_pb2.GenerationOptions()
    for name in _SAMPLING_FIELDS:
        if name in values:
            _set(sampling, name, values[name])
    for name in _OPTION_FIELDS:
        if name in values:
            _set(message, name, values[name])
    message.sampling.CopyFrom(sampling)
    if "stop" in values:
        stop = [values["stop"]] if isinstance(values["stop"], str) else list(values["stop"])
        _set(message, "stop", stop)
    if "request_class" in values:
        if values["request_class"] not in _CLASSES:
            raise InvalidRequest(
                f"request_class must be one of {', '.join(_CLASSES)}, got {values['request_class']!r}"
            )
        message.request_class = _CLASSES[values["request_class"]]
    if values.get("ttft_deadline_s") is not None:
        # At least 1: nothing would mean the server's default.
        _carry(
            "ttft_deadline_s", lambda: _set_deadline_ms(message, round(values["ttft_deadline_s"] * 1000) or 1)
        )
    return message


def _set(message: _FieldsT, name: str, value: Any) -> None:
    """Set a field of any kind; None leaves it out. The constructor checks types and ranges of all kinds alike."""
    _carry(name, lambda: message.MergeFrom(type(message)(**{name: value})))


def _set_deadline_ms(message: inference_pb2.GenerationOptions, deadline_ms: int) -> None:
    message.ttft_deadline_ms = deadline_ms


def _carry(name: str, make: Callable[[], _T]) -> _T:
    """What `make` returns; InvalidRequest when protobuf refuses the value."""
    try:
        return make()
    except (TypeError, ValueError, OverflowError) as error:
        # The value itself may be a prompt: it does not belong into a message.
        raise InvalidRequest(f"{name} has a value of the wrong type or out of range") from error
