"""Whether the event loop keeps up: the part of its time in which its thread computes or waits for a core.

A loop that never idles answers everything later and later. Then tokens that come in one after the other are better
handed on together: see `sessions`. That takes the pressure away, so that the loop would seem to keep up and fall behind
again, many times a second; whether merging is still needed is asked of what the loop would have done without.
"""

from __future__ import annotations

from dataclasses import dataclass

# Above the first it is behind, until it would be below the second without merging.
_BEHIND = 0.92
_IN_TIME = 0.75
# What handing on one row of a message costs, until that was measured; and how fast an old measurement is doubted.
_ROW_S = 10e-6
_MIN_ROWS = 100  # to measure it by
_DOUBT = 1.01


@dataclass(frozen=True, slots=True)
class ThreadTime:
    """Seconds that a thread has computed, and waited for a core where that is known."""

    computed_s: float
    waited_s: float = 0.0

    @property
    def used_s(self) -> float:
        """Both."""
        return self.computed_s + self.waited_s

    def __sub__(self, earlier: ThreadTime) -> ThreadTime:
        """What came since."""
        return ThreadTime(self.computed_s - earlier.computed_s, self.waited_s - earlier.waited_s)


class LoopPressure:
    """Pure: what the thread used is an argument. Sessions count here what they do."""

    def __init__(self) -> None:
        self.behind = False
        self.num_handed_on = 0  # rows: a stream's tokens in one message, or in several that were merged
        self.num_merged = 0  # rows that became part of another
        self._row_s = _ROW_S

    def observe(self, used: ThreadTime, elapsed_s: float) -> None:
        """What the thread used in the last `elapsed_s`; the counts begin anew."""
        if self.behind:
            self.behind = used.used_s + self.num_merged * self._row_s > elapsed_s * _IN_TIME
        else:
            if self.num_handed_on >= _MIN_ROWS:
                # The least of the last seconds: in other intervals the loop had more to do than that.
                self._row_s = min(self._row_s * _DOUBT, used.computed_s / self.num_handed_on)
            self.behind = used.used_s > elapsed_s * _BEHIND
        self.num_handed_on = self.num_merged = 0
