"""Writes to a gRPC stream what has gathered since the last write, as one message.

A write costs both sides far more than an entry does: what many requests have to say in one turn of the event loop, or
while a write is under way, travels together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Message = TypeVar("Message")


class BatchWriter(Generic[Message]):
    """Waits for `wake`, then writes until there is nothing more to `take`."""

    def __init__(self, take: Callable[[], Message | None]) -> None:
        """`take` gives everything that has gathered, or None."""
        self._take = take
        self._something = asyncio.Event()

    def wake(self) -> None:
        """Something has gathered; it is taken in a later turn of the event loop. Cheap, and may be called often."""
        self._something.set()

    async def run(self, write: Callable[[Message], Awaitable[object]]) -> None:
        """Write until cancelled, or until `take` or `write` raises."""
        while True:
            await self._something.wait()
            self._something.clear()
            while (message := self._take()) is not None:
                await write(message)
