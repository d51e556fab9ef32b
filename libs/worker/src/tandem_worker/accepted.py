"""Which requests a worker took on lately: routers drop their bookings for those that a beat lists."""

from __future__ import annotations

from collections import deque

MAX_LISTED = 1024


class AcceptedRequests:
    """Requests of the last `window_s` seconds. Pure: time is an argument."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._accepted: deque[tuple[float, str]] = deque(maxlen=MAX_LISTED)

    def add(self, request_id: str, now_s: float) -> None:
        """A request was taken on."""
        self._accepted.append((now_s, request_id))

    def recent(self, now_s: float) -> list[str]:
        """Those to be listed now, oldest first."""
        while self._accepted and self._accepted[0][0] < now_s - self._window_s:
            self._accepted.popleft()
        return [request_id for _, request_id in self._accepted]
