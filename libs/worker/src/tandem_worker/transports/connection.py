"""The sender's end of a connection, the same for both transports but for where payloads lie."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from tandem.v1 import transfer_pb2 as pb
from tandem_common.errors import error_for_code

from tandem_worker.transports.api import OutgoingChunk, TransportBroken
from tandem_worker.transports.checksum import checksum
from tandem_worker.transports.framing import frame, read_message


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for the payload of one chunk in flight."""

    buffer: memoryview
    offset: int  # in the shared segment; 0 over TCP


class SlottedConnection:
    """Ships chunks in order, as many at once as there are slots; answers come back in the same order.

    `payload_follows` says whether payloads go over the socket (TCP) or lie in shared memory.
    """

    def __init__(
        self, sock: socket.socket, kind: str, slots: Sequence[Slot], *, payload_follows: bool
    ) -> None:
        self._sock = sock
        self._kind = kind
        self._payload_follows = payload_follows
        self._slots: asyncio.Queue[Slot] = asyncio.Queue()
        for slot in slots:
            self._slots.put_nowait(slot)
        self._slot_bytes = len(slots[0].buffer)
        self._sending = asyncio.Lock()
        self._unanswered: deque[asyncio.Future[pb.ChunkAck]] = deque()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()
        self._reader = asyncio.create_task(self._read_answers(), name=f"kv-{kind}-answers")

    @property
    def kind(self) -> str:
        """Either "shm" or "tcp"."""
        return self._kind

    @property
    def closed(self) -> bool:
        """Whether it is of no use any more."""
        return self._closed.is_set()

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight."""
        return not self._in_flight

    async def ship(self, chunk: OutgoingChunk, timeout_s: float) -> None:
        """See `Connection.ship`."""
        if chunk.header.payload_bytes > self._slot_bytes:
            raise ValueError(f"a chunk of {chunk.header.payload_bytes} bytes; a slot has {self._slot_bytes}")
        async with self._timeout(timeout_s):
            slot = await self._slots.get()
        if self.closed:
            self._slots.put_nowait(slot)
            raise TransportBroken("the connection is closed")
        # From here on the slot is in use by others (engine, kernel, peer): it is given back only by the task.
        task = asyncio.create_task(self._ship(chunk, slot, timeout_s), name=f"kv-{self._kind}-chunk")
        self._in_flight.add(task)
        task.add_done_callback(self._landed)
        await asyncio.shield(task)

    async def close(self) -> None:
        """See `Connection.close`."""
        self._break()
        tasks = [self._reader, *self._in_flight]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._sock.close()

    async def _ship(self, chunk: OutgoingChunk, slot: Slot, timeout_s: float) -> None:
        payload = slot.buffer[: chunk.header.payload_bytes]
        try:
            async with self._timeout(timeout_s):
                await chunk.fill(payload)
                header = pb.ChunkHeader()
                header.CopyFrom(chunk.header)
                header.checksum = await checksum(payload)
                header.segment_offset = slot.offset
                answer = await (await self._send(frame(header), payload))
        finally:
            self._slots.put_nowait(slot)
        if answer.code != 0:
            raise error_for_code(answer.code, answer.message)

    async def _send(self, header: bytes, payload: memoryview) -> asyncio.Future[pb.ChunkAck]:
        loop = asyncio.get_running_loop()
        async with self._sending:
            if self.closed:
                raise TransportBroken("the connection is closed")
            answer: asyncio.Future[pb.ChunkAck] = loop.create_future()
            self._unanswered.append(answer)
            try:
                await loop.sock_sendall(self._sock, header)
                if self._payload_follows:
                    await loop.sock_sendall(self._sock, payload)
            except OSError as error:
                self._break()
                raise TransportBroken(f"sending failed ({error.strerror})") from None
            return answer

    @contextlib.asynccontextmanager
    async def _timeout(self, timeout_s: float) -> AsyncIterator[None]:
        """A chunk that takes too long leaves the stream in an unknown state: that ends the connection."""
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError:
            self._break()
            raise TransportBroken(f"no answer within {timeout_s:g} s") from None

    async def _read_answers(self) -> None:
        try:
            while True:
                answer = await read_message(self._sock, pb.ChunkAck)
                if not self._unanswered:
                    break
                waiting = self._unanswered.popleft()
                if not waiting.done():
                    waiting.set_result(answer)
        except OSError:
            pass
        finally:
            self._break()

    def _break(self) -> None:
        """Nothing more can be shipped; whoever waits for an answer is told."""
        self._closed.set()
        while self._unanswered:
            waiting = self._unanswered.popleft()
            if not waiting.done():
                waiting.set_exception(TransportBroken("the connection broke"))
                waiting.exception()  # its waiter may have gone
        # Wakes both directions, and lets the peer see the end.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved: the shipper may have been cancelled
