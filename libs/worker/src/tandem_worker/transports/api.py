"""The interface of a transport: a sender ships chunks over a Connection, a receiver hands them to a BlockSink."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from tandem.v1 import transfer_pb2 as pb


class TransportBroken(Exception):
    """The connection itself failed: nothing is known about chunks that were not acknowledged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Who ships, as it introduced itself; the tickets prove what it may do."""

    worker_id: str
    epoch: int


@dataclass(frozen=True, kw_only=True, slots=True)
class OutgoingChunk:
    """Some blocks to be shipped.

    `header` lacks checksum and offset. `fill` writes the payload into a buffer of `header.payload_bytes`; it may be
    called again when the chunk is shipped again over another connection.
    """

    header: pb.ChunkHeader
    fill: Callable[[memoryview], Awaitable[None]]


class Connection(Protocol):
    """The sender's end of one connection to one worker; may be shared by any number of handoffs."""

    @property
    def kind(self) -> str:
        """Either "shm" or "tcp"."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it is of no use any more."""
        ...

    async def ship(self, chunk: OutgoingChunk, timeout_s: float) -> None:
        """Return when the receiver has the blocks in its pool.

        Raises the TandemError that the receiver answered with, what `fill` raised, or TransportBroken. Cancelling is
        safe at any time: a chunk that has begun is finished in the background and its answer dropped.
        """
        ...

    async def close(self) -> None:
        """Drop it; chunks in flight raise TransportBroken. Idempotent."""
        ...


class BlockSink(Protocol):
    """What a receiver does with chunks. Both methods raise a TandemError to refuse one."""

    @property
    def max_payload_bytes(self) -> int:
        """No chunk may be larger."""
        ...

    def admit(self, source: Source, header: pb.ChunkHeader) -> None:
        """Check everything that can be checked before the payload is read."""
        ...

    async def write(
        self, source: Source, header: pb.ChunkHeader, payload: memoryview, receive_ms: float
    ) -> None:
        """Put an admitted chunk, whose checksum was right, into the pool; it took `receive_ms` to arrive."""
        ...
