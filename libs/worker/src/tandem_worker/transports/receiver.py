"""The receiver's end: accepts connections, checks chunks, and hands them to the worker's BlockSink."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

from tandem.v1 import transfer_pb2 as pb
from tandem_common.errors import TandemError
from tandem_common.logs import get_logger

from tandem_worker.transports.api import BlockSink, Room, Source
from tandem_worker.transports.framing import FramingError

_log = get_logger("transports")

MAX_CONNECTIONS = 128
# A sender says hello at once, and a payload keeps coming once it has begun.
HELLO_TIMEOUT_S = 5.0
PAYLOAD_TIMEOUT_S = 30.0
# Senders drop idle connections earlier than this, so that it only meets those that vanished.
IDLE_TIMEOUT_S = 120.0


class IncomingPayload(Protocol):
    """The payloads of one connection, one after another."""

    async def header(self) -> pb.ChunkHeader:
        """Wait for the next one; PeerClosed when the sender is done, FramingError when it makes no sense."""
        ...

    async def fill(self, room: Room) -> None:
        """Bring all of the payload into the room.

        InvalidRequest when its checksum is wrong, PermissionDenied when nobody wants it any more, OSError when the
        connection is of no use. When it ends, however it ends, nothing writes to the room any more.
        """
        ...

    async def skip(self) -> None:
        """Get past whatever of the payload was not read."""
        ...

    async def answer(self, ack: pb.ChunkAck) -> None:
        """Tell the sender."""
        ...

    def close(self) -> None:
        """Give back everything, the socket too; nothing may be under way."""
        ...


Introduce = Callable[[socket.socket], Awaitable[tuple[pb.TransferHello, IncomingPayload]]]


class Receiver:
    """One listening socket. `introduce` reads the hello of a new connection and finds its payloads."""

    def __init__(
        self, listener: socket.socket, sink: BlockSink, introduce: Introduce, *, kind: str, address: str
    ) -> None:
        self.kind = kind
        self.address = address
        self._listener = listener
        self._sink = sink
        self._introduce = introduce
        self._connections: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Accept until cancelled; then drop all connections."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    sock, _ = await loop.sock_accept(self._listener)
                except OSError as error:  # out of descriptors, say: others may go, so try again
                    _log.warning("cannot accept a connection for blocks", error=error.strerror)
                    await asyncio.sleep(0.1)
                    continue
                sock.setblocking(False)
                if len(self._connections) >= MAX_CONNECTIONS:
                    sock.close()
                    continue
                task = asyncio.create_task(self._serve_connection(sock), name="kv-receiver")
                self._connections.add(task)
                task.add_done_callback(self._connections.discard)
        finally:
            connections = list(self._connections)
            for task in connections:
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)
            self._listener.close()

    async def _serve_connection(self, sock: socket.socket) -> None:
        payload: IncomingPayload | None = None
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                hello, payload = await self._introduce(sock)
            source = Source(worker_id=hello.source_worker_id, epoch=hello.source_epoch)
            while True:
                async with asyncio.timeout(IDLE_TIMEOUT_S):
                    header = await payload.header()
                async with asyncio.timeout(PAYLOAD_TIMEOUT_S):
                    await payload.answer(await self._take(source, header, payload))
        except FramingError as error:
            _log.warning("dropped a connection for blocks", error=str(error))
        except (OSError, TimeoutError):
            pass  # the sender left, or stopped sending: it notices and tries elsewhere
        except Exception:  # noqa: BLE001 - one connection's trouble is not the others'
            _log.exception("a connection for blocks failed")
        finally:
            if payload is not None:
                payload.close()
            sock.close()

    async def _take(self, source: Source, header: pb.ChunkHeader, payload: IncomingPayload) -> pb.ChunkAck:
        """Check and store one chunk; whatever is wrong with it is in the answer."""
        if header.payload_bytes > self._sink.max_payload_bytes:
            raise FramingError(f"a chunk of {header.payload_bytes} bytes is too large")
        answer = pb.ChunkAck()
        try:
            async with self._sink.room(source, header) as room:
                if room is not None:
                    await payload.fill(room)
        except TandemError as error:
            _log.warning("refused blocks", source=source.worker_id, code=error.code.name, error=error.message)
            answer = pb.ChunkAck(code=error.code.value[0], message=error.message)
        await payload.skip()
        return answer
