"""Lanes: the messages of a long-lived gRPC stream over a socket of their own.

Measured here, a message over grpc.aio costs its two ends about 280 µs of CPU, most of it for handing it from thread to
thread; over a plain socket on the event loop 125 µs. The gRPC stream stays what it was: the contract, the way to open
and to end, the status, and what notices a dead peer. Only its messages take the lane:

1. The server's initial metadata offer a lane: a port, and a token that is good for one connection.
2. The client connects to that port on the host that it called anyway, sends the token, and gets it back. If that
   fails, everything goes over gRPC.
3. From then on each message, in both directions, is its length (4 bytes, little-endian) and its bytes. Whatever becomes
   of the socket ends the stream, and the end of the stream closes the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterable
from typing import Any, cast

import grpc

OFFER_KEY = "x-tandem-lane"
MAX_MESSAGE_BYTES = 32 << 20
CONNECT_TIMEOUT_S = 1.0
_LAST_WORDS_S = 0.5
# Beyond this a writer should wait: what waits with it can be merged, what waits here cannot.
_HIGH_WATER_BYTES = 64 << 10
_TOKEN_BYTES = 16
_TOKEN_TIMEOUT_S = 5.0
_MAX_STRANGERS = 256  # connections that have not shown their token
_LENGTH_BYTES = 4

OnMessage = Callable[[bytes], None]


class Lane(asyncio.Protocol):
    """One end of a lane."""

    def __init__(
        self,
        on_message: OnMessage,
        on_lost: Callable[[], object],
        on_room: Callable[[], object] | None = None,
    ) -> None:
        """All are called from the event loop and must not raise; `on_room` when a full lane has room again."""
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_room = on_room
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._closed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    @property
    def is_open(self) -> bool:
        """Whether messages can take it."""
        return self._transport is not None

    @property
    def is_full(self) -> bool:
        """Whether the peer reads too slowly for more."""
        return not self._room.is_set()

    async def room(self) -> None:
        """Wait while it is full."""
        await self._room.wait()

    def write(self, message: bytes) -> None:
        """Send a message, full or not; dropped when the lane is closed, which its owner is told."""
        if self._transport is not None:
            self._transport.write(len(message).to_bytes(_LENGTH_BYTES, "little") + message)

    def close(self) -> None:
        """Close, after what was written if the peer takes it soon; nothing more is called. Idempotent."""
        self._on_message, self._on_lost, self._on_room = _ignore, _nothing, None
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()
            asyncio.get_running_loop().call_later(_LAST_WORDS_S, transport.abort)

    async def ended(self) -> None:
        """Return when the peer has closed it, all of its messages were handed on, or it takes too long to do so."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                if self._transport is not None:
                    await self._closed.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(_HIGH_WATER_BYTES)

    def data_received(self, data: bytes) -> None:
        """Cut it into messages."""
        data = self._rest + data if self._rest else data
        start, size = 0, len(data)
        while size - start >= _LENGTH_BYTES:
            begin = start + _LENGTH_BYTES
            end = begin + int.from_bytes(data[start:begin], "little")
            if end - begin > MAX_MESSAGE_BYTES:
                self._rest = b""
                if self._transport is not None:
                    self._transport.abort()
                return
            if end > size:
                break
            start = end
            self._on_message(data[begin:end])
        self._rest = data[start:]

    def connection_lost(self, exc: Exception | None) -> None:
        """The stream is to end."""
        self._transport = None
        self._closed.set()
        self._room.set()
        self._on_lost()

    def pause_writing(self) -> None:
        """The peer reads too slowly."""
        self._room.clear()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._room.set()
        if self._on_room is not None:
            self._on_room()


class LaneServer:
    """Listens when the first lane is offered. One per servicer."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._server: asyncio.Server | None = None
        self._starting = asyncio.Lock()
        self._offered: dict[bytes, Lane] = {}
        self._num_strangers = 0

    async def offer(self, lane: Lane) -> tuple[tuple[str, str], ...]:
        """Initial metadata that offer `lane` to the client; none when no port can be had."""
        async with self._starting:
            if self._server is None:
                try:
                    self._server = await asyncio.get_running_loop().create_server(
                        lambda: _Stranger(self), self._host, 0
                    )
                except OSError:
                    return ()
        token = secrets.token_bytes(_TOKEN_BYTES)
        self._offered[token] = lane
        port = self._server.sockets[0].getsockname()[1]
        return ((OFFER_KEY, f"{port}/{token.hex()}"),)

    def withdraw(self, lane: Lane) -> None:
        """The stream has ended."""
        for token in [token for token, offered in self._offered.items() if offered is lane]:
            del self._offered[token]
        lane.close()

    async def close(self) -> None:
        """Listen no more; the next offer begins anew."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await server.wait_closed()

    def take(self, token: bytes) -> Lane | None:
        """The lane that was offered with this token, which is good for nothing from now on."""
        return self._offered.pop(token, None)

    def admit(self) -> bool:
        """Whether there is room for one more connection without a token."""
        if self._num_strangers >= _MAX_STRANGERS:
            return False
        self._num_strangers += 1
        return True

    def left(self) -> None:
        """One of them has shown a token, or gone."""
        self._num_strangers -= 1


class _Stranger(asyncio.Protocol):
    """A connection until it has shown its token."""

    def __init__(self, server: LaneServer) -> None:
        self._lanes = server
        self._seen = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._lanes.admit():
            self._timer = asyncio.get_running_loop().call_later(_TOKEN_TIMEOUT_S, self._transport.abort)
        else:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if len(self._seen) < _TOKEN_BYTES or self._timer is None:
            return
        self._end()
        lane = self._lanes.take(self._seen[:_TOKEN_BYTES])
        if lane is None:
            self._transport.abort()
            return
        self._transport.write(self._seen[:_TOKEN_BYTES])
        self._transport.set_protocol(lane)
        lane.connection_made(self._transport)
        if len(self._seen) > _TOKEN_BYTES:
            lane.data_received(self._seen[_TOKEN_BYTES:])

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._lanes.left()


async def take_lane(lane: Lane, address: str, call: grpc.aio.Call) -> None:
    """Open `lane` if the server of `call` offers one soon: one that says nothing does without."""
    metadata = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            metadata = await call.initial_metadata()
    await connect_lane(lane, address, metadata)


async def connect_lane(lane: Lane, address: str, initial_metadata: Iterable[tuple[str, Any]] | None) -> None:
    """Open `lane` as the server at `address` (host:port) offers; it stays closed when there is no offer or no way."""
    offer = next((str(value) for key, value in initial_metadata or () if key == OFFER_KEY), "")
    host, _, rest = address.rpartition(":")
    port, _, token = offer.partition("/")
    if not (
        host
        and rest.isdigit()
        and port.isdigit()
        and 0 < int(port) < 65536
        and len(token) == 2 * _TOKEN_BYTES
    ):
        return
    loop = asyncio.get_running_loop()
    is_in: asyncio.Future[None] = loop.create_future()
    transport: asyncio.Transport | None = None
    try:
        secret = bytes.fromhex(token)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            transport, _ = await loop.create_connection(
                lambda: _Guest(lane, secret, is_in), host.strip("[]"), int(port)
            )
            await is_in
    except (OSError, TimeoutError, ValueError):
        if transport is not None:
            transport.abort()


class _Guest(asyncio.Protocol):
    """The client's connection until its token came back."""

    def __init__(self, lane: Lane, token: bytes, is_in: asyncio.Future[None]) -> None:
        self._lane = lane
        self._token = token
        self._is_in = is_in
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._token)

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if len(self._seen) < _TOKEN_BYTES:
            return
        if self._seen[:_TOKEN_BYTES] != self._token or self._is_in.done():
            self._transport.abort()
            return
        self._transport.set_protocol(self._lane)
        self._lane.connection_made(self._transport)
        self._is_in.set_result(None)
        if len(self._seen) > _TOKEN_BYTES:
            self._lane.data_received(self._seen[_TOKEN_BYTES:])

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._is_in.done():
            self._is_in.set_exception(ConnectionError("the server does not know this lane"))


def _ignore(message: bytes) -> None:
    pass


def _nothing() -> None:
    pass
