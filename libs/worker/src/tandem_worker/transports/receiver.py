"""The receiver's end: accepts connections, checks chunks, and hands them to the worker's BlockSink."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable

from tandem.v1 import transfer_pb2 as pb
from tandem_common.errors import TandemError
from tandem_common.logs import get_logger

from tandem_worker.transports.api import BlockSink, Source
from tandem_worker.transports.blocking import SocketThread
from tandem_worker.transports.framing import FramingError, frame, read_message
from tandem_worker.transports.incoming import IncomingPayload

_log = get_logger("transports")

MAX_CONNECTIONS = 128
# A sender says hello at once, and a payload keeps coming once it has begun.
HELLO_TIMEOUT_S = 5.0
PAYLOAD_TIMEOUT_S = 30.0
# Senders drop idle connections earlier than this, so that it only meets those that vanished.
IDLE_TIMEOUT_S = 120.0


Introduce = Callable[[socket.socket, int], Awaitable[tuple[pb.TransferHello, IncomingPayload]]]


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
        thread = SocketThread(sock, f"kv-{self.kind}-receiver")
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                hello, payload = await self._introduce(sock, self._sink.max_payload_bytes)
            source = Source(worker_id=hello.source_worker_id, epoch=hello.source_epoch)
            while True:
                async with asyncio.timeout(IDLE_TIMEOUT_S):
                    header = await read_message(sock, pb.ChunkHeader)
                async with asyncio.timeout(PAYLOAD_TIMEOUT_S):
                    answer = await self._take(source, header, payload, thread, sock)
                    await asyncio.get_running_loop().sock_sendall(sock, frame(answer))
        except FramingError as error:
            _log.warning("dropped a connection for blocks", error=str(error))
        except (OSError, TimeoutError):
            pass  # the sender left, or stopped sending: it notices and tries elsewhere
        except Exception:  # noqa: BLE001 - one connection's trouble is not the others'
            _log.exception("a connection for blocks failed")
        finally:
            if payload is not None:
                payload.close()
            with contextlib.suppress(OSError):
                thread.close()

    async def _take(
        self,
        source: Source,
        header: pb.ChunkHeader,
        payload: IncomingPayload,
        thread: SocketThread,
        sock: socket.socket,
    ) -> pb.ChunkAck:
        """Check and store one chunk; whatever is wrong with it is in the answer."""
        if header.payload_bytes > self._sink.max_payload_bytes:
            raise FramingError(f"a chunk of {header.payload_bytes} bytes is too large")
        payload.begin(header.payload_bytes)
        answer = pb.ChunkAck()
        try:
            async with self._sink.room(source, header) as room:
                if room is not None:
                    await _run(thread, sock, lambda: payload.fill(room))
        except TandemError as error:
            _log.warning("refused blocks", source=source.worker_id, code=error.code.name, error=error.message)
            answer = pb.ChunkAck(code=error.code.value[0], message=error.message)
        if payload.num_left:
            await _run(thread, sock, payload.skip)
        return answer


async def _run(thread: SocketThread, sock: socket.socket, function: Callable[[], None]) -> None:
    """The thread has the socket to itself meanwhile, and waits on it."""
    os.set_blocking(sock.fileno(), True)
    try:
        await thread.run(function)
    finally:
        os.set_blocking(sock.fileno(), False)
