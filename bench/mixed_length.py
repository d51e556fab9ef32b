"""Mixed prompt lengths for real: one prefill and one decode worker, each pinned to a core, against two aggregated ones.

    .venv/bin/python bench/mixed_length.py [--rates 10,20,30,40] [--seconds 15] [--repeats 1]

The shipped model on the torch engine, one thread per worker, two cores. Requests arrive as a Poisson process, the same
for both stacks: chats of about 60 tokens that generate 48, and one in twenty with about 1,500 tokens. Each stack runs
alone; frontend, router and the load itself share the cores with its workers. Goodput counts requests with a TTFT of at
most 250 ms and a mean gap of at most 6 ms. Prints a table and writes bench/results/mixed_length.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from load import Answer, ask
from machine import describe_machine
from serving import MODEL, WORDS, stack_options
from tandem_cli.local_stack import LocalStack
from tandem_load.histogram import percentile

RESULTS = Path(__file__).resolve().parent / "results" / "mixed_length.json"
STACKS = {"1 prefill + 1 decode": (1, 1, 0), "2 aggregated": (0, 0, 2)}
LONG_SHARE = 0.05
CHAT_WORDS, LONG_WORDS = 24, 1150
MAX_TOKENS = 48
TTFT_S, TPOT_S = 0.25, 0.006
WARM_UP = 40


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One run; milliseconds."""

    stack: str
    rate: float
    num_requests: int
    good_share: float
    chat_ttft_p50: float
    chat_ttft_p99: float
    chat_tpot_p50: float
    chat_tpot_p99: float
    chat_longest_gap_p99: float
    long_ttft_p50: float


def prompt(words: random.Random, num_words: int) -> str:
    """One that no cache has seen."""
    return " ".join(words.choice(WORDS) for _ in range(num_words))


def tpot_s(answer: Answer) -> float:
    """Mean gap between tokens."""
    return (answer.end_s - answer.first_token_s) / max(1, answer.num_tokens - 1)


def pin(pid: int, core: int) -> None:
    """A process with all its threads."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), {core})


async def run_open(url: str, rate: float, seconds: float, seed: int) -> list[tuple[bool, Answer]]:
    """Answers with whether their prompt was long. Raises on any error."""
    draw = random.Random(seed)
    answers: list[tuple[bool, Answer]] = []

    async def one(session: aiohttp.ClientSession, text: str, is_long: bool) -> None:
        answers.append((is_long, await ask(session, url, MODEL.name, text, MAX_TOKENS)))

    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        start = time.perf_counter()
        at_s = 0.0
        async with asyncio.TaskGroup() as group:
            while (at_s := at_s + draw.expovariate(rate)) < seconds:
                is_long = draw.random() < LONG_SHARE
                text = prompt(draw, LONG_WORDS if is_long else CHAT_WORDS)
                await asyncio.sleep(max(0.0, start + at_s - time.perf_counter()))
                group.create_task(one(session, text, is_long))
    return answers


async def measure(name: str, rates: Sequence[float], seconds: float, repeats: int) -> list[Figures]:
    """All rates on one stack; every run of a rate counts."""
    prefill, decode, aggregated = STACKS[name]
    figures = []
    async with LocalStack(stack_options(prefill=prefill, decode=decode, aggregated=aggregated)) as stack:
        workers = [
            state for process, state in sorted(stack.processes.items()) if process.startswith(_WORKER_NAMES)
        ]
        assert len(workers) == 2, sorted(stack.processes)
        for core, worker in zip(sorted(os.sched_getaffinity(0)), workers, strict=True):
            pin(worker.pid, core)
        url = f"http://{stack.addresses.http_address}"
        await run_open(url, 4.0, WARM_UP / 4.0, seed=99)
        for rate in rates:
            answers = []
            for repeat in range(repeats):
                # Of its own for each rate: what was asked before would be in the caches.
                answers += await run_open(url, rate, seconds, seed=round(1000 * rate) + repeat)
            figures.append(summarise(name, rate, answers))
    return figures


def summarise(stack: str, rate: float, answers: Sequence[tuple[bool, Answer]]) -> Figures:
    """What the clients saw."""
    chats = [answer for is_long, answer in answers if not is_long]
    longs = [answer for is_long, answer in answers if is_long]
    good = sum(a.first_token_s <= TTFT_S and tpot_s(a) <= TPOT_S for _, a in answers)

    def ms(values: list[float], share: float) -> float:
        return round(1e3 * (percentile(values, share) or 0.0), 1)

    return Figures(
        stack=stack,
        rate=rate,
        num_requests=len(answers),
        good_share=round(good / len(answers), 4),
        chat_ttft_p50=ms([a.first_token_s for a in chats], 0.5),
        chat_ttft_p99=ms([a.first_token_s for a in chats], 0.99),
        chat_tpot_p50=ms([tpot_s(a) for a in chats], 0.5),
        chat_tpot_p99=ms([tpot_s(a) for a in chats], 0.99),
        chat_longest_gap_p99=ms([a.longest_gap_s for a in chats], 0.99),
        long_ttft_p50=ms([a.first_token_s for a in longs], 0.5),
    )


_WORKER_NAMES = ("prefill", "decode", "worker", "both", "aggregated")


def main() -> None:
    """Measure both stacks, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", default="10,20,30,40", help="requests per second")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    rates = [float(rate) for rate in arguments.rates.split(",")]
    machine = describe_machine()
    print(machine)
    figures: list[Figures] = []
    for name in STACKS:
        for row in asyncio.run(measure(name, rates, arguments.seconds, arguments.repeats)):
            figures.append(row)
            print(
                f"{row.stack:22} {row.rate:4.1f}/s {row.num_requests:4} requests: {row.good_share:6.1%} in target, "
                f"chats' TTFT p50 {row.chat_ttft_p50:.0f} p99 {row.chat_ttft_p99:.0f}, TPOT p50 "
                f"{row.chat_tpot_p50:.1f} p99 {row.chat_tpot_p99:.1f}, longest gap p99 "
                f"{row.chat_longest_gap_p99:.0f}; long TTFT p50 {row.long_ttft_p50:.0f} ms",
                flush=True,
            )
    RESULTS.parent.mkdir(exist_ok=True)
    content = {"machine": machine, "runs": [vars(row) for row in figures]}
    RESULTS.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
