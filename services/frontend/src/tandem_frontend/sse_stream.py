"""Server-sent events on their way to one client: the last step of the token path.

`send` frames an event and hands it to the socket at once, in the call that the session's reader made. It never waits:
what the client does not read piles up in the transport's buffer, up to the backlog's bounds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from tandem_common.logs import get_logger

from tandem_frontend.answer_format import AnswerFormat
from tandem_frontend.backlog import Backlog
from tandem_frontend.http_messages import HttpRequest
from tandem_frontend.plain_stream import TextWriter
from tandem_frontend.text_stream import Delta

# A comment, which readers of events skip.
KEEPALIVE = b": keep-alive\n\n"
# Proxies must pass events on as they come.
_HEADERS = b"Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n"
_CHUNKED = b"Transfer-Encoding: chunked\r\n"
# What stands before a chunk, by its size: nearly all events are shorter.
_CHUNK_HEADS = tuple(b"%x\r\n" % size for size in range(1024))

_log = get_logger("streams")


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamLimits:
    """How patient a stream is."""

    buffer_bytes: int  # more unread than this ends it
    buffer_age_s: float  # and so does anything unread for longer
    keepalive_s: float  # when there is nothing to send for so long (at most twice that), a comment goes out


class SseStream:
    """The answer to one request. The head goes out with the first event: until then the request can still fail."""

    __slots__ = (
        "_before", "_keepalive_s", "_on_slow_reader", "_request", "_timer", "backlog", "is_chunked", "is_quiet",
        "transport",
    )  # fmt: skip

    def __init__(
        self, request: HttpRequest, limits: StreamLimits, on_slow_reader: Callable[[], None]
    ) -> None:
        self._request = request
        self.transport = request.transport
        self.backlog = Backlog(max_bytes=limits.buffer_bytes, max_age_s=limits.buffer_age_s)
        self._on_slow_reader = on_slow_reader
        self._keepalive_s = limits.keepalive_s
        self.is_chunked = request.has_chunks
        if not self.is_chunked:
            request.closes = True  # nothing else says where the answer ends
        self._before = request.head(
            200, b"text/event-stream; charset=utf-8", _HEADERS + _CHUNKED if self.is_chunked else _HEADERS
        )
        self.is_quiet = False  # nothing was sent since the last look
        self._timer = asyncio.get_running_loop().call_later(self._keepalive_s, self._look)

    def send(self, events: bytes) -> None:
        """Write one or more events."""
        self._write(b"%x\r\n%b\r\n" % (len(events), events) if self.is_chunked else events)

    def finish(self, events: bytes) -> None:
        """Write the last events."""
        self._write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(events), events) if self.is_chunked else events)
        self.close()

    def close(self) -> None:
        """Nothing more is sent from here. Idempotent."""
        self._timer.cancel()

    def _write(self, data: bytes) -> None:
        transport = self.transport
        if transport.is_closing():
            return
        self.is_quiet = False
        if self._before:
            data, self._before = self._before + data, b""
            self._request.is_answered = True
        transport.write(data)
        num_buffered = transport.get_write_buffer_size()
        if num_buffered or not self.backlog.is_empty:  # else the socket took it at once, as nearly always
            self.account(len(data), num_buffered)

    def account(self, num_bytes: int, num_buffered: int) -> None:
        """After a write of `num_bytes`, `num_buffered` wait in the transport: end a client that does not read."""
        reason = self.backlog.wrote(num_bytes, num_buffered, time.monotonic())
        if reason is not None:
            _log.warning(
                "ending a stream whose client does not read", reason=reason, request_id=self._request.id
            )
            self._on_slow_reader()
            # Its handler is cancelled by the loss of the connection, and that stops the worker.
            self.transport.abort()

    def _look(self) -> None:
        """Send a comment if nothing was sent since the last look."""
        if self._before or self.is_quiet:
            self.send(KEEPALIVE)
        self.is_quiet = True
        self._timer = asyncio.get_running_loop().call_later(self._keepalive_s, self._look)


class TextEvents:
    """Events of one choice that differ in their text only, after the first."""

    __slots__ = ("_head", "_is_chunked", "_num_bytes", "_stream", "_tail", "_transport")

    def __init__(self, stream: SseStream, head: bytes, tail: bytes) -> None:
        self._stream = stream
        self._transport = stream.transport
        self._is_chunked = stream.is_chunked
        self._num_bytes = len(head) + len(tail)
        self._head = head
        self._tail = tail + b"\r\n" if stream.is_chunked else tail

    def send(self, text: bytes) -> None:
        """Write one event, as `SseStream.send` would."""
        transport = self._transport
        if transport.is_closing():
            return
        stream = self._stream
        stream.is_quiet = False
        if self._is_chunked:
            size = self._num_bytes + len(text)
            chunk_head = _CHUNK_HEADS[size] if size < len(_CHUNK_HEADS) else b"%x\r\n" % size
            data = b"".join((chunk_head, self._head, text, self._tail))
        else:
            data = b"".join((self._head, text, self._tail))
        transport.write(data)
        num_buffered = transport.get_write_buffer_size()
        if num_buffered or not stream.backlog.is_empty:
            stream.account(len(data), num_buffered)


class SseChoice:
    """One choice of a streamed answer: a DeltaSink."""

    def __init__(self, stream: SseStream, format: AnswerFormat, index: int) -> None:  # noqa: A002
        self._stream = stream
        self._format = format
        self._index = index
        self._began = False

    def on_delta(self, delta: Delta) -> None:
        """Send it, if there is something to show."""
        event = self._format.event(self._index, delta)
        if event:
            self._stream.send(event if self._began else self._first(event))

    def text_writer(self) -> TextWriter | None:
        """Open from the first event on."""
        return TextEvents(self._stream, *self._format.text_frame(self._index)).send if self._began else None

    def last(self, event: bytes) -> bytes:
        """The choice's last event, with what must come before it."""
        return event if self._began else self._first(event)

    def _first(self, event: bytes) -> bytes:
        self._began = True
        return self._format.first_event(self._index) + event
