"""The load generator's process: a task on standard input; progress, then what was measured, on standard output."""

from __future__ import annotations

import contextlib
import gc
import resource
import signal
import sys

import msgspec

from tandem_load.connection import Connector
from tandem_load.generator import Generator
from tandem_load.load_process import Message, Progress
from tandem_load.load_task import LoadTask
from tandem_load.polite import be_polite
from tandem_load.tally import Tally

_CONNECT_TIMEOUT_S = 10.0


def main() -> None:
    """Do the task; SIGINT ends it early."""
    be_polite()
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=LoadTask)
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    connector = Connector.of(task.target)
    with contextlib.suppress(OSError):  # then each request tells
        connector.use_reachable(_CONNECT_TIMEOUT_S)
    generator = Generator(task, connector, _report)
    signal.signal(signal.SIGINT, lambda *_: generator.stop())
    # What exists now lives on; the collector need not look at it again while latencies are measured.
    gc.freeze()
    _write(Message(measured=generator.run()))


def _report(tally: Tally, now_s: float, num_in_flight: int) -> None:
    measured = tally.measured
    _write(
        Message(
            progress=Progress(
                time_s=now_s,
                num_sent=measured.num_sent,
                num_done=measured.num_done,
                num_failed=measured.num_failed,
                num_in_flight=num_in_flight,
                num_events=measured.num_window_events,
                ttft_p50_s=measured.ttft.percentile(0.5),
            )
        )
    )


def _write(message: Message) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
