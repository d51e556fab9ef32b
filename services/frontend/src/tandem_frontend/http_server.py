"""aiohttp's server behind a guard that bounds connections and the time that headers may take.

aiohttp itself waits for ever for the rest of a header.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import cast

from aiohttp import web
from tandem_common.config import ConfigError

KEEPALIVE_S = 75.0


def _refusal(status: str, message: str, kind: str) -> bytes:
    """A whole response, in OpenAI's shape, for clients that never get as far as a handler."""
    body = b'{"error":{"message":"%b","type":"%b","param":null,"code":null}}' % (
        message.encode(),
        kind.encode(),
    )
    return (
        b"HTTP/1.1 %b\r\nconnection: close\r\nretry-after: 1\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (status.encode(), len(body), body)
    )


_TIMED_OUT = _refusal("408 Request Timeout", "the headers took too long", "timeout_error")
_FULL = _refusal("503 Service Unavailable", "too many connections", "service_unavailable_error")


class ConnectionGuard(asyncio.Protocol):
    """Stands between one connection's transport and aiohttp's protocol."""

    def __init__(
        self, inner: asyncio.Protocol, header_timeout_s: float, admit: Callable[[ConnectionGuard], bool]
    ) -> None:
        """`admit` says whether there is room for one more connection."""
        self._inner = inner
        self._header_timeout_s = header_timeout_s
        self._admit = admit
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._handling = False
        self._admitted = False
        self.on_lost: Callable[[ConnectionGuard], None] | None = None

    def request_began(self) -> None:
        """The headers are complete."""
        self._handling = True
        self._disarm()

    def request_ended(self) -> None:
        """The next byte begins the next request; idle connections are aiohttp's business."""
        self._handling = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Refuse, or pass on and begin to wait for headers."""
        # uvloop's transports do not inherit from asyncio's.
        self._transport = transport = cast("asyncio.Transport", transport)
        if not self._admit(self):
            transport.write(_FULL)
            transport.close()
            return
        self._admitted = True
        self._arm()
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Pass on."""
        if self._admitted:
            if not self._handling and self._timer is None:
                self._arm()
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass on."""
        return self._inner.eof_received() if self._admitted else None

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on."""
        self._disarm()
        if self._admitted:
            if self.on_lost is not None:
                self.on_lost(self)
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass on."""
        if self._admitted:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass on."""
        if self._admitted:
            self._inner.resume_writing()

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._header_timeout_s, self._give_up)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        assert self._transport is not None
        self._transport.write(_TIMED_OUT)
        self._transport.close()


class HttpServer:
    """Serves an application on one port."""

    def __init__(self, app: web.Application, *, header_timeout_s: float, max_connections: int) -> None:
        self._runner = web.AppRunner(
            app,
            handle_signals=False,
            access_log=None,
            # A client that leaves cancels its handler, and that stops the workers.
            handler_cancellation=True,
            # A compressed body could unpack to anything.
            auto_decompress=False,
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=1.0,
            shutdown_timeout=1.0,
        )
        self._header_timeout_s = header_timeout_s
        self._max_connections = max_connections
        self._guards: set[ConnectionGuard] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int, *, shared: bool = False) -> int:
        """Listen (port 0: any free one); returns the port. ConfigError when it is taken.

        With `shared` other processes that say so too may listen on the same port.
        """
        await self._runner.setup()
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._guarded, host, port, backlog=1024, reuse_port=shared or None
            )
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"http_port = {port}: cannot listen on {host}:{port} ({error.strerror}); is another program using "
                "it? Choose another, or 0 for any"
            ) from None
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening, end what is left, close all connections."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()
        if self._server is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._server.wait_closed()

    def _guarded(self) -> ConnectionGuard:
        server = self._runner.server
        assert server is not None
        guard = ConnectionGuard(server(), self._header_timeout_s, self._admit)
        guard.on_lost = self._guards.discard
        return guard

    def _admit(self, guard: ConnectionGuard) -> bool:
        if len(self._guards) >= self._max_connections:
            return False
        self._guards.add(guard)
        return True
