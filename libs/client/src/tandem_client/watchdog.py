"""Bounds the wait of a blocking read: gRPC's sync streams know a deadline for the whole call only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Watchdog:
    """Calls `on_expiry` once, from a thread of its own, when an armed time runs out.

    Arming again before that moves the time; it costs no wake-up of the thread unless the time moved closer.
    """

    def __init__(self, on_expiry: Callable[[], None]) -> None:
        self._on_expiry = on_expiry
        self._changed = threading.Condition()
        self._deadline_s: float | None = None
        self._sleeping_until_s = float("inf")
        self._thread: threading.Thread | None = None
        self._closed = False
        self._expired = False

    @property
    def expired(self) -> bool:
        """Whether the time ran out."""
        return self._expired

    def arm(self, patience_s: float) -> None:
        """Expire in this many seconds."""
        with self._changed:
            self._deadline_s = time.monotonic() + patience_s
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._watch, name="tandem-client-watchdog", daemon=True
                )
                self._thread.start()
            elif self._deadline_s < self._sleeping_until_s:
                self._changed.notify()

    def disarm(self) -> None:
        """Do not expire until armed again."""
        with self._changed:
            self._deadline_s = None

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                now_s = time.monotonic()
                if self._deadline_s is not None and self._deadline_s <= now_s:
                    self._expired = True
                    break
                if self._deadline_s is None:
                    self._sleeping_until_s = float("inf")
                    self._changed.wait()
                else:
                    self._sleeping_until_s = self._deadline_s
                    self._changed.wait(self._deadline_s - now_s)
            if self._closed:
                return
        self._on_expiry()
