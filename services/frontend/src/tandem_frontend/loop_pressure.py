"""Whether the event loop keeps up: the part of its time in which its thread computes or waits for a core.

A loop that never idles answers everything later and later. Then tokens that come in one after the other are better
handed on together: see `sessions`.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

_INTERVAL_S = 0.05
# Above the first it is behind, until it is below the second: merging itself takes pressure away.
_BEHIND = 0.92
_IN_TIME = 0.75
_SCHEDSTAT = Path("/proc/thread-self/schedstat")  # Linux: ns computed, ns waited for a core, slices


class LoopPressure:
    """Pure: what the thread used is an argument."""

    def __init__(self) -> None:
        self.behind = False

    def observe(self, used_s: float, elapsed_s: float) -> None:
        """In the last `elapsed_s` the thread computed or waited for a core for `used_s`."""
        self.behind = used_s > elapsed_s * (_IN_TIME if self.behind else _BEHIND)


async def measure_loop_pressure(pressure: LoopPressure) -> None:
    """Observe this event loop's thread; until cancelled."""
    used_s, at_s = _used_s(), time.monotonic()
    while True:
        await asyncio.sleep(_INTERVAL_S)
        before_used_s, before_s = used_s, at_s
        used_s, at_s = _used_s(), time.monotonic()
        pressure.observe(used_s - before_used_s, at_s - before_s)


def _used_s() -> float:
    """Seconds that this thread has computed, and waited for a core where that is known."""
    try:
        computed_ns, waited_ns, _ = _SCHEDSTAT.read_bytes().split()
    except (OSError, ValueError):
        return time.thread_time()
    return (int(computed_ns) + int(waited_ns)) / 1e9
