"""What handoffs do to the streams of the decode worker that receives them.

    .venv/bin/python bench/handoff_lag.py [--rounds 5] [--seconds 2] [--size 256]

The two processes of `bench/handoff.py`; the engine of the receiving one decodes 8 requests meanwhile, in steps that
take 5 ms and no processor. Shown are the time from one step's tokens to the next one's, where the event loop gets them,
and the time that the event loop takes to do what a thread has asked for: at rest, while one handoff follows another,
and with four at a time. Prints a table and writes bench/results/handoff_lag.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import uvloop
from handoff import MIB, Peer, handoffs, two_cores
from handoff_worker import BLOCK_BYTES, requests, start_worker, stay_on
from machine import describe_machine
from rich.console import Console
from rich.table import Table
from tandem_engine.api import PrefillMode

RESULTS = Path(__file__).resolve().parent / "results" / "handoff_lag.json"

# By what goes on, then by what is measured.
Found = dict[str, dict[str, list[float]]]


async def measure(rounds: int, seconds: float, size: int, cores: tuple[int, int]) -> Found:
    """All of them in turn within each round."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("handoff_worker.py")),
        str(cores[1]),
        "streams",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=64 * MIB,  # of a line
    )
    stay_on(cores[0])
    worker, _ = await start_worker("prefill", shared=True)
    peer = Peer(process)
    addresses = await peer.first_words()
    sides = {kind: handoffs(worker, kind, str(addresses[kind]), peer) for kind in ("shm", "tcp")}
    prepared, num_bytes = requests(size * MIB // BLOCK_BYTES), size * MIB
    await peer.ask(prepare=num_bytes // BLOCK_BYTES)
    for request in prepared:
        worker.engine.submit(request, PrefillMode.HOLD)
    steps, num_ready = worker.engine.steps(), 0
    while num_ready < len(prepared):
        num_ready += len((await anext(steps)).tokens)
    ways: dict[str, Callable[[int], Awaitable[float]]] = {
        "at rest": at_rest,
        "shared memory, one": sides["shm"].one,
        "shared memory, four": sides["shm"].in_a_row,
        "TCP, one": sides["tcp"].one,
        "TCP, four": sides["tcp"].in_a_row,
    }
    found: Found = {way: {"gaps_ms": [], "lags_ms": []} for way in ways}
    for number in range(-1, rounds):  # the first warms up
        for way, run in ways.items():
            await peer.ask(streams=True)
            end_s = time.perf_counter() + seconds
            while time.perf_counter() < end_s:
                await run(num_bytes)
            taken = await peer.ask(streams=True)
            if number >= 0:
                for name, samples in taken.items():
                    found[way][name].extend(map(float, samples))
    for side in sides.values():
        await side.worker.connections.close()
    assert process.stdin is not None
    process.stdin.close()
    await process.wait()
    await worker.engine.stop()
    return found


async def at_rest(num_bytes: int) -> float:
    """Nothing is handed over."""
    await asyncio.sleep(0.05)
    return 0.05


def report(found: Found) -> None:
    """The table."""
    table = Table(title="A decode worker that receives handoffs")
    for column in (
        "handoffs",
        "steps",
        "between two, ms: p50",
        "p99",
        "most",
        "loop's lag, ms: p50",
        "p99",
        "most",
    ):
        table.add_column(column, justify="right")
    for way, samples in found.items():
        figures = [
            f"{figure:.2f}"
            for kind in ("gaps_ms", "lags_ms")
            for figure in (*np.quantile(samples[kind], [0.5, 0.99]), max(samples[kind]))
        ]
        table.add_row(way, str(len(samples["gaps_ms"])), *figures)
    Console(width=130).print(table)


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description="Streams of a decode worker beside handoffs.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each way, in each round")
    parser.add_argument("--size", type=int, default=256, help="MiB per handoff")
    options = parser.parse_args()
    machine, cores = describe_machine(), two_cores()
    found = uvloop.run(measure(options.rounds, options.seconds, options.size, cores))
    report(found)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps({"machine": machine, "cores": cores, "found": found}, indent=1), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
