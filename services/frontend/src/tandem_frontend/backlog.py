"""How much of a stream its client has not read yet, and since when."""

from __future__ import annotations

from collections import deque

# Bytes written within this time count as written at once.
_RESOLUTION_S = 0.25


class Backlog:
    """Bounded by bytes and by the age of the oldest unread byte. Pure: time and sizes are arguments."""

    def __init__(self, *, max_bytes: int, max_age_s: float) -> None:
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._num_written = 0
        self._marks: deque[tuple[int, float]] = deque()  # (written up to here, when the first of it was)
        # Whether nothing was left unread when last asked: then writes that leave nothing need not be told.
        self.is_empty = True

    def wrote(self, num_bytes: int, num_buffered: int, now: float) -> str | None:
        """After a write of `num_bytes`: `num_buffered` of all bytes are still unsent. Why to give up, if so."""
        self._num_written += num_bytes
        if num_buffered <= num_bytes:  # nothing old is left
            self._marks.clear()
        num_sent = self._num_written - num_buffered
        while self._marks and self._marks[0][0] <= num_sent:
            self._marks.popleft()
        self.is_empty = num_buffered == 0
        if num_buffered == 0:
            return None
        if self._marks and now - self._marks[-1][1] < _RESOLUTION_S:
            self._marks[-1] = (self._num_written, self._marks[-1][1])
        else:
            self._marks.append((self._num_written, now))
        if num_buffered > self._max_bytes:
            return f"{num_buffered} bytes unread"
        if now - self._marks[0][1] > self._max_age_s:
            return f"bytes unread for {now - self._marks[0][1]:.1f} s"
        return None
