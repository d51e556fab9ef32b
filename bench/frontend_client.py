"""A plain keep-alive HTTP client on raw sockets: what `bench/frontend.py` runs in processes of its own.

It takes its task as JSON on stdin and writes its result as JSON on stdout. Closed loop: each stream sends its next
request when the last was answered. It sets no socket options, so the kernel delays acknowledgements as for any client.
"""

from __future__ import annotations

import json
import re
import select
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from frontend_prompts import PromptMaker, PromptShape, single_token_words
from tandem_load.polite import be_polite

_TEXT = b'"content":"'
_NO_TEXT = b'"content":""'
_USAGE = b'"completion_tokens":'
_NUMBER = re.compile(rb"\d+")


@dataclass(frozen=True, kw_only=True)
class ClientTask:
    """One client's work. Only what happens between `begin_s` and `end_s` (CLOCK_MONOTONIC) is counted."""

    host: str
    port: int
    model: str
    tokenizer: str  # directory
    shape: PromptShape
    max_tokens: int
    num_streams: int
    seed: int
    begin_s: float
    end_s: float


@dataclass(kw_only=True)
class ClientResult:
    """Counts and latencies within the window."""

    tokens_per_event: float = 1.0  # tokens as the usage says, per event with text
    num_requests: int = 0
    num_text_events: int = 0
    num_errors: int = 0
    ttft_ms: list[float] = field(default_factory=list)
    itl_ms: list[float] = field(default_factory=list)  # between two reads with text of one stream
    cpu_s: float = 0.0
    first_error: str = ""


class _Stream:
    """One connection. Events are counted where they end; nothing is parsed but the usage."""

    def __init__(self, client: _Client) -> None:
        self._client = client
        self._task = client.task
        self.socket = socket.create_connection((self._task.host, self._task.port))
        self.socket.setblocking(False)
        self.begin()

    def begin(self) -> None:
        body = self._client.body()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._task.host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._rest = b""
        self._first_at = self._last_at = 0.0
        self._num_events = 0
        self._num_tokens = 0
        self._done = False
        self._sent_at = time.monotonic()
        self.socket.sendall(head.encode() + body)

    def on_readable(self) -> None:
        """Take what is there; ConnectionError for whatever is not the answer that was asked for."""
        data = self.socket.recv(1 << 18)
        now = time.monotonic()
        if not data:
            raise ConnectionError("the server closed the connection")
        if self._first_at == 0.0:
            self._first_at = now
            if not data.startswith(b"HTTP/1.1 200"):
                raise ConnectionError(data.decode("utf-8", "replace"))
        data = self._rest + data
        cut = data.rfind(b"\n\n") + 2 if b"\n\n" in data else 0
        events, self._rest = data[:cut], data[cut:]
        if num_events := events.count(_TEXT) - events.count(_NO_TEXT):
            self._on_text(num_events, now)
        if (at := events.rfind(_USAGE)) >= 0:
            self._num_tokens = int(_NUMBER.match(events, at + len(_USAGE))[0])  # type: ignore[index]
        if b"data: [DONE]" in events:
            self._done = True
        if self._rest.endswith(b"\r\n0\r\n\r\n"):
            if not self._done:
                raise ConnectionError("the stream ended early: " + data[-300:].decode("utf-8", "replace"))
            self._on_end(now)
            self.begin()

    def _on_text(self, num_events: int, now: float) -> None:
        client = self._client
        if client.counts(now):
            client.result.num_text_events += num_events
            if self._last_at:
                client.result.itl_ms.append(1000 * (now - self._last_at))
            elif client.counts(self._sent_at):
                client.result.ttft_ms.append(1000 * (now - self._sent_at))
        self._num_events += num_events
        self._last_at = now

    def _on_end(self, now: float) -> None:
        client = self._client
        client.num_finished_tokens += self._num_tokens
        client.num_finished_events += self._num_events
        if client.counts(now):
            client.result.num_requests += 1


class _Client:
    def __init__(self, task: ClientTask) -> None:
        self.task = task
        self.result = ClientResult()
        # Over whole answers: how many tokens an event stands for.
        self.num_finished_tokens = self.num_finished_events = 0
        words, template_tokens = single_token_words(Path(task.tokenizer))
        self._prompts = PromptMaker(words, template_tokens, task.shape, task.seed)
        self._template = json.dumps(
            {
                "model": task.model,
                "messages": [{"role": "user", "content": "@"}],
                "max_tokens": task.max_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        ).encode()

    def counts(self, now: float) -> bool:
        return self.task.begin_s <= now < self.task.end_s

    def body(self) -> bytes:
        return self._template.replace(b"@", self._prompts.make().encode())

    def run(self) -> ClientResult:
        epoll = select.epoll()
        streams: dict[int, _Stream] = {}
        for _ in range(self.task.num_streams):
            stream = _Stream(self)
            streams[stream.socket.fileno()] = stream
            epoll.register(stream.socket, select.EPOLLIN)
        began_cpu = None
        while (now := time.monotonic()) < self.task.end_s and streams:
            if began_cpu is None and now >= self.task.begin_s:
                began_cpu = time.process_time()
            for descriptor, _ in epoll.poll(0.05):
                try:
                    streams[descriptor].on_readable()
                except (ConnectionError, ValueError) as error:
                    self.result.num_errors += 1
                    self.result.first_error = self.result.first_error or str(error)
                    epoll.unregister(descriptor)
                    streams.pop(descriptor).socket.close()
        if began_cpu is not None:
            self.result.cpu_s = time.process_time() - began_cpu
        if self.num_finished_events:
            self.result.tokens_per_event = self.num_finished_tokens / self.num_finished_events
        return self.result


def main() -> None:
    """Do the task."""
    be_polite()
    content = json.load(sys.stdin)
    task = ClientTask(**content | {"shape": PromptShape(**content["shape"])})
    json.dump(asdict(_Client(task).run()), sys.stdout)


if __name__ == "__main__":
    main()
