"""Waking the event loop from the engine's thread without letting go of the interpreter."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable

# PyDLL, unlike CDLL, keeps the interpreter's lock during the call.
_eventfd_write = ctypes.PyDLL(None).eventfd_write
_eventfd_write.argtypes = (ctypes.c_int, ctypes.c_uint64)


class Doorbell:
    """Any thread rings, the event loop answers: once for all rings since the last answer.

    `call_soon_threadsafe` does the same by a write to a socket, for which it releases the interpreter's lock. Whom it
    woke then takes the lock, and a thread with more to do waits until that one is done: 0.1 ms in each step, when
    there is time for it as soon as the engine computes.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, answer: Callable[[], object]) -> None:
        self._loop = loop
        self._answer = answer
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # To be called from any thread, also before the loop runs.
        loop.call_soon_threadsafe(loop.add_reader, self._descriptor, self._on_ring)

    def ring(self) -> None:
        """Have the loop answer soon; RuntimeError when it is closed. Not after `close`."""
        if self._loop.is_closed():
            raise RuntimeError("the event loop is closed")
        _eventfd_write(self._descriptor, 1)

    def close(self) -> None:
        """Answer no more. From the event loop, when no thread rings any more."""
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _on_ring(self) -> None:
        os.eventfd_read(self._descriptor)
        self._answer()
