"""The bodies of OpenAI's endpoints: what is accepted, what is refused and why.

Unknown fields are refused by name. Fields of OpenAI's that Tandem cannot honour are refused by name and reason unless
they hold their neutral value; fields that change nothing in the answer (`user`, `metadata`, ...) are ignored.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec
from tandem_common.errors import InvalidRequest
from tandem_common.generation import MAX_LOGPROBS, RequestClass, SamplingParams

from tandem_frontend.chat_template import ChatTurn
from tandem_frontend.options import Conversation, GenerationOptions, Prompt, TextPrompt, TokenPrompt

# Choices of one request: prompts times n.
MAX_CHOICES = 16
# What OpenAI's completions endpoint does when max_tokens is absent.
DEFAULT_COMPLETION_TOKENS = 16

# A field that is refused unless it is absent or neutral.
Unserved = msgspec.Raw | msgspec.UnsetType

_NEUTRAL = frozenset({b"null", b"[]", b"{}", b'""', b"false"})
_NEUTRAL_TOOL_CHOICES = frozenset({b"null", b'"none"', b'"auto"'})
_PATH = re.compile(r"`\$\.?([^`]*)`$")


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How to stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class SharedFields(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What both endpoints take."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    request_class: Literal["interactive", "batch"] | None = None
    ttft_deadline_ms: int | None = None
    # Ignored: they do not change the answer.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class TextPart(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A part of a message's content; only text is served."""

    type: str
    text: str | None = None
    image_url: Unserved = msgspec.UNSET
    input_audio: Unserved = msgspec.UNSET
    file: Unserved = msgspec.UNSET


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One message; the fields after `name` are what OpenAI's own answers carry, and must be empty."""

    role: str
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: Unserved = msgspec.UNSET
    annotations: Unserved = msgspec.UNSET
    audio: Unserved = msgspec.UNSET
    function_call: Unserved = msgspec.UNSET
    tool_calls: Unserved = msgspec.UNSET
    tool_call_id: Unserved = msgspec.UNSET


class ResponseFormat(msgspec.Struct, kw_only=True):
    """Only {"type": "text"} is served."""

    type: str


class ChatCompletionBody(SharedFields, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    modalities: list[str] | None = None
    parallel_tool_calls: bool | None = None
    tool_choice: Unserved = msgspec.UNSET
    tools: Unserved = msgspec.UNSET
    functions: Unserved = msgspec.UNSET
    function_call: Unserved = msgspec.UNSET
    audio: Unserved = msgspec.UNSET
    prediction: Unserved = msgspec.UNSET
    reasoning_effort: Unserved = msgspec.UNSET
    verbosity: Unserved = msgspec.UNSET
    web_search_options: Unserved = msgspec.UNSET


class CompletionBody(SharedFields, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: Unserved = msgspec.UNSET


_UNSUPPORTED = {
    "tool_choice": "tools are not served yet",
    "tools": "tools are not served yet",
    "functions": "tools are not served yet",
    "function_call": "tools are not served yet",
    "audio": "only text is served",
    "prediction": "predicted outputs are not served",
    "reasoning_effort": "reasoning effort cannot be set",
    "verbosity": "verbosity cannot be set",
    "web_search_options": "nothing is ever fetched for a request",
    "suffix": "text is only continued, not filled in",
    "refusal": "messages carry text only",
    "annotations": "messages carry text only",
    "tool_calls": "tools are not served yet",
    "tool_call_id": "tools are not served yet",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenAIRequest:
    """A body that was understood: one choice per prompt and n."""

    model: str
    prompts: Sequence[Prompt]
    n: int
    options: GenerationOptions
    stream: bool
    include_usage: bool


def parse_chat(body: bytes) -> OpenAIRequest:
    """Read a chat completion's body; InvalidRequest names the field at fault."""
    message = _decode(_CHAT, body)
    _refuse_unsupported(message)
    if message.response_format is not None and message.response_format.type != "text":
        raise InvalidRequest('response_format must be {"type": "text"}', param="response_format")
    if message.modalities not in (None, ["text"]):
        raise InvalidRequest('modalities must be ["text"]: only text is served', param="modalities")
    if message.top_logprobs is not None and not message.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    limits = {message.max_tokens, message.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise InvalidRequest(
            "max_tokens and max_completion_tokens differ; send one of them", param="max_completion_tokens"
        )
    turns = [_turn(index, item) for index, item in enumerate(message.messages)]
    return OpenAIRequest(
        model=message.model,
        prompts=(Conversation(turns),),
        n=_checked_n(message.n, 1),
        options=_options(
            message,
            max_tokens=limits.pop() if limits else None,
            logprobs=(message.top_logprobs or 0) if message.logprobs else None,
        ),
        stream=bool(message.stream),
        include_usage=_include_usage(message),
    )


def parse_completion(body: bytes) -> OpenAIRequest:
    """Read a completion's body; InvalidRequest names the field at fault."""
    message = _decode(_COMPLETION, body)
    _refuse_unsupported(message)
    if message.echo:
        raise InvalidRequest(
            "echo is not served; leave it out and put the prompt before the answer", param="echo"
        )
    prompts = _prompts(message.prompt)
    n = _checked_n(message.n, len(prompts))
    if message.best_of not in (None, n):
        raise InvalidRequest("best_of must equal n: all answers are returned", param="best_of")
    return OpenAIRequest(
        model=message.model,
        prompts=prompts,
        n=n,
        options=_options(
            message,
            max_tokens=message.max_tokens,
            logprobs=message.logprobs,
            default_max_tokens=DEFAULT_COMPLETION_TOKENS,
        ),
        stream=bool(message.stream),
        include_usage=_include_usage(message),
    )


_Body = TypeVar("_Body", ChatCompletionBody, CompletionBody)
_CHAT = msgspec.json.Decoder(ChatCompletionBody)
_COMPLETION = msgspec.json.Decoder(CompletionBody)


def _decode(decoder: msgspec.json.Decoder[_Body], body: bytes) -> _Body:
    try:
        body.decode("utf-8")  # fields that are skipped are not looked into otherwise
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        text = str(error)
        match = _PATH.search(text)
        param = match[1] if match else None
        if param is None and (unknown := re.search(r"field `([^`]{1,64})`", text)):
            param = unknown[1]
        raise InvalidRequest(f"the request is not valid: {text[:300]}", param=param) from None
    except UnicodeDecodeError:
        raise InvalidRequest("the request body is not valid UTF-8") from None
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest("the request body is not valid JSON") from None


def _unserved_of(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    return tuple(field.name for field in msgspec.structs.fields(kind) if field.type == Unserved)


_UNSERVED: Mapping[type[msgspec.Struct], Sequence[str]] = {
    kind: _unserved_of(kind) for kind in (ChatCompletionBody, CompletionBody, ChatMessage, TextPart)
}


def _refuse_unsupported(message: msgspec.Struct) -> None:
    for name in _UNSERVED[type(message)]:
        value = getattr(message, name)
        if value is msgspec.UNSET:
            continue
        neutral = _NEUTRAL_TOOL_CHOICES if name == "tool_choice" else _NEUTRAL
        if bytes(value).strip() not in neutral:
            raise _unsupported(name)


def _unsupported(name: str) -> InvalidRequest:
    reason = _UNSUPPORTED.get(name, "only text is served")
    return InvalidRequest(f"{name} is not supported ({reason}); leave it out", param=name)


def _turn(index: int, message: ChatMessage) -> ChatTurn:
    _refuse_unsupported(message)
    # What newer OpenAI models call the system message.
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return ChatTurn(role, message.content)
    if message.content is None:
        raise InvalidRequest(f"messages[{index}] has no content", param=f"messages[{index}].content")
    for part in message.content:
        if part.type != "text" or part.text is None:
            raise InvalidRequest(
                f"messages[{index}] has a part of type {part.type[:40]!r}; only text is served: "
                '{"type": "text", "text": "..."}',
                param=f"messages[{index}].content",
            )
        _refuse_unsupported(part)
    return ChatTurn(role, "".join(part.text or "" for part in message.content))


def _prompts(prompt: str | list[Any]) -> list[Prompt]:
    """One prompt (text or token ids) or a list of them."""
    if isinstance(prompt, str):
        return [TextPrompt(prompt)]
    kinds = {type(item) for item in prompt}
    if kinds == {int}:
        return [TokenPrompt(prompt)]
    if kinds == {str}:
        return [TextPrompt(text) for text in prompt]
    if kinds == {list}:
        return [TokenPrompt(token_ids) for token_ids in prompt]
    if not prompt:
        raise InvalidRequest("the prompt is empty; send at least one token", param="prompt")
    raise InvalidRequest(
        "prompt must be text, a list of texts, a list of token ids or a list of such lists", param="prompt"
    )


def _checked_n(n: int | None, num_prompts: int) -> int:
    n = 1 if n is None else n
    if not 1 <= n <= MAX_CHOICES:
        raise InvalidRequest(f"n must be between 1 and {MAX_CHOICES}, got {n}", param="n")
    if n * num_prompts > MAX_CHOICES:
        raise InvalidRequest(
            f"{num_prompts} prompts with n = {n} make {n * num_prompts} answers; at most {MAX_CHOICES} are allowed",
            param="n" if num_prompts == 1 else "prompt",
        )
    return n


def _include_usage(message: SharedFields) -> bool:
    if message.stream_options is None:
        return False
    if not message.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    return bool(message.stream_options.include_usage)


_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
_sampling_fields = operator.attrgetter(*_SAMPLING)


@functools.lru_cache(maxsize=256)
def _sampling(*values: float | None) -> SamplingParams:
    """From the values of _SAMPLING, then logprobs; None stands for the default. Most requests have the same ones."""
    given: dict[str, Any] = dict(zip((*_SAMPLING, "logprobs"), values, strict=True))
    return SamplingParams(**{name: value for name, value in given.items() if value is not None})


def _options(
    message: SharedFields,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    default_max_tokens: int | None = None,
) -> GenerationOptions:
    if logprobs is not None and not 0 <= logprobs <= MAX_LOGPROBS:
        raise InvalidRequest(
            f"at most {MAX_LOGPROBS} log-probabilities per token, got {logprobs}", param="logprobs"
        )
    try:
        sampling = _sampling(*_sampling_fields(message), logprobs)
        if message.logit_bias is not None or message.seed is not None:
            sampling = dataclasses.replace(
                sampling, logit_bias=message.logit_bias or {}, seed=message.seed or 0
            )
    except OverflowError:
        raise InvalidRequest("a sampling parameter is far out of range", param=None) from None
    stop = (message.stop,) if isinstance(message.stop, str) else tuple(message.stop or ())
    return GenerationOptions(
        sampling=sampling,
        seeded=message.seed is not None,
        max_tokens=max_tokens,
        default_max_tokens=default_max_tokens,
        min_tokens=message.min_tokens or 0,
        stop=stop,
        stop_token_ids=frozenset(message.stop_token_ids or ()),
        ignore_eos=bool(message.ignore_eos),
        request_class=RequestClass.BATCH if message.request_class == "batch" else RequestClass.INTERACTIVE,
        ttft_deadline_ms=message.ttft_deadline_ms or 0,
    )
