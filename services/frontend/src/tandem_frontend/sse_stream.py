"""Server-sent events on their way to one client: the last step of the token path.

`send` frames an event and hands it to the socket at once, in the call that the session's reader made. It never waits:
what the client does not read piles up in the transport's buffer, up to the backlog's bounds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from tandem_common.logs import get_logger

from tandem_frontend.answer_format import AnswerFormat
from tandem_frontend.backlog import Backlog
from tandem_frontend.text_stream import Delta

# A comment, which readers of events skip.
KEEPALIVE = b": keep-alive\n\n"

_log = get_logger("streams")


class SseStream:
    """Events of one HTTP response. Until `attach`, when the headers go out, they are kept."""

    def __init__(self, backlog: Backlog, on_slow_reader: Callable[[], None], request_id: str) -> None:
        self._backlog = backlog
        self._on_slow_reader = on_slow_reader
        self._request_id = request_id
        self._kept: list[bytes] = []
        self._transport: asyncio.WriteTransport | None = None
        self._chunked = False
        self.began = asyncio.Event()  # there is something to send
        self._quiet = True  # since the last look
        self._timer: asyncio.TimerHandle | None = None

    def attach(self, transport: asyncio.WriteTransport, *, chunked: bool, keepalive_s: float) -> None:
        """The headers are out: send what was kept, and from now on everything at once.

        When there is nothing to send for `keepalive_s` (at most twice that), a comment goes out, so that no proxy
        takes the connection for dead.
        """
        self._transport, self._chunked = transport, chunked
        self._look(keepalive_s)
        kept, self._kept = b"".join(self._kept), []
        if kept:
            self.send(kept)

    def send(self, event: bytes) -> None:
        """Write one or more events."""
        transport = self._transport
        if transport is None:
            self._kept.append(event)
            self.began.set()
            return
        if transport.is_closing():
            return
        self._quiet = False
        framed = b"%x\r\n%b\r\n" % (len(event), event) if self._chunked else event
        transport.write(framed)
        num_buffered = transport.get_write_buffer_size()
        if not num_buffered and self._backlog.empty:
            return  # the socket took it at once, as nearly always
        reason = self._backlog.wrote(len(framed), num_buffered, time.monotonic())
        if reason is not None:
            _log.warning(
                "ending a stream whose client does not read", reason=reason, request_id=self._request_id
            )
            self._on_slow_reader()
            # Its handler is cancelled by the loss of the connection, and that stops the worker.
            transport.abort()

    def close(self) -> None:
        """Nothing more is sent from here. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, keepalive_s: float) -> None:
        """Send a comment if nothing was sent since the last look."""
        if self._timer is not None and self._quiet:
            self.send(KEEPALIVE)
        self._quiet = True
        self._timer = asyncio.get_running_loop().call_later(keepalive_s, self._look, keepalive_s)


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

    def end(self, last_event: bytes) -> None:
        """Send the choice's last event."""
        self._stream.send(last_event if self._began else self._first(last_event))

    def _first(self, event: bytes) -> bytes:
        self._began = True
        return self._format.first_event(self._index) + event
