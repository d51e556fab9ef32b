"""Running the load generator in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable

import msgspec

from tandem_load.load_task import LoadTask
from tandem_load.measured import Measured


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a task stands; `time_s` counts from the window's begin, negative while warming up."""

    time_s: float
    num_sent: int
    num_done: int
    num_failed: int
    num_in_flight: int
    num_events: int
    ttft_p50_s: float | None


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of the process."""

    progress: Progress | None = None
    measured: Measured | None = None


class LoadProcess:
    """One task, under way. Close it."""

    def __init__(self, task: LoadTask) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tandem_load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # the terminal's Ctrl-C is for our parent, who tells us with `interrupt`
        )
        assert self._process.stdin is not None
        # Not an argument: it holds the API key.
        self._process.stdin.write(msgspec.json.encode(task))
        self._process.stdin.close()

    def interrupt(self) -> None:
        """End early, with what was measured so far."""
        self._process.send_signal(signal.SIGINT)

    def wait(self, on_progress: Callable[[Progress], None]) -> Measured:
        """What was measured. RuntimeError when the process ended without saying."""
        assert self._process.stdout is not None
        decoder = msgspec.json.Decoder(Message)
        for line in self._process.stdout:
            message = decoder.decode(line)
            if message.progress is not None:
                on_progress(message.progress)
            if message.measured is not None:
                return message.measured
        raise RuntimeError("the load generator ended without a result")

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
