"""The interface of a transport: a sender ships chunks over a Connection, a receiver hands them to a BlockSink."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
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


class Lend(Protocol):
    """Lends the payload of a chunk; may be called again when that is shipped again over another connection."""

    def __call__(self, *, shared: bool) -> AbstractAsyncContextManager[Sequence[memoryview]]:
        """All of it, for as long as it takes to ship it; `shared`: in the memory that is shared with the receiver."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class OutgoingChunk:
    """Some blocks to be shipped, `header.payload_bytes` in all."""

    header: pb.ChunkHeader
    lend: Lend


class Connection(Protocol):
    """The sender's end of one connection to one worker; handoffs that share it take turns."""

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

        Raises the TandemError that the receiver answered with, what `lend` raised, or TransportBroken. Cancelling is
        safe at any time: a chunk that has begun is finished in the background and its answer dropped.
        """
        ...

    async def close(self) -> None:
        """Drop it; chunks in flight raise TransportBroken. Idempotent."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """Where the payload of one chunk goes."""

    views: Sequence[memoryview]
    is_wanted: Callable[[], bool]  # any thread may ask: once false, the rest may be thrown away


class BlockSink(Protocol):
    """What a receiver does with chunks."""

    @property
    def max_payload_bytes(self) -> int:
        """No chunk may be larger."""
        ...

    def room(self, source: Source, header: pb.ChunkHeader) -> AbstractAsyncContextManager[Room | None]:
        """Check everything that can be checked before the payload is read, and make room for it.

        The payload counts when the block of code ends without an exception. None when all of it is there already.
        Raises a TandemError to refuse the chunk, at the beginning or at the end.
        """
        ...
