"""Moments at which loops of one process wake together, instead of each at its own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial


class Ticks:
    """Multiples of any interval from a beginning of its own, so that the processes of a machine wake in turn.

    Whoever waits for the same moment is woken in the same turn of the event loop: timers of their own would be
    milliseconds apart.
    """

    def __init__(self) -> None:
        self._beginning_s = random.random()
        self._due: dict[int, dict[Callable[[], object], None]] = {}

    def call(self, interval_s: float, callback: Callable[[], object]) -> None:
        """Call at the next tick that is at least half an interval away; what is called then already, is called once."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        number = round((now_s - self._beginning_s) / interval_s) + 1
        due_s = self._beginning_s + number * interval_s
        key = round(1000 * due_s)
        callbacks = self._due.get(key)
        if callbacks is None:
            callbacks = self._due[key] = {}
            loop.call_at(due_s, self._ring, key)
        callbacks[callback] = None

    async def rest(self, interval_s: float) -> None:
        """Return at the next tick that is at least half an interval away."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.call(interval_s, partial(_wake, woken))
        await woken

    def _ring(self, key: int) -> None:
        for callback in self._due.pop(key):
            callback()


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
