"""Start-up time, and latency and throughput of the shipped model: disaggregated against aggregated.

    .venv/bin/python bench/serving.py [--repeats 3] [--quick]

Starts `tandem up` several times for the start-up time. Then runs two stacks side by side, one prefill + one decode
worker against two aggregated workers (one thread each, so both may use two cores), and loads them in turn, never
both at once. Prints tables of medians with ranges and writes bench/results/serving.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from load import LoadResult, run_load
from machine import describe_machine
from rich.console import Console
from rich.table import Table
from tandem_cli.local_stack import LocalStack
from tandem_cli.stack_options import StackOptions

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "tandem-tiny"
RESULTS = ROOT / "bench" / "results" / "serving.json"


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Prompts of about `num_words` words, all different from their first block on."""

    name: str
    num_words: int
    max_tokens: int
    num_streams: int
    num_requests: int

    def prompts(self, seed: int) -> list[str]:
        """Prompts that no cache has seen."""
        words = random.Random(seed)
        return [
            " ".join(words.choice(WORDS) for _ in range(self.num_words)) for _ in range(self.num_requests)
        ]


WORDS = ("fox", "boat", "moon", "river", "garden", "bread", "lamp", "snow", "bird", "stone", "apple", "king")
WORKLOADS = (
    Workload(name="short prompts, 1 stream", num_words=24, max_tokens=64, num_streams=1, num_requests=12),
    Workload(name="short prompts, 16 streams", num_words=24, max_tokens=64, num_streams=16, num_requests=96),
    Workload(name="long prompts, 1 stream", num_words=1000, max_tokens=64, num_streams=1, num_requests=8),
    Workload(name="long prompts, 16 streams", num_words=1000, max_tokens=64, num_streams=16, num_requests=48),
)


def startup_seconds() -> float:
    """From starting `tandem up` (two prefill, two decode workers) to its word that all of it answers."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "tandem_cli", "up", "--json-ready"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError("tandem up did not become ready")
        return time.perf_counter() - start
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def stack_options(*, prefill: int, decode: int, aggregated: int) -> StackOptions:
    """A stack on free ports, one thread per worker."""
    return StackOptions(
        model_dir=MODEL,
        served_model_name=MODEL.name,
        http_port=0,
        grpc_port=0,
        num_prefill=prefill,
        num_decode=decode,
        num_aggregated=aggregated,
        cluster_secret=secrets.token_hex(16),
        threads=1,
        log_level="warning",
    )


async def compare(repeats: int, workloads: Sequence[Workload]) -> dict[str, dict[str, list[LoadResult]]]:
    """Results by workload and kind of stack, the kinds taking turns within each repeat."""
    results: dict[str, dict[str, list[LoadResult]]] = {}
    async with (
        LocalStack(stack_options(prefill=1, decode=1, aggregated=0)) as split,
        LocalStack(stack_options(prefill=0, decode=0, aggregated=2)) as whole,
    ):
        stacks = {"1 prefill + 1 decode": split, "2 aggregated": whole}
        for repeat in range(repeats + 1):
            for workload in workloads:
                for kind, stack in stacks.items():
                    url = f"http://{stack.addresses.http_address}"
                    prompts = workload.prompts(seed=1000 * repeat + workload.num_words)
                    result = await run_load(
                        url, MODEL.name, prompts, workload.num_streams, workload.max_tokens
                    )
                    if repeat > 0:  # the first round warms up, and gives the routers their fits
                        results.setdefault(workload.name, {}).setdefault(kind, []).append(result)
    return results


def print_tables(startup: list[float], results: dict[str, dict[str, list[LoadResult]]]) -> None:
    """What a reader of the terminal wants to know."""
    console = Console(width=110)
    console.print(f"start-up of 2 prefill + 2 decode: {spread(startup, 1)} s")
    table = Table(
        "workload", "prompt tokens", "stack", "TTFT p50, ms", "ITL mean, ms", "tokens/s", "requests/s"
    )
    for workload, by_kind in results.items():
        for kind, runs in by_kind.items():
            table.add_row(
                workload,
                f"{runs[0].prompt_tokens_mean:.0f}",
                kind,
                spread([run.ttft_ms_p50 for run in runs], 0),
                spread([run.itl_ms_mean for run in runs], 1),
                spread([run.tokens_per_s for run in runs], 0),
                spread([run.requests_per_s for run in runs], 1),
            )
    console.print(table)


def spread(values: Sequence[float], digits: int) -> str:
    """Median with the range."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one repeat of the short workloads")
    arguments = parser.parse_args()
    repeats = 1 if arguments.quick else arguments.repeats
    machine = describe_machine()
    startup = [startup_seconds() for _ in range(repeats)]
    results = asyncio.run(compare(repeats, WORKLOADS[:2] if arguments.quick else WORKLOADS))
    print_tables(startup, results)
    RESULTS.parent.mkdir(exist_ok=True)
    content = {
        "machine": machine,
        "startup_s": startup,
        "serving": {
            workload: {kind: [asdict(run) for run in runs] for kind, runs in by_kind.items()}
            for workload, by_kind in results.items()
        },
    }
    RESULTS.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
