"""Listens, and bounds how many connections there are and how long each may take."""

from __future__ import annotations

import asyncio
import contextlib
import time

from tandem_common.config import ConfigError

from tandem_frontend.http_connection import Application, ConnectionLimits, HttpConnection

# Connections are looked at so often, or four times within the shortest limit.
_LOOK_S = 1.0


class HttpServer:
    """Serves an application on one port."""

    def __init__(self, application: Application, limits: ConnectionLimits, *, max_connections: int) -> None:
        self._application = application
        self._limits = limits
        self._max_connections = max_connections
        self._connections: set[HttpConnection] = set()
        self._server: asyncio.Server | None = None
        self._looking: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int, *, shared: bool = False) -> int:
        """Listen (port 0: any free one); returns the port. ConfigError when it is taken.

        With `shared` other processes that say so too may listen on the same port.
        """
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: HttpConnection(
                    self._application, self._limits, self._admit, self._connections.discard
                ),
                host,
                port,
                backlog=1024,
                reuse_port=shared or None,
            )
        except OSError as error:
            raise ConfigError(
                f"http_port = {port}: cannot listen on {host}:{port} ({error.strerror}); is another program using "
                "it? Choose another, or 0 for any"
            ) from None
        self._looking = asyncio.create_task(self._look(), name="http-connections")
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening, and end all connections with what is done for them."""
        if self._looking is not None:
            self._looking.cancel()
        if self._server is not None:
            self._server.close()
        await asyncio.gather(*(connection.stop() for connection in list(self._connections)))
        if self._server is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._server.wait_closed()

    def _admit(self, connection: HttpConnection) -> bool:
        if len(self._connections) >= self._max_connections:
            return False
        self._connections.add(connection)
        return True

    async def _look(self) -> None:
        shortest_s = min(self._limits.header_timeout_s, self._limits.body_timeout_s)
        while True:
            await asyncio.sleep(min(_LOOK_S, shortest_s / 4))
            now = time.monotonic()
            for connection in list(self._connections):
                connection.look(now)
