"""Whether the event loop keeps up: the part of its time in which its thread computes or waits for a core.

A loop that never idles answers everything later and later. Then tokens that come in one after the other are better
handed on together: see `sessions`.
"""

from __future__ import annotations

# Above the first it is behind, until it is below the second: merging itself takes pressure away.
_BEHIND = 0.92
_IN_TIME = 0.75


class LoopPressure:
    """Pure: what the thread used is an argument."""

    def __init__(self) -> None:
        self.behind = False

    def observe(self, used_s: float, elapsed_s: float) -> None:
        """In the last `elapsed_s` the thread computed or waited for a core for `used_s`."""
        self.behind = used_s > elapsed_s * (_IN_TIME if self.behind else _BEHIND)
