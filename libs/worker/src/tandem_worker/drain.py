"""Letting go: take nothing new, let requests finish for a while, then end the rest so that they resume elsewhere."""

from __future__ import annotations

import asyncio
import contextlib

from tandem_common.errors import Unavailable
from tandem_common.logs import get_logger

from tandem_worker.dispatch import Dispatcher
from tandem_worker.gate import Gate
from tandem_worker.registration import Registration

_log = get_logger("drain")

# Ending a request only takes as long as a chunk of its blocks that is on its way.
_END_TIMEOUT_S = 5.0


async def drain(gate: Gate, dispatcher: Dispatcher, registration: Registration, timeout_s: float) -> int:
    """Drain the worker and leave it draining (see `Gate.end_drain`); returns how many requests had to be ended."""
    gate.begin_drain()
    registration.touch()
    _log.info("draining", num_requests=len(dispatcher), timeout_s=timeout_s)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await dispatcher.idle()
    num_unfinished = dispatcher.fail_all(
        Unavailable("the worker is draining; the request can go on elsewhere")
    )
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_TIMEOUT_S):
            await dispatcher.idle()
    _log.info("drained", num_unfinished=num_unfinished)
    return num_unfinished
