"""Virtual time: a queue of things to do, done in order of their time."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class EventLoop:
    """Runs callbacks at virtual times; equal times run in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._num_asked = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, time_s: float, callback: Callable[[], None]) -> None:
        """Run it at this time; a time that is past is now."""
        self._num_asked += 1
        heapq.heappush(self._queue, (max(time_s, self.now_s), self._num_asked, callback))

    def after(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Run it when this much time has passed."""
        self.at(self.now_s + delay_s, callback)

    def every(self, interval_s: float, callback: Callable[[], None], first_s: float = 0.0) -> None:
        """Run it at `first_s`, and again and again after."""

        def again() -> None:
            callback()
            self.after(interval_s, again)

        self.at(first_s, again)

    def run(self, is_over: Callable[[], bool], limit_s: float) -> None:
        """Run until `is_over`, nothing is left, or `limit_s` is reached."""
        while self._queue and not is_over():
            time_s, _, callback = heapq.heappop(self._queue)
            if time_s > limit_s:
                self.now_s = limit_s
                return
            self.now_s = time_s
            callback()
