"""Which generations are open, and the door that closes when the frontend drains."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from tandem_common.errors import Unavailable

RETRY_AFTER_MS = 1000


class OpenRequests:
    """Counts what was admitted; after `drain` admits nothing more."""

    def __init__(self) -> None:
        self.draining = False
        self.num_open = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Around one request; Unavailable while draining."""
        if self.draining:
            raise Unavailable("this frontend is shutting down; try again", retry_after_ms=RETRY_AFTER_MS)
        self.num_open += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.num_open -= 1
            if self.num_open == 0:
                self._empty.set()

    async def drain(self, timeout_s: float) -> int:
        """Close the door and wait for those inside; returns how many are left when the time is up."""
        self.draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            pass
        return self.num_open
