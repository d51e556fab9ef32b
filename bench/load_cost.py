"""What `tandem bench` costs per token read, against a server that costs next to nothing.

    .venv/bin/python bench/load_cost.py [--streams 1 16 64 256] [--step-ms 6 0] [--seconds 4] [--repeats 3]

The server sends every stream one event a step, in a write of its own, from a process pinned to another core; a step of
0 ms is "flat out": several events come in one read. CPU is user and system time of the load generator's process, from
the window's begin to the last answer: requests, prompts, reports and all. Prints medians with ranges and writes
bench/results/load_cost.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from machine import describe_machine
from rich.console import Console
from rich.table import Table
from tandem_load.conversation import PromptShape
from tandem_load.dialect import Dialect
from tandem_load.lengths import Lengths
from tandem_load.load_process import LoadProcess
from tandem_load.load_task import Clients, LoadTask
from tandem_load.target import Target

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "load_cost.json"
NUM_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One window."""

    tokens_per_s: float
    cpu_us_per_token: float
    lag_ms_p99: float


@contextmanager
def canned_server(step_ms: float, core: int) -> Iterator[int]:
    """A server on this core; yields its port."""
    script = str(Path(__file__).with_name("canned_server.py"))
    process = subprocess.Popen(
        [sys.executable, script, str(step_ms), str(NUM_TOKENS)], stdout=subprocess.PIPE, text=True
    )
    os.sched_setaffinity(process.pid, {core})
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def measure(port: int, num_streams: int, seconds: float) -> Cost:
    """Load the server for a window."""
    task = LoadTask(
        target=Target.parse(f"http://127.0.0.1:{port}"),
        dialect=Dialect(model="canned"),
        traffic=Clients(count=num_streams),
        shape=PromptShape(input_tokens=Lengths.parse("128"), output_tokens=Lengths.parse(str(NUM_TOKENS))),
        duration_s=seconds,
    )
    process = LoadProcess(task)
    try:
        measured = process.wait(lambda _: None)
    finally:
        process.close()
    assert not measured.failures, measured.failures
    return Cost(
        tokens_per_s=measured.num_window_events / measured.window_s,
        cpu_us_per_token=1e6 * measured.cpu_s / measured.num_cpu_events,
        lag_ms_p99=1e3 * (measured.lag.percentile(0.99) or 0.0),
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--step-ms", type=float, nargs="+", default=[6.0, 0.0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})  # the generator inherits it
    table = Table("step, ms", "streams", "tokens/s", "CPU µs/token", "lag p99, ms")
    rows = []
    for step_ms in arguments.step_ms:
        with canned_server(step_ms, cores[0]) as port:
            for num_streams in arguments.streams:
                runs = [measure(port, num_streams, arguments.seconds) for _ in range(arguments.repeats)]
                rows.append(
                    {"step_ms": step_ms, "streams": num_streams, "runs": [asdict(run) for run in runs]}
                )
                costs = [run.cpu_us_per_token for run in runs]
                table.add_row(
                    f"{step_ms:g}",
                    str(num_streams),
                    f"{median(run.tokens_per_s for run in runs):,.0f}",
                    f"{median(costs):.1f} ({min(costs):.1f}-{max(costs):.1f})",
                    f"{median(run.lag_ms_p99 for run in runs):.1f}",
                )
    Console().print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    content = {"machine": describe_machine(), "rows": rows}
    RESULTS.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
