"""Looks at the event loop now and then: how late it is, which everything on it waits for, and whether it keeps up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator

from tandem_frontend.histogram import StepHistogram
from tandem_frontend.loop_pressure import LoopPressure, ThreadTime

_INTERVAL_S = 0.05
# A loop with little to do is looked at more rarely, since a look wakes it; a stall is seen shorter by what is left of
# the interval.
_IDLE_INTERVAL_S = 0.1
_IDLE = 0.1
_SCHEDSTAT = "/proc/thread-self/schedstat"  # Linux: ns computed, ns waited for a core, slices


async def probe_loop(lag_s: StepHistogram, pressure: LoopPressure) -> None:
    """Observe this event loop and its thread; until cancelled."""
    with _thread_clock() as thread_time:
        total, at_s = thread_time(), time.monotonic()
        interval_s = _INTERVAL_S
        while True:
            due_s = time.monotonic() + interval_s
            await asyncio.sleep(interval_s)
            before, before_s = total, at_s
            total, at_s = thread_time(), time.monotonic()
            used = total - before
            lag_s.observe(max(0.0, at_s - due_s))
            pressure.observe(used, at_s - before_s)
            is_idle = used.used_s < _IDLE * (at_s - before_s)
            interval_s = _IDLE_INTERVAL_S if is_idle else _INTERVAL_S


@contextlib.contextmanager
def _thread_clock() -> Iterator[Callable[[], ThreadTime]]:
    """What tells this thread's time since it began; the file stays open, since opening it is most of the work."""
    try:
        file = os.open(_SCHEDSTAT, os.O_RDONLY)
    except OSError:
        yield lambda: ThreadTime(time.thread_time())
        return

    def read() -> ThreadTime:
        try:
            computed_ns, waited_ns, _ = os.pread(file, 128, 0).split()
        except (OSError, ValueError):
            return ThreadTime(time.thread_time())
        return ThreadTime(int(computed_ns) / 1e9, int(waited_ns) / 1e9)

    try:
        yield read
    finally:
        os.close(file)
