"""A timer of the event loop that goes off on time: uvloop rounds its own to milliseconds, as epoll's wait is."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import time
from collections.abc import Callable

_libc = ctypes.PyDLL(None, use_errno=True)
_timerfd_settime = _libc.timerfd_settime
_timerfd_settime.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_ABSOLUTE = 1  # TFD_TIMER_ABSTIME
_NS_PER_S = 1_000_000_000


class _Setting(ctypes.Structure):
    """`struct itimerspec`."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Alarm:
    """Calls `answer` in the event loop that it was made in, once for each `set`."""

    def __init__(self, answer: Callable[[], object]) -> None:
        self._answer = answer
        self._setting = _Setting()
        self._setting_at = ctypes.addressof(self._setting)
        self._descriptor = _libc.timerfd_create(
            time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC
        )  # the flags of timerfd are those of files
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "no timer can be had")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._on_time)

    def set(self, at_ns: int) -> None:
        """Go off at this time of `time.monotonic_ns`, at once if it is past; in place of an earlier setting."""
        setting = self._setting
        # Zero would mean never.
        setting.value_s, setting.value_ns = divmod(max(1, at_ns), _NS_PER_S)
        _timerfd_settime(self._descriptor, _ABSOLUTE, self._setting_at, None)

    def close(self) -> None:
        """Go off no more. Idempotent."""
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _on_time(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it was set anew meanwhile
            os.read(self._descriptor, 8)
            self._answer()
