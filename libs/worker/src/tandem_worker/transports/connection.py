"""The sender's end of a connection, the same for both transports but for how payloads are sent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from tandem.v1 import transfer_pb2 as pb
from tandem_common.errors import error_for_code

from tandem_worker.transports.api import OutgoingChunk, TransportBroken


class Outlet(Protocol):
    """How payloads leave; owns the socket."""

    async def exchange(self, header: pb.ChunkHeader, views: Sequence[memoryview]) -> pb.ChunkAck:
        """Send a chunk and wait for the answer; OSError when the peer is gone.

        When it ends, however it ends, nothing here reads the views any more.
        """
        ...

    def shut_down(self) -> None:
        """Make an exchange fail that is under way."""
        ...

    def close(self) -> None:
        """Give back everything; nothing may be under way."""
        ...


class SenderConnection:
    """Ships one chunk at a time, from the header to the answer."""

    def __init__(self, kind: str, max_payload_bytes: int, outlet: Outlet) -> None:
        """Takes over the outlet of a connection that has said hello."""
        self._kind = kind
        self._max_payload_bytes = max_payload_bytes
        self._outlet = outlet
        self._turn = asyncio.Lock()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._closed = False
        self._released = False

    @property
    def kind(self) -> str:
        """Either "shm" or "tcp"."""
        return self._kind

    @property
    def closed(self) -> bool:
        """Whether it is of no use any more."""
        return self._closed

    @property
    def num_in_flight(self) -> int:
        """Chunks that are being shipped or wait for their turn."""
        return len(self._in_flight)

    async def ship(self, chunk: OutgoingChunk, timeout_s: float) -> None:
        """See `Connection.ship`."""
        if chunk.header.payload_bytes > self._max_payload_bytes:
            raise ValueError(
                f"a chunk of {chunk.header.payload_bytes} bytes; at most {self._max_payload_bytes} are allowed"
            )
        # A chunk that has begun is finished: the shipper may be cancelled, the stream must not be torn.
        task = asyncio.create_task(self._ship(chunk, timeout_s), name=f"kv-{self._kind}-chunk")
        self._in_flight.add(task)
        task.add_done_callback(self._landed)
        await asyncio.shield(task)

    async def close(self) -> None:
        """See `Connection.close`."""
        self._closed = True
        self._outlet.shut_down()
        await asyncio.gather(*self._in_flight, return_exceptions=True)
        if not self._released:
            self._released = True
            self._outlet.close()

    async def _ship(self, chunk: OutgoingChunk, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s), self._turn:
                if self._closed:
                    raise TransportBroken("the connection is closed")
                async with chunk.lend(shared=self._kind == "shm") as views:
                    answer = await self._answer(chunk.header, views)
        except TimeoutError:
            self._closed = True
            raise TransportBroken(f"no answer within {timeout_s:g} s") from None
        except OSError as error:
            raise TransportBroken(f"sending failed ({error.strerror or error})") from None
        if answer.code != 0:
            raise error_for_code(answer.code, answer.message)

    async def _answer(self, header: pb.ChunkHeader, views: Sequence[memoryview]) -> pb.ChunkAck:
        try:
            return await self._outlet.exchange(header, views)
        except BaseException:
            self._closed = True  # what the peer has seen of the chunk is not known
            self._outlet.shut_down()  # nor is it to read on in what is lent to others next
            raise

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved: the shipper may have been cancelled
