"""Windows of shared memory: blocks are copied to one when what they lie in cannot be shared with another process.

That is a GPU's memory, or a pool that lies in memory of the process's own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tandem_engine.pool_memory import PoolMemory

# Two handoffs to each of two workers, say; a fifth waits for a window.
NUM_WINDOWS = 4
# Enough that what surrounds a chunk costs little beside copying it, and all windows are soon met again.
WINDOW_BYTES = 16 << 20


class StagingWindows:
    """A few windows, lent in turn to whoever has waited longest. For the event loop."""

    def __init__(self, block_bytes: int) -> None:
        """Each holds as many blocks as fit, at least one. OSError where no memory can be shared."""
        self.window_bytes = max(1, WINDOW_BYTES // block_bytes) * block_bytes
        self.memory = PoolMemory(NUM_WINDOWS * self.window_bytes)
        # The latest one first: its pages exist.
        self._free = asyncio.LifoQueue[memoryview]()
        for start in range(0, NUM_WINDOWS * self.window_bytes, self.window_bytes):
            self._free.put_nowait(self.memory.view[start : start + self.window_bytes])

    @contextlib.asynccontextmanager
    async def window(self, num_bytes: int) -> AsyncIterator[memoryview]:
        """The first `num_bytes` of one, waiting until one is free; ValueError when none is so large."""
        if num_bytes > self.window_bytes:
            raise ValueError(f"a window has {self.window_bytes} bytes; {num_bytes} are too many")
        window = await self._free.get()
        try:
            yield window[:num_bytes]
        finally:
            self._free.put_nowait(window)
