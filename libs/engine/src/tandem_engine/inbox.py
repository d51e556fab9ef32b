"""Commands for the engine's thread, which runs them between two steps."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue

Command = Callable[[], None]


class Inbox:
    """Commands from the event loop, in order. Any thread may put, one thread takes; waiting never polls."""

    def __init__(self) -> None:
        self._commands: SimpleQueue[Command] = SimpleQueue()

    def put(self, command: Command) -> None:
        """Queue a command and wake the engine if it is idle."""
        self._commands.put(command)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return self._commands.empty()

    def run_waiting(self) -> None:
        """Run what is there, without waiting."""
        while not self._commands.empty():  # nobody else takes any
            self._commands.get_nowait()()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for a command and run it; False when none came in time."""
        try:
            command = self._commands.get(timeout=timeout_s)
        except Empty:
            return False
        command()
        return True
