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
from tandem_frontend.text_stream import Delta

# A comment, which readers of events skip.
KEEPALIVE = b": keep-alive\n\n"
# Proxies must pass events on as they come.
_HEADERS = b"Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n"
_CHUNKED = b"Transfer-Encoding: chunked\r\n"

_log = get_logger("streams")


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamLimits:
    """How patient a stream is."""

    buffer_bytes: int  # more unread than this ends it
    buffer_age_s: float  # and so does anything unread for longer
    keepalive_s: float  # when there is nothing to send for so long (at most twice that), a comment goes out


class SseStream:
    """The answer to one request. The head goes out with the first event: until then the request can still fail."""

    def __init__(
        self, request: HttpRequest, limits: StreamLimits, on_slow_reader: Callable[[], None]
    ) -> None:
        self._request = request
        self._transport = request.transport
        self._backlog = Backlog(max_bytes=limits.buffer_bytes, max_age_s=limits.buffer_age_s)
        self._on_slow_reader = on_slow_reader
        self._keepalive_s = limits.keepalive_s
        self._chunked = request.has_chunks
        if not self._chunked:
            request.closes = True  # nothing else says where the answer ends
        self._before = request.head(
            200, b"text/event-stream; charset=utf-8", _HEADERS + _CHUNKED if self._chunked else _HEADERS
        )
        self._is_quiet = False  # nothing was sent since the last look
        self._timer = asyncio.get_running_loop().call_later(self._keepalive_s, self._look)

    def send(self, events: bytes) -> None:
        """Write one or more events."""
        self._write(b"%x\r\n%b\r\n" % (len(events), events) if self._chunked else events)

    def finish(self, events: bytes) -> None:
        """Write the last events."""
        self._write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(events), events) if self._chunked else events)
        self.close()

    def close(self) -> None:
        """Nothing more is sent from here. Idempotent."""
        self._timer.cancel()

    def _write(self, data: bytes) -> None:
        transport = self._transport
        if transport.is_closing():
            return
        self._is_quiet = False
        if self._before:
            data, self._before = self._before + data, b""
            self._request.is_answered = True
        transport.write(data)
        num_buffered = transport.get_write_buffer_size()
        if not num_buffered and self._backlog.empty:
            return  # the socket took it at once, as nearly always
        reason = self._backlog.wrote(len(data), num_buffered, time.monotonic())
        if reason is not None:
            _log.warning(
                "ending a stream whose client does not read", reason=reason, request_id=self._request.id
            )
            self._on_slow_reader()
            # Its handler is cancelled by the loss of the connection, and that stops the worker.
            transport.abort()

    def _look(self) -> None:
        """Send a comment if nothing was sent since the last look."""
        if self._before or self._is_quiet:
            self.send(KEEPALIVE)
        self._is_quiet = True
        self._timer = asyncio.get_running_loop().call_later(self._keepalive_s, self._look)


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

    def last(self, event: bytes) -> bytes:
        """The choice's last event, with what must come before it."""
        return event if self._began else self._first(event)

    def _first(self, event: bytes) -> bytes:
        self._began = True
        return self._format.first_event(self._index) + event
