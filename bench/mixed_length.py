"""Mixed prompt lengths for real: two workers, each pinned to a core, as prefill and decode or aggregated.

    .venv/bin/python bench/mixed_length.py [--model tiny|16m] [--rates 10,20,30,40] [--seconds 10] [--rounds 2]

The torch engine on two cores, one thread per worker: the shipped model, or one of 16 M parameters with random weights
and the shipped tokenizer, whose long prompts take half a second. Requests arrive as a Poisson process, the same
for all stacks: chats of about 60 tokens, and one in twenty with about 1,500 (1,750 for the larger model); all generate
48. One stack is up at a time, each round goes through the stacks in the other order, and a stack is asked for more
until fewer than half of its requests are in target. Workers are pinned; frontend, router, Redis and this client are
not: they take what is free of both cores, and how much that is gets printed. Prints what the clients of all rounds
felt; writes bench/results/mixed_length-MODEL.json.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
from engine_models import SHAPES, write_model
from load import Answer, ask
from machine import describe_machine
from serving import MODEL, WORDS, stack_options
from tandem_cli.local_stack import LocalStack
from tandem_cli.stack_options import StackOptions
from tandem_load.histogram import percentile

RESULTS = Path(__file__).resolve().parent / "results"
ONE_LONG_IN = 20
CHAT_WORDS = 24
MAX_TOKENS = 48
WARM_UP_RATE, WARM_UP_S = 6.0, 8.0
FAILED = 0.5
WORKER_NAMES = ("prefill", "decode", "worker", "both", "aggregated")


@dataclass(frozen=True, kw_only=True)
class Stack:
    """How two workers are used; aggregated ones may prefill for each other when the router finds that quicker."""

    name: str
    prefill: int = 0
    decode: int = 0
    aggregated: int = 0
    max_step_tokens: int = 512


STACKS = (
    Stack(name="1 prefill + 1 decode", prefill=1, decode=1),
    Stack(name="1 prefill + 1 aggregated", prefill=1, aggregated=1),
    Stack(name="2 aggregated, steps of 512", aggregated=2),
    Stack(name="2 aggregated, steps of 128", aggregated=2, max_step_tokens=128),
)


@dataclass(frozen=True, kw_only=True)
class Load:
    """A model's long prompts, and its targets: twice what a lone long prompt takes, four times a lone chat's TPOT."""

    long_words: int
    ttft_s: float
    tpot_s: float


LOADS = {
    "tiny": Load(long_words=1150, ttft_s=0.25, tpot_s=0.004),
    "16m": Load(long_words=1340, ttft_s=1.0, tpot_s=0.009),
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the clients of one stack at one rate felt, with whether the prompt was long; cores that were busy."""

    answers: Sequence[tuple[bool, Answer]]
    worker_cores: float
    other_cores: float
    client_cores: float


@contextmanager
def model_dir(name: str) -> Iterator[Path]:
    """Where the model is, while it is needed."""
    if name == "tiny":
        yield MODEL
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write_model(replace(SHAPES[name], vocab=4096), path)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(MODEL / file, path)
        yield path


def prompt(words: random.Random, num_words: int) -> str:
    """One that no cache has seen."""
    return " ".join(words.choice(WORDS) for _ in range(num_words))


def tpot_s(answer: Answer) -> float:
    """Mean gap between tokens."""
    return (answer.end_s - answer.first_token_s) / max(1, answer.num_tokens - 1)


def pin(pid: int, core: int) -> None:
    """A process with all its threads, and those that they will start."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), {core})


def cpu_s(pids: Sequence[int]) -> float:
    """What these processes have used since they started."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


async def send(
    url: str, model: str, load: Load, rate: float, seconds: float, seed: int
) -> list[tuple[bool, Answer]]:
    """Answers with whether their prompt was long. Raises on any error."""
    draw = random.Random(seed)
    answers: list[tuple[bool, Answer]] = []

    async def one(session: aiohttp.ClientSession, text: str, is_long: bool) -> None:
        answers.append((is_long, await ask(session, url, model, text, MAX_TOKENS)))

    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        start = time.perf_counter()
        at_s = 0.0
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                at_s += draw.expovariate(rate)
                if at_s >= seconds:
                    break
                # One of each twenty, so that a short run has its share.
                if number % ONE_LONG_IN == 0:
                    next_long = number + draw.randrange(ONE_LONG_IN)
                is_long = number == next_long
                text = prompt(draw, load.long_words if is_long else CHAT_WORDS)
                await asyncio.sleep(max(0.0, start + at_s - time.perf_counter()))
                group.create_task(one(session, text, is_long))
    return answers


async def measure(
    options: StackOptions, load: Load, rates: Sequence[float], seconds: float, number: int
) -> dict[float, Run]:
    """One stack, rate after rate until it fails."""
    runs: dict[float, Run] = {}
    async with LocalStack(options) as stack:
        pids = {name: state.pid for name, state in sorted(stack.processes.items())}
        workers = [pid for name, pid in pids.items() if name.startswith(WORKER_NAMES)]
        others = [pid for pid in pids.values() if pid not in workers]
        for core, worker in zip(sorted(os.sched_getaffinity(0)), workers, strict=True):
            pin(worker, core)
        url, model = f"http://{stack.addresses.http_address}", options.served_model_name
        await send(url, model, load, WARM_UP_RATE, WARM_UP_S, seed=99)
        for rate in rates:
            started_s = time.perf_counter()
            before = [cpu_s(group) for group in (workers, others, [os.getpid()])]
            # Of its own for each rate and round: what was asked before would be in the caches.
            answers = await send(url, model, load, rate, seconds, seed=round(1000 * rate) + number)
            took_s = time.perf_counter() - started_s
            after = [cpu_s(group) for group in (workers, others, [os.getpid()])]
            cores = [(now - then) / took_s for now, then in zip(after, before, strict=True)]
            run = Run(answers=answers, worker_cores=cores[0], other_cores=cores[1], client_cores=cores[2])
            runs[rate] = run
            if good_share(run.answers, load.ttft_s, load.tpot_s) < FAILED:
                break
    return runs


def good_share(answers: Sequence[tuple[bool, Answer]], ttft_s: float, most_tpot_s: float) -> float:
    """Part of the requests that met both."""
    return sum(a.first_token_s <= ttft_s and tpot_s(a) <= most_tpot_s for _, a in answers) / len(answers)


def summary(stack: Stack, rate: float, load: Load, runs: Sequence[Run]) -> dict[str, str | float]:
    """All rounds of one stack at one rate together; milliseconds."""
    answers = [answer for run in runs for answer in run.answers]
    chats = [answer for is_long, answer in answers if not is_long]
    longs = [answer for is_long, answer in answers if is_long]

    def ms(values: Sequence[float], share: float) -> float:
        return round(1e3 * (percentile(values, share) or 0.0), 1)

    def cores(values: Sequence[float]) -> float:
        return round(sum(values) / len(values), 2)

    return {
        "stack": stack.name,
        "rate": rate,
        "rounds": len(runs),
        "requests": len(answers),
        **{
            f"good_share{name}": round(good_share(answers, load.ttft_s, factor * load.tpot_s), 4)
            for name, factor in (("", 1.0), ("_half_tpot", 0.5), ("_twice_tpot", 2.0))
        },
        "chat_ttft_p50": ms([a.first_token_s for a in chats], 0.5),
        "chat_ttft_p99": ms([a.first_token_s for a in chats], 0.99),
        "chat_tpot_p50": ms([tpot_s(a) for a in chats], 0.5),
        "chat_tpot_p99": ms([tpot_s(a) for a in chats], 0.99),
        "chat_longest_gap_p50": ms([a.longest_gap_s for a in chats], 0.5),
        "chat_longest_gap_p99": ms([a.longest_gap_s for a in chats], 0.99),
        "long_ttft_p50": ms([a.first_token_s for a in longs], 0.5),
        "worker_cores": cores([run.worker_cores for run in runs]),
        "other_cores": cores([run.other_cores for run in runs]),
        "client_cores": cores([run.client_cores for run in runs]),
    }


def options_of(stack: Stack, path: Path) -> StackOptions:
    """What to start."""
    options = stack_options(prefill=stack.prefill, decode=stack.decode, aggregated=stack.aggregated)
    settings: Mapping[str, Mapping[str, str]] = {"worker": {"max_step_tokens": str(stack.max_step_tokens)}}
    return replace(options, model_dir=path, served_model_name=path.name, settings=settings)


def line(row: Mapping[str, str | float]) -> str:
    """For a terminal."""
    return (
        f"{row['stack']:27} {row['rate']:5.1f}/s {row['requests']:5} requests: {row['good_share']:6.1%} in target "
        f"(TPOT halved {row['good_share_half_tpot']:6.1%}, doubled {row['good_share_twice_tpot']:6.1%}), chats' TTFT "
        f"{row['chat_ttft_p50']:.0f} {row['chat_ttft_p99']:.0f}, TPOT {row['chat_tpot_p50']:.1f} "
        f"{row['chat_tpot_p99']:.1f}, longest gap {row['chat_longest_gap_p50']:.0f} {row['chat_longest_gap_p99']:.0f}, "
        f"long TTFT {row['long_ttft_p50']:.0f} ms; cores: workers {row['worker_cores']:.2f}, others "
        f"{row['other_cores']:.2f}, client {row['client_cores']:.2f}"
    )


def main() -> None:
    """Measure all stacks, round after round."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=LOADS, default="tiny")
    parser.add_argument("--rates", default="10,20,30,40", help="requests per second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--stacks", default=",".join(map(str, range(len(STACKS)))), help="by number")
    arguments = parser.parse_args()
    rates = [float(rate) for rate in arguments.rates.split(",")]
    stacks = [STACKS[int(number)] for number in arguments.stacks.split(",")]
    load, machine = LOADS[arguments.model], describe_machine()
    print(machine)
    runs: dict[tuple[Stack, float], list[Run]] = {}
    with model_dir(arguments.model) as path:
        for number in range(arguments.rounds):
            for stack in stacks if number % 2 == 0 else reversed(stacks):
                options = options_of(stack, path)
                found = asyncio.run(measure(options, load, rates, arguments.seconds, number))
                for rate, run in found.items():
                    runs.setdefault((stack, rate), []).append(run)
                    print(line(summary(stack, rate, load, [run])), flush=True)
    rows = [
        summary(stack, rate, load, runs[stack, rate])
        for stack in stacks
        for rate in rates
        if (stack, rate) in runs
    ]
    print(
        f"all rounds (targets: TTFT {1e3 * load.ttft_s:.0f} ms, TPOT {1e3 * load.tpot_s:.0f} ms; pairs are p50 p99)"
    )
    for row in rows:
        print(line(row))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"mixed_length-{arguments.model}.json").write_text(
        json.dumps({"machine": machine, "targets": vars(load), "runs": rows}, indent=1), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
