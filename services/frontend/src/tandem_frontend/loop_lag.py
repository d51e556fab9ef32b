"""How late the event loop is: what everything else on it waits for."""

from __future__ import annotations

import asyncio
import time

from tandem_frontend.histogram import StepHistogram

_INTERVAL_S = 0.1


async def measure_loop_lag(histogram: StepHistogram) -> None:
    """Sleep and see how much later it is than asked for; until cancelled."""
    while True:
        due = time.monotonic() + _INTERVAL_S
        await asyncio.sleep(_INTERVAL_S)
        histogram.observe(max(0.0, time.monotonic() - due))
