"""A load generator on the machine of the server it measures: it must not push the server aside."""

from __future__ import annotations

import contextlib
import os


def be_polite() -> None:
    """Never interrupt another process by waking up, only take turns with it, as far as this system can do that.

    A client elsewhere could not interrupt the server either. Here it would after every token: the server's `send` wakes
    it, it takes the core, reads one event and sleeps again, which costs both of them more than the event.
    """
    with contextlib.suppress(AttributeError, OSError):  # other systems than Linux; containers that forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
