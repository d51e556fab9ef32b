"""What the engine made known, on its way from the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from tandem_engine.api import StepOutput
from tandem_engine.doorbell import Doorbell


class Outbox:
    """StepOutputs, in order, for one consumer. The engine puts, in a thread of its own or not, the event loop takes.

    Bounded by its producer, who computes no further step while it is `full`; `on_room` is called from the event loop
    once there is room again.
    """

    def __init__(self, capacity: int, on_room: Callable[[], None]) -> None:
        self._doorbell: Doorbell | None = None
        self._capacity = capacity
        self._on_room = on_room
        self._outputs: deque[StepOutput] = deque()
        self._take: Callable[[StepOutput], None] | None = None
        self._changed = asyncio.Event()
        self._was_full = False
        self._closed = False
        self._error: Exception | None = None

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Name the event loop that the consumer runs in; before the first `put` from another thread."""
        self._doorbell = Doorbell(loop, self.hand_over)

    def put(self, output: StepOutput) -> None:
        """Add one output. From where the engine runs; RuntimeError when the event loop is closed.

        Who puts from the event loop itself calls `hand_over` when it likes.
        """
        self._outputs.append(output)
        if self._doorbell is not None:
            self._doorbell.ring()

    def hand_over(self) -> None:
        """Have the consumer take what is there. Event loop only."""
        if self._take is None:
            self._changed.set()
            return
        try:
            while self._outputs and self._take is not None:
                self._take(self._next())
        except Exception as error:  # noqa: BLE001 - for the consumer, who waits in `deliver`
            self._take, self._closed, self._error = None, True, error
            self._changed.set()

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
            self.hand_over()
        if not self._closed:
            self._closed, self._error = True, error
            self._changed.set()
        if self._doorbell is not None:
            self._doorbell.close()
            self._doorbell = None

    async def deliver(self, take: Callable[[StepOutput], None]) -> None:
        """Have `take` called with each output as it comes, until closed; raises what it raises."""
        self._take = take
        try:
            self.hand_over()
            while not self._closed:
                self._changed.clear()
                await self._changed.wait()
        finally:
            self._take = None
        if self._error is not None:
            raise self._error

    async def outputs(self) -> AsyncIterator[StepOutput]:
        """The same one by one, for a consumer that is in no hurry."""
        while True:
            while self._outputs:
                yield self._next()
            if self._closed:
                if self._error is not None:
                    raise self._error
                return
            self._changed.clear()
            if not self._outputs and not self._closed:
                await self._changed.wait()

    def _next(self) -> StepOutput:
        output = self._outputs.popleft()
        if self._was_full and len(self._outputs) <= self._capacity // 2:
            self._was_full = False
            self._on_room()
        return output
