"""The receiver's end: accepts connections, checks chunks, and hands them to the worker's BlockSink."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from tandem.v1 import transfer_pb2 as pb
from tandem_common.errors import InvalidRequest, TandemError
from tandem_common.logs import get_logger

from tandem_worker.transports.api import BlockSink, Source
from tandem_worker.transports.checksum import checksum
from tandem_worker.transports.framing import FramingError, frame, read_message

_log = get_logger("transports")

MAX_CONNECTIONS = 128
# A sender says hello at once, and a payload keeps coming once it has begun.
HELLO_TIMEOUT_S = 5.0
PAYLOAD_TIMEOUT_S = 30.0
# Senders drop idle connections earlier than this, so that it only meets those that vanished.
IDLE_TIMEOUT_S = 120.0


class Payloads(Protocol):
    """Where the payloads of one connection lie."""

    async def receive(self, header: pb.ChunkHeader) -> memoryview:
        """The payload of an admitted chunk; InvalidRequest or FramingError when it cannot be had."""
        ...

    async def skip(self, header: pb.ChunkHeader) -> None:
        """The chunk was refused: get past its payload."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


Introduce = Callable[[socket.socket, int], Awaitable[tuple[pb.TransferHello, Payloads]]]


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
        payloads: Payloads | None = None
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                hello, payloads = await self._introduce(sock, self._sink.max_payload_bytes)
            source = Source(worker_id=hello.source_worker_id, epoch=hello.source_epoch)
            while True:
                async with asyncio.timeout(IDLE_TIMEOUT_S):
                    header = await read_message(sock, pb.ChunkHeader)
                answer = await self._take(source, header, payloads)
                async with asyncio.timeout(PAYLOAD_TIMEOUT_S):
                    await asyncio.get_running_loop().sock_sendall(sock, frame(answer))
        except FramingError as error:
            _log.warning("dropped a connection for blocks", error=str(error))
        except (OSError, TimeoutError):
            pass  # the sender left, or stopped sending: it notices and tries elsewhere
        except Exception:  # noqa: BLE001 - one connection's trouble is not the others'
            _log.exception("a connection for blocks failed")
        finally:
            if payloads is not None:
                payloads.close()
            with contextlib.suppress(OSError):
                sock.close()

    async def _take(self, source: Source, header: pb.ChunkHeader, payloads: Payloads) -> pb.ChunkAck:
        """Check and store one chunk; whatever is wrong with it is in the answer."""
        started_s = time.monotonic()
        try:
            if header.payload_bytes > self._sink.max_payload_bytes:
                raise FramingError(f"a chunk of {header.payload_bytes} bytes is too large")
            try:
                self._sink.admit(source, header)
            except TandemError:
                async with asyncio.timeout(PAYLOAD_TIMEOUT_S):
                    await payloads.skip(header)
                raise
            async with asyncio.timeout(PAYLOAD_TIMEOUT_S):
                payload = await payloads.receive(header)
            if await checksum(payload) != header.checksum:
                raise InvalidRequest("the checksum of the blocks is wrong")
            await self._sink.write(source, header, payload, 1000 * (time.monotonic() - started_s))
        except TandemError as error:
            _log.warning("refused blocks", source=source.worker_id, code=error.code.name, error=error.message)
            return pb.ChunkAck(code=error.code.value[0], message=error.message)
        return pb.ChunkAck()
