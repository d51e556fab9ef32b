"""Which HTTP server the frontend should stand on: the same streams from several of them, and what each costs.

    .venv/bin/python bench/http_servers.py [--servers tandem aiohttp uvicorn granian] [--streams 64] [--seconds 4]

Each server answers POST /v1/chat/completions with 128 server-sent events, one every 6 ms for all its streams at once,
written the way that is quickest with it: into the transport from one loop (tandem, aiohttp), or by a task per request
that waits for its next event (ASGI and RSGI allow nothing else). Only the server differs: nothing behind it.
Servers that are not installed are left out. CPU is of the server's process, from the operating system's accounting.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from frontend import MODEL, spread
from frontend_accounting import read_costs
from frontend_client import ClientTask
from frontend_prompts import PromptShape
from frontend_runner import run_client
from machine import describe_machine

_NEEDS = {"tandem": "httptools", "aiohttp": "aiohttp", "uvicorn": "uvicorn", "granian": "granian"}
_START_S = 2.0


@contextmanager
def running(name: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server in a process of its own, and its port."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("http_server_apps.py")), name], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


async def measure(name: str, num_streams: int, seconds: float) -> tuple[float, float, float]:
    """CPU µs per event and per request without its events, and events/s."""
    cost = []
    for max_tokens in (128, 1):
        with running(name) as (process, port):
            begin_s = time.monotonic() + _START_S
            task = ClientTask(
                host="127.0.0.1",
                port=port,
                model="m",
                tokenizer=str(MODEL),
                shape=PromptShape(prompt_tokens=128),
                max_tokens=max_tokens,
                num_streams=num_streams,
                seed=1,
                begin_s=begin_s,
                end_s=begin_s + seconds,
            )
            client = asyncio.create_task(run_client(task))
            await asyncio.sleep(begin_s - time.monotonic())
            before = read_costs({"": process.pid})[""].cpu_s
            await asyncio.sleep(seconds)
            cpu_s = read_costs({"": process.pid})[""].cpu_s - before
            result = await client
            if result.num_errors:
                raise SystemExit(f"{name}: {result.first_error}")
            cost.append((cpu_s, result.num_requests, result.num_text_events))
    (long_s, long_requests, long_events), (short_s, short_requests, _) = cost
    per_request = 1e6 * short_s / short_requests
    return (1e6 * long_s - per_request * long_requests) / long_events, per_request, long_events / seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--servers", nargs="+", choices=_NEEDS, default=list(_NEEDS))
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    names = [name for name in arguments.servers if importlib.util.find_spec(_NEEDS[name])]
    print(describe_machine())
    runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for _ in range(arguments.repeats):
        for name in names:
            runs[name].append(asyncio.run(measure(name, arguments.streams, arguments.seconds)))
    for name, rows in runs.items():
        per_event, per_request, rate = zip(*rows, strict=True)
        print(
            f"{name}: {spread(per_event, 1)} us CPU per event, {spread(per_request, 0)} us per request with one event, "
            f"{median(rate):.0f} events/s"
        )


if __name__ == "__main__":
    main()
