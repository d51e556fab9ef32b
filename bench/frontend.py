"""What the way from an engine step to a client's socket costs, with a simulated engine.

    .venv/bin/python bench/frontend.py [--streams 1 16 64 256] [--step-ms 6 0] [--workloads 128/128 1024/64]
        [--seconds 5] [--repeats 3] [--dynamo PYTHON] [--against URL --against-model NAME --against-pid frontend=123]

Streaming chat completions from a plain keep-alive client in a process of its own, closed loop, against frontend +
router + one aggregated worker. CPU is user and system time of each process within the window, from the operating
system's accounting. TTFT: request sent to first text read. ITL: between two reads with text of one stream. Of the
random tokens 1.2 % are the first byte of a longer character, which nobody can show before the next token, so that a
hundredth of the gaps are of two steps whatever the server does: the p98 is below that. A step of 0 ms is "flat out",
one of 6 ms "paced". With --against or --dynamo the same load runs on the other server in turn, within each repeat.
Prints medians with ranges and writes bench/results/frontend.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from frontend_accounting import read_costs
from frontend_client import ClientTask
from frontend_dynamo import running_dynamo
from frontend_prompts import PromptShape
from frontend_runner import run_client
from frontend_target import Target, running_tandem
from machine import describe_machine
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "tandem-tiny"
RESULTS = ROOT / "bench" / "results" / "frontend.json"
WORKLOADS = {
    "128/128": (PromptShape(prompt_tokens=128), 128),
    "1024/64": (PromptShape(prompt_tokens=1024, prefix_tokens=960, num_prefixes=8), 64),
}
_CLIENT_START_S = 1.0  # a client needs this to start and connect


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination of load and pace."""

    workload: str
    step_ms: float
    num_streams: int


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One window on one server."""

    tokens_per_s: float
    requests_per_s: float
    tokens_per_event: float
    num_errors: int
    ttft_ms_p50: float
    ttft_ms_p99: float
    itl_ms_p98: float
    itl_ms_p99: float
    us_per_token: dict[str, float]
    ms_per_request: dict[str, float]
    rss_mib: dict[str, float]
    client_us_per_token: float


async def measure(
    target: Target, cell: Cell, seconds: float, warmup_s: float, num_clients: int, seed: int
) -> Measurement:
    """Load one server for a window."""
    shape, max_tokens = WORKLOADS[cell.workload]
    begin_s = time.monotonic() + _CLIENT_START_S + warmup_s
    num_clients = min(num_clients, cell.num_streams)
    shares = [
        cell.num_streams // num_clients + (i < cell.num_streams % num_clients) for i in range(num_clients)
    ]
    tasks = [
        ClientTask(
            host=target.host,
            port=target.port,
            model=target.model,
            tokenizer=str(MODEL),
            shape=shape,
            max_tokens=max_tokens,
            num_streams=share,
            seed=1000 * seed + index,
            begin_s=begin_s,
            end_s=begin_s + seconds,
        )
        for index, share in enumerate(shares)
    ]
    running = [asyncio.create_task(run_client(task)) for task in tasks]
    await asyncio.sleep(begin_s - time.monotonic())
    before = read_costs(target.pids)
    await asyncio.sleep(begin_s + seconds - time.monotonic())
    after = read_costs(target.pids)
    results = [await client for client in running]
    cpu_s = {name: after[name].cpu_s - before[name].cpu_s for name in before}
    num_tokens = max(1.0, sum(r.num_text_events * r.tokens_per_event for r in results))
    num_requests = max(1, sum(r.num_requests for r in results))
    errors = sum(r.num_errors for r in results)
    if errors:
        print(next(r.first_error for r in results if r.first_error), file=sys.stderr)
    ttft = sorted(t for r in results for t in r.ttft_ms)
    itl = sorted(t for r in results for t in r.itl_ms)
    return Measurement(
        tokens_per_s=num_tokens / seconds,
        requests_per_s=num_requests / seconds,
        tokens_per_event=num_tokens / max(1, sum(r.num_text_events for r in results)),
        num_errors=errors,
        ttft_ms_p50=_percentile(ttft, 0.5),
        ttft_ms_p99=_percentile(ttft, 0.99),
        itl_ms_p98=_percentile(itl, 0.98),
        itl_ms_p99=_percentile(itl, 0.99),
        us_per_token={name: 1e6 * cpu / num_tokens for name, cpu in cpu_s.items()},
        ms_per_request={name: 1e3 * cpu / num_requests for name, cpu in cpu_s.items()},
        rss_mib={name: cost.rss_mib for name, cost in after.items()},
        client_us_per_token=1e6 * sum(r.cpu_s for r in results) / num_tokens,
    )


def _percentile(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


async def run(arguments: argparse.Namespace) -> list[tuple[Cell, str, list[Measurement]]]:
    """All cells, the servers taking turns within each repeat; servers are started once per step time."""
    rows = []
    for step_ms in arguments.step_ms:
        async with AsyncExitStack() as running:
            targets = []
            most = max(64, *arguments.streams)
            if not arguments.only_against:
                targets.append(
                    await running.enter_async_context(running_tandem(MODEL, step_ms, most, arguments.log_dir))
                )
            if arguments.dynamo:
                targets.append(running.enter_context(running_dynamo(arguments.dynamo, MODEL, step_ms, most)))
            if arguments.against:
                targets.append(_other(arguments))
            for workload in arguments.workloads:
                for num_streams in arguments.streams:
                    cell = Cell(workload=workload, step_ms=step_ms, num_streams=num_streams)
                    results: dict[str, list[Measurement]] = {target.name: [] for target in targets}
                    for repeat in range(arguments.repeats):
                        for target in targets:
                            seed = hash((workload, step_ms, num_streams, repeat)) % 2**32
                            results[target.name].append(
                                await measure(
                                    target, cell, arguments.seconds, arguments.warmup, arguments.clients, seed
                                )
                            )
                    for name, runs in results.items():
                        rows.append((cell, name, runs))
                        print(_line(cell, name, runs), flush=True)
    return rows


def _other(arguments: argparse.Namespace) -> Target:
    parts = urlsplit(arguments.against)
    return Target(
        name=parts.netloc,
        host=parts.hostname or "127.0.0.1",
        port=parts.port or 80,
        model=arguments.against_model or MODEL.name,
        pids={name: int(pid) for name, _, pid in (entry.partition("=") for entry in arguments.against_pid)},
    )


def _line(cell: Cell, name: str, runs: Sequence[Measurement]) -> str:
    total = median(sum(run.us_per_token.values()) for run in runs)
    return (
        f"{cell.workload} step {cell.step_ms:g} ms, {cell.num_streams} streams, {name}: "
        f"{median(run.tokens_per_s for run in runs):.0f} tokens/s, {total:.1f} us/token"
    )


def print_table(rows: Sequence[tuple[Cell, str, list[Measurement]]]) -> None:
    """Medians with ranges."""
    table = Table(
        *(
            "workload",
            "step",
            "streams",
            "server",
            "tokens/s",
            "req/s",
            "tok/event",
            "TTFT p50",
            "p99",
            "ITL p98",
            "p99",
        ),
        *("CPU us/token", "ms/request", "RSS MiB", "errors"),
    )
    for cell, name, runs in rows:
        table.add_row(
            *(cell.workload, f"{cell.step_ms:g}", str(cell.num_streams), name),
            spread([run.tokens_per_s for run in runs], 0),
            spread([run.requests_per_s for run in runs], 0),
            spread([run.tokens_per_event for run in runs], 2),
            spread([run.ttft_ms_p50 for run in runs], 1),
            spread([run.ttft_ms_p99 for run in runs], 1),
            spread([run.itl_ms_p98 for run in runs], 1),
            spread([run.itl_ms_p99 for run in runs], 1),
            by_process([run.us_per_token for run in runs], 1),
            by_process([run.ms_per_request for run in runs], 2),
            by_process([run.rss_mib for run in runs], 0, total=False),
            str(sum(run.num_errors for run in runs)),
        )
    Console(width=None if sys.stdout.isatty() else 240).print(table)


def by_process(runs: Sequence[dict[str, float]], digits: int, *, total: bool = True) -> str:
    """Medians by process, and of the sum."""
    parts = [f"{name} {median(run[name] for run in runs):.{digits}f}" for name in runs[0]]
    if total:
        parts.append(f"all {spread([sum(run.values()) for run in runs], digits)}")
    return "\n".join(parts)


def spread(values: Sequence[float], digits: int) -> str:
    """Median with the range."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--step-ms", type=float, nargs="+", default=[6.0, 0.0])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warmup", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clients", type=int, default=1, help="client processes")
    parser.add_argument("--dynamo", default="", help="Python with Dynamo, to compare with it")
    parser.add_argument("--against", default="", help="URL of another server to compare with")
    parser.add_argument("--against-model", default="")
    parser.add_argument("--against-pid", nargs="*", default=[], metavar="NAME=PID")
    parser.add_argument("--only-against", action="store_true", help="do not start Tandem")
    parser.add_argument("--log-dir", type=Path, default=None, help="keep the services' logs here")
    arguments = parser.parse_args()
    machine = describe_machine()
    rows = asyncio.run(run(arguments))
    print_table(rows)
    RESULTS.parent.mkdir(exist_ok=True)
    content = {
        "machine": machine,
        "cells": [
            {**asdict(cell), "server": name, "runs": [asdict(run) for run in runs]}
            for cell, name, runs in rows
        ],
    }
    RESULTS.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
