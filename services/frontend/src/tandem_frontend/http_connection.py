"""One HTTP/1.1 connection: requests are answered one at a time and in order, also when they were sent ahead.

No timer is armed for a request: the server looks at its connections now and then and ends what takes too long.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

from tandem_frontend.http_messages import HttpRequest, HttpResponse
from tandem_frontend.http_reader import BadRequest, Phase, RequestReader

# After an answer in the middle of a request, what still comes is dropped for so long: closing at once would reset the
# connection, and the client might never see the answer.
_LINGER_S = 1.0


class Application(Protocol):
    """What answers requests."""

    def admit(self, request: HttpRequest) -> None:
        """Look at a head; may refuse it."""
        ...

    async def answer(self, request: HttpRequest) -> HttpResponse | None:
        """Answer a request; None when that was written to its transport already. Raises only when cancelled."""
        ...

    def refuse(self, status: int, message: str) -> HttpResponse:
        """The answer to what is no request."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionLimits:
    """What a client may take of time and memory."""

    header_timeout_s: float
    body_timeout_s: float
    max_body_bytes: int
    unread_timeout_s: float  # an answer that lies unread for so long ends the connection
    keepalive_s: float = 75.0


class HttpConnection(asyncio.Protocol):
    """See the module."""

    def __init__(
        self,
        application: Application,
        limits: ConnectionLimits,
        on_made: Callable[[HttpConnection], bool],
        on_lost: Callable[[HttpConnection], None],
    ) -> None:
        """`on_made` says whether there is room for it; `on_lost` is called once, also when there was none."""
        self._application = application
        self._limits = limits
        self._on_made = on_made
        self._on_lost = on_lost
        self._waiting: deque[HttpRequest] = deque()  # read ahead
        self._last: HttpResponse | None = None  # ends the connection, after those
        self._task: asyncio.Task[None] | None = None  # answers a request
        self._is_paused = False  # nothing is read
        self._is_ending = False  # nothing is answered
        self._phase = Phase.HEAD
        self._since = 0.0  # when the phase began, or the connection became idle
        self._unread_since: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a request, or say that there is no room."""
        # uvloop's transports do not inherit from asyncio's.
        self.transport = cast("asyncio.Transport", transport)
        # A write goes to the socket at once instead of at the end of this turn of the event loop.
        self.transport.set_write_buffer_limits(0)
        self._reader = RequestReader(self.transport, self._application.admit, self._limits.max_body_bytes)
        self._since = time.monotonic()
        if not self._on_made(self):
            self._is_ending = True
            self._write_last(self._application.refuse(503, "too many connections"))
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._is_ending or self._last is not None:
            return
        self._reader.is_free = self._task is None
        try:
            self._reader.feed(data)
        except BadRequest as error:
            self._last = error.response or self._application.refuse(error.status, error.message)
        self._waiting.extend(self._reader.take())
        if self._reader.phase is not self._phase:
            self._phase, self._since = self._reader.phase, time.monotonic()
        if self._task is None:
            self._go_on()
        elif self._waiting and not self._is_paused:
            self._is_paused = True
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop what is done for a client that has gone."""
        self._is_ending = True
        self._reader.close()
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
        self._on_lost(self)

    def look(self, now: float) -> None:
        """End what takes too long."""
        if self._task is not None:
            return
        if self.transport.get_write_buffer_size():
            if self._unread_since is None:
                self._unread_since = now
            if now - self._unread_since > self._limits.unread_timeout_s:
                self.transport.abort()
            return
        self._unread_since = None
        age_s = now - self._since
        if self._is_ending:
            if age_s > _LINGER_S:
                self.transport.abort()
        elif self._phase is Phase.HEAD:
            if age_s > self._limits.header_timeout_s:
                self._end_with(self._application.refuse(408, "the headers took too long"))
        elif self._phase is Phase.BODY:
            if age_s > self._limits.body_timeout_s:
                self._end_with(self._application.refuse(408, "the body took too long"))
        elif age_s > self._limits.keepalive_s:
            self.transport.close()

    async def stop(self) -> None:
        """End at once."""
        task = self._task
        self.transport.abort()
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _go_on(self) -> None:
        """Answer the next request, if there is one."""
        while self._waiting and not self._is_ending:
            request = self._waiting.popleft()
            if self._is_paused and not self._waiting:
                # Also so that the loss of the connection is noticed while the last one is answered.
                self._is_paused = False
                self.transport.resume_reading()
            if request.refusal is None:
                self._task = asyncio.get_running_loop().create_task(self._serve(request))
                return
            self.transport.write(request.refusal.encode(request))
            self._ended(request)
        if self._last is not None and not self._is_ending:
            self._end_with(self._last)

    async def _serve(self, request: HttpRequest) -> None:
        try:
            response = await self._application.answer(request)
            if response is not None and not self._is_ending:
                self.transport.write(response.encode(request))
        finally:
            self._task = None
            if not self._is_ending:
                self._ended(request)
                self._go_on()

    def _ended(self, request: HttpRequest) -> None:
        """An answer was written."""
        if request.closes:
            self._is_ending = True
            self.transport.close()
            return
        self._since = time.monotonic()

    def _end_with(self, response: HttpResponse) -> None:
        """The last answer, in the middle of a request."""
        self._is_ending, self._since = True, time.monotonic()
        self._reader.close()
        self._write_last(response)
        self.transport.write_eof()

    def _write_last(self, response: HttpResponse) -> None:
        nobodys = HttpRequest(self.transport, "", "", {})
        nobodys.closes = True
        self.transport.write(response.encode(nobodys))
