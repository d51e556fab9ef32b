"""Requests that arrive together take turns, so that they do not hold up the streams of others.

What comes in one turn of the event loop is worked off before the next one reads from sockets again: thirty requests
would be ten milliseconds in which no token goes out. Nor is it one request per turn: what is sent on together costs
the processes behind it less.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

# Of one turn; a request takes about 0.3 ms.
BUDGET_S = 0.0015


class Turns:
    """Work for about `budget_s` in each turn of the event loop, first come, first served."""

    def __init__(self, budget_s: float = BUDGET_S) -> None:
        self._budget_s = budget_s
        self._left_s = budget_s  # of this turn
        self._mean_s = 0.0  # of one piece of work, lately
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_counting = False  # `_next` is called in the next turn

    async def mine(self) -> None:
        """Return at once while there is time left in this turn, else in a later one. `work` must follow at once."""
        loop = asyncio.get_running_loop()
        if not self._is_counting:
            self._is_counting = True
            loop.call_soon(self._next)
        if self._left_s > 0.0 and not self._waiting:
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    @contextmanager
    def work(self) -> Iterator[None]:
        """Around what is done in this turn, without waiting for anything."""
        began_s = time.perf_counter()
        try:
            yield
        finally:
            took_s = time.perf_counter() - began_s
            self._left_s -= took_s
            self._mean_s += (took_s - self._mean_s) / 8

    def _next(self) -> None:
        """A new turn."""
        self._left_s = self._budget_s
        num_called = 1 + int(self._budget_s / self._mean_s) if self._mean_s > 0.0 else 1
        self._is_counting = bool(self._waiting)
        if self._is_counting:
            asyncio.get_running_loop().call_soon(self._next)
        while self._waiting and num_called > 0:
            turn = self._waiting.popleft()
            if not turn.done():  # its request may have been cancelled meanwhile
                turn.set_result(None)
                num_called -= 1
