"""What a worker could serve of the mixed prompts of `bench/simulation.py` in two pure ways, by each step model.

    .venv/bin/python bench/simulation_bounds.py [--tpot-ms 40]

No queues, no waiting, perfect balance. *Split*: prompts are computed in the chunks that are cheapest per token, decodes
in the largest batch that its KV memory and the target between tokens allow; nothing is won by doing both at once.
*Mixed*: every step decodes and computes just as many prompt tokens as arrive meanwhile, and no step is longer than the
target. Estimates, not bounds: a layout may do some of both.
"""

from __future__ import annotations

import argparse

from tandem_engine.api import StepCost
from tandem_sim.hardware import GPUS
from tandem_sim.models import MODELS
from tandem_sim.step_time import STEP_MODELS, StepTime, gpu_step_time, kv_tokens
from tandem_sim.synthetic import MIXED, poisson

GPU, MODEL = "H100", "llama-3-70b"
CHUNKS = (256, 512, 1024, 2048, 4096, 8192)


class Load:
    """Means over the requests, in tokens."""

    def __init__(self) -> None:
        requests = poisson(MIXED, rate=1.0, num_requests=20_000, seed=1)
        n, outputs = len(requests), sum(r.num_output_tokens for r in requests)
        self.prompt = sum(r.num_prompt_tokens for r in requests) / n
        self.output = outputs / n
        self.inner_context = sum(r.num_prompt_tokens**2 for r in requests) / 2 / n  # pairs of a prompt
        held = (r.num_output_tokens * (r.num_prompt_tokens + r.num_output_tokens / 2) for r in requests)
        self.context = sum(held) / outputs  # of the average decode


def bounds(steps: StepTime, load: Load, tpot_s: float) -> tuple[float, float]:
    """Requests per second and worker: split, mixed."""

    def step_s(num_decodes: int, num_prompt_tokens: int, pairs: float = 0.0) -> float:
        kv = round(num_decodes * load.context)
        work = StepCost(
            duration_ms=0.0,
            num_decode_sequences=num_decodes,
            decode_kv_tokens=kv,
            num_prefill_tokens=num_prompt_tokens,
        )
        return steps.step_s(work, round(pairs))

    prompt_s = load.prompt * min(step_s(0, chunk) / chunk for chunk in CHUNKS)
    prompt_s += step_s(0, 1, load.inner_context) - step_s(0, 1)
    split = mixed = 0.0
    for batch in range(1, int(kv_tokens(GPUS[GPU], MODELS[MODEL]) / load.context) + 1):
        requests_per_step = batch / load.output
        if (decode_s := step_s(batch, 0)) <= tpot_s:
            split = max(split, 1.0 / (prompt_s + decode_s / requests_per_step))
        both_s = step_s(batch, round(load.prompt * requests_per_step), load.inner_context * requests_per_step)
        if both_s <= tpot_s:
            mixed = max(mixed, requests_per_step / both_s)
    return split, mixed


def main() -> None:
    """Compute and print."""
    parser = argparse.ArgumentParser(
        description="What a worker could serve in two pure ways, by each step model."
    )
    parser.add_argument("--tpot-ms", type=float, default=40.0)
    tpot_s = parser.parse_args().tpot_ms / 1e3
    load = Load()
    print(f"{load.prompt:.0f} tokens in, {load.output:.0f} out; requests per second and worker of 4 {GPU}")
    for name in STEP_MODELS:
        split, mixed = bounds(gpu_step_time(name, GPU, MODEL), load, tpot_s)
        print(f"{name:10} split {split:5.2f}, mixed {mixed:5.2f}: {split / mixed:.2f} times")


if __name__ == "__main__":
    main()
