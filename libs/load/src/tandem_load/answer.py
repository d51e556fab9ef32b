"""One streamed answer of an OpenAI-compatible server, event by event."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from tandem_load.sse import EventReader, MalformedStream

DONE = b"[DONE]"
_TEXT = re.compile(rb'"(?:content|text|reasoning_content|reasoning)":\s*"')
_STRING_REST = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*"')
_QUOTE = ord('"')


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    message: str | None = None  # beside "object": "error", as vLLM sends it


_decode = msgspec.json.Decoder(_Chunk).decode


class AnswerError(Exception):
    """The server ended an answer with an error of its own; the message is the server's."""


class AnswerReader:
    """What the body of one answer says. With `keeps_text` the text is there afterwards.

    Most events differ from the one before in the text only. Such an event is told by what stands before and after the
    text, and its JSON is not parsed: that is what makes a token cheap to read.
    """

    def __init__(self, *, keeps_text: bool = False) -> None:
        self.num_text_events = 0
        self.num_prompt_tokens: int | None = None
        self.num_cached_tokens: int | None = None
        self.num_usage_tokens: int | None = None  # of the answer, as the server counts them
        self.finish_reason: str | None = None
        self.is_done = False
        self._events = EventReader()
        self._head = b""  # of an event with text, from its "data: " on
        self._tail = b""
        self._texts: list[bytes] | None = [] if keeps_text else None  # JSON strings without their quotes

    def feed(self, body: bytes) -> int:
        """Take some of the body; how many events with text it completed, of a thought or a tool call too.

        Raises MalformedStream or AnswerError.
        """
        head = self._head
        if (
            head
            and body.startswith(head)
            and body.find(b"\n") == len(body) - 2
            and body.endswith(self._tail)
            and self._events.is_between_events
            and self._takes_text(body)
        ):
            return 1
        before = self.num_text_events
        for payload in self._events.feed(body):
            if not self._takes_text(b"data: %b\n\n" % payload):
                self._parse(payload)
        return self.num_text_events - before

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer: as the server counted them, else one for each event with text."""
        return self.num_text_events if self.num_usage_tokens is None else self.num_usage_tokens

    def text(self) -> str:
        """The answer, when it was to be kept."""
        return msgspec.json.decode(b'"%b"' % b"".join(self._texts or ()), type=str)

    def _takes_text(self, event: bytes) -> bool:
        """Whether this is the event before with another text."""
        start, end = len(self._head), len(event) - len(self._tail)
        if not (0 < start < end and event.startswith(self._head) and event.endswith(self._tail)):
            return False
        if event[start] == _QUOTE:  # no text
            return False
        self.num_text_events += 1
        if self._texts is not None:
            self._texts.append(event[start:end])
        return True

    def _parse(self, payload: bytes) -> None:
        if payload == DONE:
            self.is_done = True
            return
        try:
            chunk = _decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MalformedStream(
                f"an event is not a chunk of an answer: {_without_content(error)}"
            ) from None
        if chunk.error is not None or (chunk.choices is None and chunk.message):
            raise AnswerError(error_message(payload))
        if chunk.usage is not None:
            self._take_usage(chunk.usage)
        if not chunk.choices:
            return
        choice = chunk.choices[0]
        self.finish_reason = choice.finish_reason or self.finish_reason
        delta = choice.delta or _Delta()
        text = choice.text or delta.content or delta.reasoning_content or delta.reasoning
        if text or delta.tool_calls:
            self.num_text_events += 1
        if text:
            self._learn(payload, text)

    def _take_usage(self, usage: _Usage) -> None:
        if usage.prompt_tokens is not None:
            self.num_prompt_tokens = usage.prompt_tokens
        if usage.completion_tokens is not None:
            self.num_usage_tokens = usage.completion_tokens
        if usage.prompt_tokens_details is not None:
            self.num_cached_tokens = usage.prompt_tokens_details.cached_tokens

    def _learn(self, payload: bytes, text: str) -> None:
        """Remember what stands around the text; events that end the answer or count tokens do not come again."""
        if self._texts is not None:
            self._texts.append(msgspec.json.encode(text)[1:-1])
        self._head = b""
        for match in _TEXT.finditer(payload):
            end = _STRING_REST.match(payload, match.end())
            if end is None or end.end() == match.end() + 1:
                continue
            tail = payload[end.end() - 1 :]
            if b'"usage": {' not in tail and b'"usage":{' not in tail:
                self._head, self._tail = b"data: " + payload[: match.end()], tail + b"\n\n"
            return


def error_message(body: bytes) -> str:
    """What a server's error says, whatever its shape: one line, at most 300 characters."""
    text = body.decode("utf-8", "replace")
    try:
        found: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = text
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(key):
            found = found[key]
    return " ".join(str(found).split())[:300]


def _without_content(error: Exception) -> str:
    return "text that is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)[:120]
