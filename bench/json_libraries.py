"""Which libraries read request bodies and write events: the same work by each, in microseconds of CPU.

    .venv/bin/python bench/json_libraries.py

Reading is from bytes to a checked object with the fields of a chat completion; writing is one token's text as JSON,
and a whole event. Pydantic comes with the developers' tools (openai needs it).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import orjson
from machine import describe_machine
from pydantic import BaseModel, ConfigDict
from tandem_frontend.openai_requests import ChatCompletionBody

BODY = {
    "model": "tandem-tiny",
    "messages": [{"role": "system", "content": "You help."}, {"role": "user", "content": "word " * 128}],
    "max_tokens": 128,
    "temperature": 0.7,
    "top_p": 0.95,
    "stream": True,
    "stream_options": {"include_usage": True},
}


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: str
    content: str | list[dict[str, str]] | None = None
    name: str | None = None


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool | None = None


class _Body(BaseModel):
    """Fewer fields than ours: in its favour."""

    model_config = ConfigDict(extra="forbid")
    model: str
    messages: list[_Message]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    request_class: Literal["interactive", "batch"] | None = None


def cost(work: Callable[[], Any], count: int = 20_000) -> float:
    """Microseconds of CPU, the best of five rounds."""
    best = float("inf")
    for _ in range(5):
        began_s = time.thread_time()
        for _ in range(count // 5):
            work()
        best = min(best, time.thread_time() - began_s)
    return 1e6 * best / (count // 5)


def main() -> None:
    """Measure and print."""
    print(describe_machine())
    data = json.dumps(BODY).encode()
    decoder = msgspec.json.Decoder(ChatCompletionBody)
    text = ' "caf\u00e9'
    head, tail = b'data: {"choices":[{"index":0,"delta":{"content":', b'},"finish_reason":null}]}\n\n'
    event = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
    rows: dict[str, Callable[[], Any]] = {
        "read and check a body: msgspec": lambda: decoder.decode(data),
        "read and check a body: pydantic": lambda: _Body.model_validate_json(data),
        "read a body, check nothing: orjson": lambda: orjson.loads(data),
        "read a body, check nothing: json": lambda: json.loads(data),
        "a token's text: orjson": lambda: orjson.dumps(text),
        "a token's text: msgspec": lambda: msgspec.json.encode(text),
        "a token's text: json": lambda: json.dumps(text),
        "an event, two halves around orjson": lambda: b"%b%b%b" % (head, orjson.dumps(text), tail),
        "an event, whole by orjson": lambda: b"data: %b\n\n" % orjson.dumps(event),
        "an event, whole by json": lambda: b"data: %b\n\n" % json.dumps(event).encode(),
    }
    for name, work in rows.items():
        print(f"{name}: {cost(work):.2f} us")


if __name__ == "__main__":
    main()
