"""What computing a decoding step in one call brings: the same steps by torch's operators and by the kernel, in turn.

    .venv/bin/python bench/engine_step.py [--models 16m 0.6b] [--rows 1 8 32 64] [--contexts 32 1024] [--dtype bfloat16]

No scheduler and nobody who reads: a runner executes batches of sequences that decode greedily, keys and values being
random numbers. Prints medians; writes bench/results/engine_step.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from engine_models import SHAPES, write_model
from machine import describe_machine
from rich.console import Console
from rich.table import Table
from tandem_common.generation import SamplingParams, StoppingParams
from tandem_engine.batch import Batch, ScheduledSequence
from tandem_engine.config import EngineConfig
from tandem_engine.torch_engine import TorchRunner

RESULTS = Path(__file__).resolve().parent / "results" / "engine_step.json"
BLOCK_SIZE = 16
# Steps of each kind before the other one's turn; the first of them warms up.
TURN = 5


def decoding(rows: int, context: int) -> Batch:
    """So many sequences, each with blocks of its own, that compute their last token."""
    blocks = context // BLOCK_SIZE + 1
    return Batch(
        [
            ScheduledSequence(
                request_id=str(row),
                token_ids=[7] * context + [11 + row],
                num_computed_tokens=context,
                num_new_tokens=1,
                block_ids=list(range(row * blocks, (row + 1) * blocks)),
                num_prompt_tokens=context,
                sampling=SamplingParams(temperature=0.0),
                stopping=StoppingParams(max_tokens=100),
                draws_token=True,
            )
            for row in range(rows)
        ]
    )


def measure(runner: TorchRunner, batch: Batch, turns: int) -> tuple[float, float]:
    """Median ms of a step by torch's operators and by the kernel."""
    short = runner.short_step
    if short is None:
        raise RuntimeError("there is no kernel for this model on this machine")
    times: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(2 * turns):
        by_kernel = turn % 2 == 1
        runner.short_step = short if by_kernel else None
        for step in range(TURN):
            start = time.perf_counter()
            runner.execute(batch)
            if step:
                times[by_kernel].append(1000 * (time.perf_counter() - start))
    return median(times[False]), median(times[True])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=("16m", "0.6b"), default=["16m", "0.6b"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32, 64])
    parser.add_argument("--contexts", nargs="+", type=int, default=[32, 1024])
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    table = Table("model", "sequences", "context", "torch's operators, ms", "one call, ms", "ratio")
    found: list[dict[str, object]] = []
    for name in arguments.models:
        most = max(arguments.rows) * (max(arguments.contexts) // BLOCK_SIZE + 1)
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / name
            write_model(SHAPES[name], model)
            config = EngineConfig(
                model=str(model), dtype=arguments.dtype, num_blocks=most, max_context_tokens=2048
            )
            runner = TorchRunner(config)
            runner.load()
        with torch.inference_mode():
            runner.cache.pool.normal_()
        for context in arguments.contexts:
            for rows in arguments.rows:
                by_torch, by_kernel = measure(runner, decoding(rows, context), arguments.turns)
                table.add_row(
                    name,
                    str(rows),
                    str(context),
                    f"{by_torch:.2f}",
                    f"{by_kernel:.2f}",
                    f"{by_torch / by_kernel:.1f}",
                )
                found.append(
                    {
                        "model": name,
                        "rows": rows,
                        "context": context,
                        "torch_ms": by_torch,
                        "kernel_ms": by_kernel,
                    }
                )
        runner.close()
    Console(width=110).print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps({"machine": describe_machine(), "steps": found}, indent=1), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
