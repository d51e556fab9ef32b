"""Looks at the event loop now and then: how late it is, which everything on it waits for, and whether it keeps up."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tandem_frontend.histogram import StepHistogram
from tandem_frontend.loop_pressure import LoopPressure, ThreadTime

_INTERVAL_S = 0.05
# A loop with little to do is looked at more rarely, since a look wakes it; a stall is seen shorter by what is left of
# the interval.
_IDLE_INTERVAL_S = 0.1
_IDLE = 0.1
_SCHEDSTAT = Path("/proc/thread-self/schedstat")  # Linux: ns computed, ns waited for a core, slices


async def probe_loop(lag_s: StepHistogram, pressure: LoopPressure) -> None:
    """Observe this event loop and its thread; until cancelled."""
    total, at_s = _thread_time(), time.monotonic()
    interval_s = _INTERVAL_S
    while True:
        due_s = time.monotonic() + interval_s
        await asyncio.sleep(interval_s)
        before, before_s = total, at_s
        total, at_s = _thread_time(), time.monotonic()
        used = total - before
        lag_s.observe(max(0.0, at_s - due_s))
        pressure.observe(used, at_s - before_s)
        is_idle = used.used_s < _IDLE * (at_s - before_s)
        interval_s = _IDLE_INTERVAL_S if is_idle else _INTERVAL_S


def _thread_time() -> ThreadTime:
    """Of this thread, since it began."""
    try:
        computed_ns, waited_ns, _ = _SCHEDSTAT.read_bytes().split()
    except (OSError, ValueError):
        return ThreadTime(time.thread_time())
    return ThreadTime(int(computed_ns) / 1e9, int(waited_ns) / 1e9)
