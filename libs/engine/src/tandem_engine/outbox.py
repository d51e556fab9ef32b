"""What the engine made known, on its way from the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from tandem_engine.api import StepOutput
from tandem_engine.doorbell import Doorbell


class Outbox:
    """StepOutputs, in order, for one consumer. The engine's thread puts, the event loop takes.

    Bounded by its producer, who computes no further step while it is `full`; `on_room` is called from the event loop
    once there is room again.
    """

    def __init__(self, capacity: int, on_room: Callable[[], None]) -> None:
        self._doorbell: Doorbell | None = None
        self._capacity = capacity
        self._on_room = on_room
        self._outputs: deque[StepOutput] = deque()
        self._changed = asyncio.Event()
        self._was_full = False
        self._closed = False
        self._error: Exception | None = None

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Name the event loop that the consumer runs in; before the first `put`."""
        self._doorbell = Doorbell(loop, self._changed.set)

    def put(self, output: StepOutput) -> None:
        """Hand over one output. From the engine's thread; RuntimeError when the event loop is closed."""
        assert self._doorbell is not None, "the outbox is not open"
        self._outputs.append(output)
        self._doorbell.ring()

    def is_full(self) -> bool:
        """Whether the consumer lags so far behind that no more should be computed. From the engine's thread."""
        if len(self._outputs) < self._capacity:
            return False
        self._was_full = True
        # Else the consumer may have emptied it before it could see the flag.
        return len(self._outputs) >= self._capacity

    def close(self, error: Exception | None = None) -> None:
        """No more is put; the consumer gets what is there, then the error if there is one. Event loop only."""
        if not self._closed:
            self._closed, self._error = True, error
            self._changed.set()
            if self._doorbell is not None:
                self._doorbell.close()

    async def outputs(self) -> AsyncIterator[StepOutput]:
        """Take outputs as they come, until closed."""
        while True:
            while self._outputs:
                output = self._outputs.popleft()
                if self._was_full and len(self._outputs) <= self._capacity // 2:
                    self._was_full = False
                    self._on_room()
                yield output
            if self._closed:
                if self._error is not None:
                    raise self._error
                return
            self._changed.clear()
            if not self._outputs and not self._closed:
                await self._changed.wait()
