"""Waiting times of the torch engine that throughput does not show.

    .venv/bin/python bench/engine_latency.py [--models 0.6b] [--step-tokens 512]

Cold start: from starting a process until it has drawn the first token, the model's file in the page cache. Disturbance:
8 sequences decode while a prompt of 2,048 tokens arrives and is computed in chunks. Overhead: what a step of 32
decoding sequences takes outside the model: scheduling, flattening the batch, keeping the books. Prints; writes
bench/results/engine_latency.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from engine_models import SHAPES, write_model
from machine import describe_machine
from tandem_common.generation import Generation, SamplingParams, StoppingParams
from tandem_engine import create_engine
from tandem_engine.api import PrefillMode
from tandem_engine.batch import DrawnToken
from tandem_engine.block_pool import BlockPool
from tandem_engine.config import EngineConfig
from tandem_engine.scheduler import Scheduler
from tandem_engine.step_cost import step_cost

RESULTS = Path(__file__).resolve().parent / "results" / "engine_latency.json"
RANDOMS = random.Random(0)


def generation(vocab: int, num_tokens: int, max_tokens: int) -> Generation:
    """A greedy request with a prompt that nobody has seen."""
    return Generation(
        request_id=f"req-{RANDOMS.getrandbits(128):032x}",
        token_ids=tuple(RANDOMS.randrange(3, vocab) for _ in range(num_tokens)),
        num_prompt_tokens=num_tokens,
        namespace=bytes(16),
        sampling=SamplingParams(temperature=0.0),
        stopping=StoppingParams(max_tokens=max_tokens),
    )


def engine_config(model: Path, step_tokens: int) -> EngineConfig:
    """As a user has it, but for bfloat16."""
    return EngineConfig(
        model=str(model),
        dtype="bfloat16",
        max_context_tokens=4096,
        max_step_tokens=step_tokens,
        kv_cache_mib=1024,
    )


async def first_token(model: Path, vocab: int) -> None:
    """What the cold process does."""
    engine = create_engine(engine_config(model, 512))
    await engine.start()
    engine.submit(generation(vocab, 16, 1))
    await anext(engine.steps())
    await engine.stop()


async def token_gaps(model: Path, vocab: int, step_tokens: int) -> tuple[list[float], list[float], float]:
    """Gaps in ms of 8 sequences left alone, gaps while the long prompt is computed, and its longest chunk."""
    engine = create_engine(engine_config(model, step_tokens))
    await engine.start()
    try:
        for _ in range(8):
            engine.submit(generation(vocab, 32, 400))
        alone: list[float] = []
        beside: list[float] = []
        longest_chunk = 0.0
        last = time.perf_counter()
        num_steps, is_arrived = 0, False
        async for step in engine.steps():
            now = time.perf_counter()
            num_prefill = step.cost.num_prefill_tokens if step.cost else 0
            if step.cost and step.cost.num_decode_sequences == 8:
                num_steps += 1
                gap = 1000 * (now - last)
                if num_prefill:
                    beside.append(gap)
                    longest_chunk = max(longest_chunk, step.cost.duration_ms)
                elif 10 < num_steps <= 60:
                    alone.append(gap)
            last = now
            if num_steps >= 60 and not is_arrived:
                is_arrived = True
                engine.submit(generation(vocab, 2048, 1))
            elif beside and not num_prefill:
                return alone, beside, longest_chunk
        raise RuntimeError("the sequences ended before the prompt was computed")
    finally:
        await engine.stop()


def step_overhead_ms(model: Path, vocab: int) -> dict[str, float]:
    """Medians in ms at 32 decoding sequences of the 16 M model."""
    from tandem_engine.torch_engine import TorchRunner
    from tandem_engine.torch_engine.step_inputs import make_step_inputs

    runner = TorchRunner(engine_config(model, 512))
    info = runner.load()
    scheduler = Scheduler(info, BlockPool(info.num_blocks, info.block_size), max_waiting=64)
    for _ in range(32):
        scheduler.submit(generation(vocab, 32, 200), PrefillMode.LOCAL)
    times: dict[str, list[float]] = {"schedule": [], "flatten": [], "postprocess": []}
    for _ in range(120):
        start = time.perf_counter()
        batch = scheduler.schedule()
        scheduled = time.perf_counter()
        inputs = make_step_inputs(batch, runner.cache, frozenset({0}), runner.cache.dtype)
        flattened = time.perf_counter()
        drawn = [DrawnToken(5, None) if row.draws_token else None for row in batch.sequences]
        assert len(inputs.positions) >= len(batch.sequences)
        computed = time.perf_counter()
        scheduler.postprocess(batch, drawn, step_cost(batch, 1.0))
        end = time.perf_counter()
        if len(batch.sequences) == 32 and all(row.num_new_tokens == 1 for row in batch.sequences):
            times["schedule"].append(scheduled - start)
            times["flatten"].append(flattened - scheduled)
            times["postprocess"].append(end - computed)
    return {part: 1000 * median(values) for part, values in times.items()}


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie, from what was seen."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=sorted(SHAPES), default=list(SHAPES))
    parser.add_argument("--step-tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cold", type=Path, help="be the cold process for this model directory")
    arguments = parser.parse_args()
    if arguments.cold:
        asyncio.run(first_token(arguments.cold, SHAPES[arguments.cold.name].vocab))
        return
    content: dict[str, object] = {"machine": describe_machine()}
    for name in arguments.models:
        shape = SHAPES[name]
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / name
            write_model(shape, model)
            starts = []
            for _ in range(arguments.repeats):
                start = time.perf_counter()
                subprocess.run([sys.executable, __file__, "--cold", str(model)], check=True)
                starts.append(time.perf_counter() - start)
            alone, beside, chunk = asyncio.run(token_gaps(model, shape.vocab, arguments.step_tokens))
            overhead = step_overhead_ms(model, shape.vocab) if name == "16m" else {}
        itl = median(alone)
        worst = percentile(beside, 0.99)
        print(f"{name}: process start to its end after the first token {median(starts):.1f} s of {starts}")
        print(
            f"{name}: ITL alone {itl:.1f} ms (p99 {percentile(alone, 0.99):.1f}), beside the prompt p99 {worst:.1f} ms"
            f", longest chunk's step {chunk:.1f} ms, bound {2 * itl + chunk:.1f} ms"
        )
        if overhead:
            print(f"{name}: per step at 32 sequences, ms: {overhead}, together {sum(overhead.values()):.2f}")
        content[name] = {
            "cold_s": starts,
            "alone_ms": alone,
            "beside_ms": beside,
            "longest_chunk_ms": chunk,
            "overhead_ms": overhead,
        }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
