"""Waiting times of the torch engine that throughput does not show.

    .venv/bin/python bench/engine_latency.py [--models 0.6b] [--step-tokens 512]

Cold start: from starting a process until it has drawn the first token, the model's file in the page cache; with the
kernels' compiled library there, and without it. Disturbance: 8 sequences decode while prompts of 2,048 tokens arrive,
one after another, and are computed in chunks; bounded by twice the undisturbed gap plus a chunk of the same prompt
computed alone. Overhead: what a step of 32 decoding sequences takes beside computing: scheduling, flattening the
batch, keeping the books, reporting. Prints; writes bench/results/engine_latency.json. About a minute for the 16 M
model, three for 0.6B.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from engine_models import SHAPES, write_model
from machine import describe_machine
from tandem_common.generation import Generation, SamplingParams, StoppingParams
from tandem_engine import create_engine
from tandem_engine.config import EngineConfig
from tandem_engine.local_engine import LocalEngine
from tandem_engine.torch_engine import TorchRunner
from tandem_engine.torch_engine.short_step import StepKernel

RESULTS = Path(__file__).resolve().parent / "results" / "engine_latency.json"
RANDOMS = random.Random(0)
LONG_PROMPT = 2048


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
    """What the cold process does; prints when its phases ended, by the clock that all processes share."""
    ends = {"imports": time.perf_counter()}
    engine = create_engine(engine_config(model, 512))
    await engine.start()
    ends["load"] = time.perf_counter()
    engine.submit(generation(vocab, 16, 1))
    await anext(engine.steps())
    ends["first step"] = time.perf_counter()
    print(json.dumps(ends), flush=True)
    await engine.stop()


def cold_start_s(model: Path, cache: Path | None) -> dict[str, float]:
    """Seconds of each phase of a process's start, with the kernels from `cache`, or from the user's own."""
    environment = os.environ | ({"XDG_CACHE_HOME": str(cache)} if cache else {})
    start = time.perf_counter()
    command = [sys.executable, __file__, "--cold", str(model)]
    process = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE)
    phases: dict[str, float] = {}
    last = start
    for phase, end in json.loads(process.stdout).items():
        phases[phase] = end - last
        last = end
    return phases | {"together": last - start}


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """What 8 decoding sequences saw, ms."""

    alone: list[float]  # between their tokens while nothing else was computed
    beside: list[float]  # while a long prompt was
    chunk: float  # the longest chunk of such a prompt, computed alone

    @property
    def bound(self) -> float:
        """What the 99th percentile of `beside` should not exceed."""
        return 2 * median(self.alone) + self.chunk


async def token_gaps(model: Path, vocab: int, step_tokens: int, num_prompts: int = 5) -> Gaps:
    """Serve long prompts alone, then beside 8 sequences that decode."""
    engine = create_engine(engine_config(model, step_tokens))
    await engine.start()
    steps = engine.steps()
    try:
        chunks: list[float] = []
        for warmed in (False, True):
            engine.submit(generation(vocab, LONG_PROMPT, 1))
            done = 0
            while done < LONG_PROMPT:
                step = await anext(steps)
                assert step.cost is not None
                done += step.cost.num_prefill_tokens
                if warmed:
                    chunks.append(step.cost.duration_ms)
        for _ in range(8):
            engine.submit(generation(vocab, 32, 1000))
        alone: list[float] = []
        beside: list[float] = []
        last = time.perf_counter()
        num_steps = num_sent = 0
        async for step in steps:
            now = time.perf_counter()
            gap, last = 1000 * (now - last), now
            if step.cost is None or step.cost.num_decode_sequences < 8:
                continue
            num_steps += 1
            if step.cost.num_prefill_tokens:
                beside.append(gap)
            elif num_steps > 10:
                alone.append(gap)
            if len(alone) >= 20 * (num_sent + 1) and not step.cost.num_prefill_tokens:
                if num_sent == num_prompts:
                    return Gaps(alone=alone, beside=beside, chunk=max(chunks))
                num_sent += 1
                engine.submit(generation(vocab, LONG_PROMPT, 1))
        raise RuntimeError("the sequences ended before the prompts were computed")
    finally:
        await engine.stop()


class TimedKernels:
    """Kernels that note how long the computing of each step took."""

    def __init__(self, kernels: StepKernel) -> None:
        self._kernels = kernels
        self.seconds: list[float] = []

    def short_step(self, model: ctypes.Structure, step: ctypes.Structure, num_threads: int) -> None:
        """The whole of a decoding step's computing."""
        start = time.perf_counter()
        self._kernels.short_step(model, step, num_threads)
        self.seconds.append(time.perf_counter() - start)


async def step_overhead_ms(model: Path, vocab: int) -> dict[str, float]:
    """Medians in ms of steps of 32 decoding sequences: from one step's output to the next, and of that computing.

    The engine runs in its thread and its steps are read in this one, as in a worker. What is left beside computing is
    scheduling, flattening the batch, keeping the books, reporting, and waiting for the interpreter.
    """
    runner = TorchRunner(engine_config(model, 2048))
    engine = LocalEngine(engine_config(model, 2048), runner)
    await engine.start()
    try:
        if runner.short_step is None:
            raise RuntimeError("without kernels computing cannot be told from the rest")
        timed = TimedKernels(runner.short_step.kernels)
        runner.short_step.kernels = timed
        for _ in range(32):
            engine.submit(generation(vocab, 32, 300))
        gaps: list[float] = []
        last = 0.0
        async for step in engine.steps():
            now = time.perf_counter()
            if step.cost and step.cost.num_decode_sequences == 32:
                gaps.append(now - last)
            last = now
            if len(gaps) == 250:
                break
        whole, inside = 1000 * median(gaps[50:]), 1000 * median(timed.seconds[-200:])
        return {"step": whole, "computing": inside, "overhead": whole - inside}
    finally:
        await engine.stop()


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie, from what was seen."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=sorted(SHAPES), default=["16m", "0.6b"])
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
            with tempfile.TemporaryDirectory() as empty:
                first = cold_start_s(model, Path(empty))
            starts = [cold_start_s(model, None) for _ in range(arguments.repeats)]
            gaps = asyncio.run(token_gaps(model, shape.vocab, arguments.step_tokens))
            overhead = asyncio.run(step_overhead_ms(model, shape.vocab)) if name == "16m" else {}
        cold = {phase: median(start[phase] for start in starts) for phase in starts[0]}
        print(
            f"{name}: process start to first token, s: {_rounded(cold)}; kernels not compiled yet: {_rounded(first)}"
        )
        for what, values in (("alone", gaps.alone), ("beside the prompts", gaps.beside)):
            print(f"{name}: ITL {what}, ms: p50 {median(values):.1f}, p99 {percentile(values, 0.99):.1f}")
        print(f"{name}: a chunk alone {gaps.chunk:.1f} ms, bound {gaps.bound:.1f} ms")
        if overhead:
            parts = ", ".join(f"{part} {ms:.2f}" for part, ms in overhead.items())
            print(f"{name}: per step of 32 decoding sequences, ms: {parts}")
        content[name] = {
            "cold_s": starts,
            "cold_without_kernels_s": first,
            "gaps_ms": asdict(gaps),
            "step_tokens": arguments.step_tokens,
            "overhead_ms": overhead,
        }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {phase: round(value, 2) for phase, value in seconds.items()}


if __name__ == "__main__":
    main()
