"""Answers as bytes: whole ones and server-sent events, for both of OpenAI's endpoints.

An event of nothing but text is a JSON string between two halves that are made when a stream begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import orjson
from tandem.v1 import generation_pb2 as pb

from tandem_frontend import openai_responses as body
from tandem_frontend.generator import Completion, Usage
from tandem_frontend.text_stream import Delta
from tandem_frontend.token_bytes import TokenBytes

DONE = b"data: [DONE]\n\n"
# JSON has no minus infinity; OpenAI writes this for impossible tokens.
_LEAST_LOGPROB = -9999.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Envelope:
    """What all chunks of one answer repeat."""

    id: str
    created: int  # seconds since 1970
    model: str
    usage_in_chunks: bool = False  # the client asked for usage: every chunk has the field


class AnswerFormat(Protocol):
    """How one endpoint writes its answers."""

    def first_event(self, index: int) -> bytes:
        """What comes before the first text of a choice; may be empty."""
        ...

    def event(self, index: int, delta: Delta) -> bytes:
        """A piece of a choice; empty when it has nothing to show yet."""
        ...

    def text_frame(self, index: int) -> tuple[bytes, bytes]:
        """What stands before and after the text in an event of nothing but text; the quotes are part of it."""
        ...

    def last_event(self, index: int, completion: Completion) -> bytes:
        """The end of a choice."""
        ...

    def usage_event(self, usage: Usage) -> bytes:
        """The last event before DONE, when usage was asked for."""
        ...

    def whole(self, choices: Sequence[tuple[Sequence[Delta], Completion]], usage: Usage) -> bytes:
        """The answer as one document."""
        ...


class ChatFormat:
    """POST /v1/chat/completions."""

    def __init__(self, envelope: Envelope, table: TokenBytes) -> None:
        self._envelope = envelope
        self._table = table
        self._head, self._tail = _frame(envelope, "chat.completion.chunk")

    def first_event(self, index: int) -> bytes:
        """The role."""
        return self._chunk(index, b'{"role":"assistant","content":""}')

    def event(self, index: int, delta: Delta) -> bytes:
        """Text, and log-probabilities when there are some."""
        if delta.logprobs:
            return self._chunk(
                index,
                b'{"content":%b}' % orjson.dumps(delta.text),
                logprobs=body.encode(chat_logprobs([delta], self._table)),
            )
        return self._chunk(index, b'{"content":%b}' % orjson.dumps(delta.text)) if delta.text else b""

    def text_frame(self, index: int) -> tuple[bytes, bytes]:
        """Around `content`."""
        head = self._head + b'{"index":%d,"delta":{"content":"' % index
        return head, b'"},"logprobs":null,"finish_reason":null}' + self._tail

    def last_event(self, index: int, completion: Completion) -> bytes:
        """The reason."""
        return self._chunk(index, b"{}", reason=orjson.dumps(body.finish_name(completion.reason)))

    def usage_event(self, usage: Usage) -> bytes:
        """No choices, only usage."""
        return _usage_event(self._envelope, "chat.completion.chunk", usage)

    def whole(self, choices: Sequence[tuple[Sequence[Delta], Completion]], usage: Usage) -> bytes:
        """A chat.completion object."""
        return body.encode(
            body.ChatCompletion(
                id=self._envelope.id,
                created=self._envelope.created,
                model=self._envelope.model,
                choices=[
                    body.ChatChoice(
                        index=index,
                        message=body.AnswerMessage(content=_text(deltas)),
                        logprobs=chat_logprobs(deltas, self._table) if _has_logprobs(deltas) else None,
                        finish_reason=body.finish_name(completion.reason),
                    )
                    for index, (deltas, completion) in enumerate(choices)
                ],
                usage=body.usage_body(usage),
            )
        )

    def _chunk(
        self, index: int, delta: bytes, *, logprobs: bytes = b"null", reason: bytes = b"null"
    ) -> bytes:
        return b'%b{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}%b' % (
            self._head,
            index,
            delta,
            logprobs,
            reason,
            self._tail,
        )


class CompletionFormat:
    """POST /v1/completions."""

    def __init__(self, envelope: Envelope, table: TokenBytes) -> None:
        self._envelope = envelope
        self._table = table
        self._head, self._tail = _frame(envelope, "text_completion")
        self._text_lengths: dict[int, int] = {}  # characters of each choice so far

    def first_event(self, index: int) -> bytes:
        """Nothing: the first text is the first event."""
        return b""

    def event(self, index: int, delta: Delta) -> bytes:
        """Text, and log-probabilities when there are some."""
        offset = self._text_lengths.get(index, 0)
        self._text_lengths[index] = offset + len(delta.text)
        if delta.logprobs:
            logprobs = body.encode(completion_logprobs([delta], self._table, offset))
            return self._chunk(index, delta.text, logprobs=logprobs)
        return self._chunk(index, delta.text) if delta.text else b""

    def text_frame(self, index: int) -> tuple[bytes, bytes]:
        """Around `text`."""
        head = self._head + b'{"index":%d,"text":"' % index
        return head, b'","logprobs":null,"finish_reason":null}' + self._tail

    def last_event(self, index: int, completion: Completion) -> bytes:
        """The reason."""
        return self._chunk(index, "", reason=orjson.dumps(body.finish_name(completion.reason)))

    def usage_event(self, usage: Usage) -> bytes:
        """No choices, only usage."""
        return _usage_event(self._envelope, "text_completion", usage)

    def whole(self, choices: Sequence[tuple[Sequence[Delta], Completion]], usage: Usage) -> bytes:
        """A text_completion object."""
        return body.encode(
            body.TextCompletion(
                id=self._envelope.id,
                created=self._envelope.created,
                model=self._envelope.model,
                choices=[
                    body.CompletionChoice(
                        index=index,
                        text=_text(deltas),
                        logprobs=completion_logprobs(deltas, self._table) if _has_logprobs(deltas) else None,
                        finish_reason=body.finish_name(completion.reason),
                    )
                    for index, (deltas, completion) in enumerate(choices)
                ],
                usage=body.usage_body(usage),
            )
        )

    def _chunk(self, index: int, text: str, *, logprobs: bytes = b"null", reason: bytes = b"null") -> bytes:
        return b'%b{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}%b' % (
            self._head,
            index,
            orjson.dumps(text),
            logprobs,
            reason,
            self._tail,
        )


def error_event(answer: body.ErrorAnswer) -> bytes:
    """What a stream ends with when it failed after it began."""
    return b"data: %b\n\n" % body.encode(answer)


def chat_logprobs(deltas: Sequence[Delta], table: TokenBytes) -> body.ChatLogprobs:
    """Log-probabilities of some tokens, one object each."""
    return body.ChatLogprobs(
        content=[
            body.TokenLogprob(
                token=table.shown_text(token_id),
                logprob=max(entry.logprob, _LEAST_LOGPROB),
                bytes=list(table.shown_bytes(token_id)),
                top_logprobs=[
                    body.TopLogprob(
                        token=table.shown_text(top_id),
                        logprob=max(logprob, _LEAST_LOGPROB),
                        bytes=list(table.shown_bytes(top_id)),
                    )
                    for top_id, logprob in zip(entry.top_token_ids, entry.top_logprobs, strict=False)
                ],
            )
            for token_id, entry in _entries(deltas)
        ]
    )


def completion_logprobs(
    deltas: Sequence[Delta], table: TokenBytes, offset: int = 0
) -> body.CompletionLogprobs:
    """Log-probabilities of some tokens, in columns; the first token starts at character `offset`."""
    columns = body.CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for token_id, entry in _entries(deltas):
        token = table.shown_text(token_id)
        columns.tokens.append(token)
        columns.token_logprobs.append(max(entry.logprob, _LEAST_LOGPROB))
        columns.top_logprobs.append(
            {
                table.shown_text(top_id): max(logprob, _LEAST_LOGPROB)
                for top_id, logprob in zip(entry.top_token_ids, entry.top_logprobs, strict=False)
            }
        )
        columns.text_offset.append(offset)
        offset += len(token)
    return columns


def _entries(deltas: Sequence[Delta]) -> list[tuple[int, pb.TokenLogprobs]]:
    return [pair for delta in deltas for pair in zip(delta.token_ids, delta.logprobs, strict=False)]


def _has_logprobs(deltas: Sequence[Delta]) -> bool:
    return any(delta.logprobs for delta in deltas)


def _text(deltas: Sequence[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def _frame(envelope: Envelope, kind: str) -> tuple[bytes, bytes]:
    """What stands before and after the choice in every event."""
    head = b'data: {"id":%b,"object":%b,"created":%d,"model":%b,"choices":[' % (
        orjson.dumps(envelope.id),
        orjson.dumps(kind),
        envelope.created,
        orjson.dumps(envelope.model),
    )
    return head, b'],"usage":null}\n\n' if envelope.usage_in_chunks else b"]}\n\n"


def _usage_event(envelope: Envelope, kind: str, usage: Usage) -> bytes:
    head, _ = _frame(envelope, kind)
    return b'%b],"usage":%b}\n\n' % (head, body.encode(body.usage_body(usage)))
