"""How late the frontend's event loop is while prompts of 100,000 tokens arrive, beside streams that go on.

    .venv/bin/python bench/frontend_lag.py [--seconds 10] [--prompts-at-a-time 2]

The lag is the frontend's own metric (how late a timer of 0.1 s runs); the streams' ITL is measured by their client.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shutil
import tempfile
import time
import urllib.request
from pathlib import Path

import aiohttp
from frontend_client import ClientTask
from frontend_prompts import PromptMaker, PromptShape, single_token_words
from frontend_runner import run_client
from frontend_target import Target, running_tandem

MODEL = Path(__file__).resolve().parent.parent / "models" / "tandem-tiny"
NUM_TOKENS = 100_000
_LAG = "tandem_frontend_event_loop_lag_seconds_bucket"


def long_context_model(directory: Path) -> Path:
    """The shipped model's files, said to hold 131,072 tokens: the simulated engine takes their word for it."""
    model = directory / MODEL.name
    model.mkdir()
    for file in MODEL.iterdir():
        if file.is_file():
            shutil.copy(file, model)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(
        json.dumps(config | {"max_position_embeddings": 131_072}), encoding="utf-8"
    )
    return model


async def send_long_prompts(target: Target, until_s: float, seed: int) -> int:
    """One after the other, each unlike the others; returns how many were answered."""
    words, template_tokens = single_token_words(MODEL)
    prompts = PromptMaker(words, template_tokens, PromptShape(prompt_tokens=NUM_TOKENS), seed)
    url = f"http://{target.host}:{target.port}/v1/chat/completions"
    async with aiohttp.ClientSession() as session:
        for count in itertools.count():
            if time.monotonic() > until_s:
                return count
            message = {"role": "user", "content": await asyncio.to_thread(prompts.make)}
            body = {"model": target.model, "messages": [message], "max_tokens": 1}
            async with session.post(url, json=body) as response:
                await response.read()
                response.raise_for_status()
    raise AssertionError


def read_lag(metrics_port: int) -> dict[float, int]:
    """Cumulative counts by upper bound in seconds."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    found = [line.split() for line in lines if line.startswith(_LAG)]
    return {float(name.split('le="')[1].split('"')[0]): int(float(value)) for name, value in found}


async def measure(seconds: float, num_prompts: int) -> None:
    """Load, and print the share of timers that were late."""
    with tempfile.TemporaryDirectory() as directory:
        model = long_context_model(Path(directory))
        async with running_tandem(model, 6.0, 64, None) as target:
            begin_s = time.monotonic() + 2
            task = ClientTask(
                host=target.host,
                port=target.port,
                model=target.model,
                tokenizer=str(MODEL),
                shape=PromptShape(prompt_tokens=128),
                max_tokens=128,
                num_streams=16,
                seed=1,
                begin_s=begin_s,
                end_s=begin_s + seconds,
            )
            client = asyncio.create_task(run_client(task))
            await asyncio.sleep(2)
            before = read_lag(target.metrics_port)
            counts = await asyncio.gather(
                *(send_long_prompts(target, begin_s + seconds, seed) for seed in range(num_prompts))
            )
            await asyncio.sleep(max(0.0, begin_s + seconds - time.monotonic()))
            after = read_lag(target.metrics_port)
            result = await client
    total = after[float("inf")] - before[float("inf")]
    print(f"{sum(counts)} prompts of {NUM_TOKENS} tokens in {seconds:g} s, 16 streams beside them")
    for bound in sorted(after):
        print(
            f"  lag <= {1000 * bound:g} ms: {100 * (after[bound] - before[bound]) / total:.1f} % of {total}"
        )
    itl = sorted(result.itl_ms)
    print(
        f"  ITL p50 {itl[len(itl) // 2]:.1f} ms, p99 {itl[int(0.99 * len(itl))]:.1f} ms, {result.num_errors} errors"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--prompts-at-a-time", type=int, default=2)
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.seconds, arguments.prompts_at_a_time))


if __name__ == "__main__":
    main()
