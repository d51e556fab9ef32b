"""What the simulator says: policies, layouts and interference, on traces and on made-up traffic.

    .venv/bin/python bench/simulation.py --trace mooncake_conversation.jsonl.gz [--only policies,slow,...]

Experiments, each printed as a table and written to bench/results/simulation-NAME.json:

    saturation    Mooncake on 8 prefill + 8 decode workers, load swept: where goodput stops to rise
    policies      the same at 80 % of that load, every policy that the router knows
    slow          the same with every second worker at half speed
    layouts       disaggregated against aggregated with swept chunk size, 70B, 1 % of 32 k prompts, TPOT target 40 ms
    interference  ITL of short chats with and without 32 k prompts among them
    scale         2,000 workers, a short run: how long the simulator takes
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from machine import describe_machine
from tandem_load.traces import load_trace
from tandem_load.traffic import TrafficRequest, faster, mean_rate
from tandem_router.policies import POLICY_NAMES
from tandem_sim.hardware import GPUS
from tandem_sim.ideal_cache import shared_cache_hit_rate
from tandem_sim.models import MODELS
from tandem_sim.report import Run, Summary, summarise, table, to_json
from tandem_sim.scenario import Scenario, Targets, WorkerGroup
from tandem_sim.simulation import Simulation
from tandem_sim.step_time import kv_tokens
from tandem_sim.synthetic import CHAT_ONLY, MIXED, Kind, poisson

RESULTS = Path(__file__).resolve().parent / "results"
LOADS = (2.0, 2.5, 3.0, 3.5, 4.0, 4.5)
CHUNKS = (512, 1024, 2048, 4096, 8192)
SPLIT = (WorkerGroup(role="prefill", count=8), WorkerGroup(role="decode", count=8))
HALF_SLOW = tuple(
    replace(group, count=group.count // 2, speed=speed) for group in SPLIT for speed in (1.0, 0.5)
)


def run(scenario: Scenario, requests: Sequence[TrafficRequest], load: float = 1.0) -> Summary:
    """One simulation, summarised, with the time that it took."""
    sent = faster(requests, load)
    started_s = time.process_time()
    measurement = Simulation(scenario).run(sent)
    cpu_s = time.process_time() - started_s
    summary = summarise(Run(scenario=scenario, load=load, rate=mean_rate(sent), measurement=measurement))
    return summary | {"cpu_s": round(cpu_s, 1)}


def mooncake(policy: str, workers: tuple[WorkerGroup, ...]) -> Scenario:
    """The scenario of the experiments on the trace."""
    return Scenario(model="llama-3-8b", workers=workers, policy=policy)


def saturation(requests: Sequence[TrafficRequest]) -> list[Summary]:
    """The load swept with the default policy."""
    return [run(mooncake("predictive", SPLIT), requests, load) for load in LOADS]


def policies(
    names: Sequence[str], requests: Sequence[TrafficRequest], load: float, workers: tuple[WorkerGroup, ...]
) -> list[Summary]:
    """Each policy at one load."""
    return [run(mooncake(policy, workers), requests, load) for policy in names]


def layouts(num_requests: int, rates_per_worker: Sequence[float]) -> Iterator[Summary]:
    """All ways to divide 2 and 4 workers of 4 GPUs, one node and two, over swept rates."""
    targets = Targets(ttft_s=2.0, tpot_s=0.040)
    for num_workers in (2, 4):
        rates = [num_workers * rate for rate in rates_per_worker]
        splits = [
            (WorkerGroup(role="prefill", count=n), WorkerGroup(role="decode", count=num_workers - n))
            for n in range(1, num_workers)
        ]
        wholes = [(WorkerGroup(role="both", count=num_workers, max_step_tokens=chunk),) for chunk in CHUNKS]
        for rate in rates:
            requests = poisson(MIXED, rate=rate, num_requests=num_requests, seed=1)
            for workers in (*splits, *wholes):
                scenario = Scenario(workers=workers, block_size=64, targets=targets, with_planner=False)
                yield run(scenario, requests)


def interference(num_requests: int) -> Iterator[Summary]:
    """The same chats with and without long prompts among them, on 4 workers of the 70B shape."""
    chats = poisson(CHAT_ONLY, rate=4.0, num_requests=num_requests, seed=2)
    longs = (Kind(label="long", share=1.0, prompt_median=32_000, output_median=200),)
    added = poisson(longs, rate=0.12, num_requests=max(1, round(num_requests * 0.03)), seed=3)
    both = sorted(
        [*chats, *(replace(r, index=r.index + num_requests) for r in added)], key=lambda r: r.time_s
    )
    for workers in (
        (WorkerGroup(role="prefill", count=2), WorkerGroup(role="decode", count=2)),
        *((WorkerGroup(role="both", count=4, max_step_tokens=chunk),) for chunk in (512, 2048, 8192)),
    ):
        for requests in (chats, both):
            yield run(Scenario(workers=workers, block_size=64, with_planner=False), requests)


def scale() -> Summary:
    """A thousand prefill and a thousand decode workers."""
    requests = poisson(CHAT_ONLY, rate=500.0, num_requests=1000, seed=4)
    workers = (WorkerGroup(role="prefill", count=1000), WorkerGroup(role="decode", count=1000))
    return run(Scenario(model="llama-3-8b", workers=workers, block_size=64), requests)


def show(name: str, summaries: Sequence[Summary]) -> None:
    """Print and write."""
    print(f"\n{name}: {describe_machine()}")
    layout = [" + ".join(_group(group) for group in summary["workers"]) for summary in summaries]
    for line, text in zip(["workers", *layout], table(summaries).splitlines(), strict=True):
        print(f"{line:46} {text}")
    print("CPU seconds:", ", ".join(f"{summary['cpu_s']:g}" for summary in summaries))
    print(
        "Error of the router's predicted TTFT, p50 and p95:",
        ", ".join(
            f"{error['p50']:.0%} {error['p95']:.0%}"
            for summary in summaries
            if (error := summary["predicted_ttft_error"])["p50"] is not None
        ),
    )
    for line, summary in zip(layout, summaries, strict=True):
        for label, figures in summary["by_label"].items():
            itl, ttft = figures["itl_s"], figures["ttft_s"]
            print(
                f"{line:46} {summary['rate']:6.2f}/s {label}: "
                f"TTFT p50 {1e3 * ttft['p50']:.0f} p99 {1e3 * ttft['p99']:.0f}, "
                f"ITL p50 {1e3 * itl['p50']:.2f} p99 {1e3 * itl['p99']:.2f} ms"
            )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"simulation-{name}.json").write_text(to_json(summaries), encoding="utf-8")


def _group(group: dict[str, str | int | float]) -> str:
    speed = "" if group["speed"] == 1.0 else f" at {group['speed']:g}"
    chunk = f" chunk {group['max_step_tokens']}" if group["role"] == "both" else ""
    return f"{group['count']} {group['role']}{speed}{chunk}"


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, help="Mooncake's conversation trace")
    parser.add_argument("--only", default="saturation,policies,slow,layouts,interference,scale")
    parser.add_argument("--requests", type=int, default=3000, help="of the trace; 0 for all")
    parser.add_argument(
        "--load", type=float, default=0.0, help="for policies and slow; 0: 80 %% of saturation"
    )
    parser.add_argument("--rates", default="1,2,3,4,6,8", help="of layouts, per worker")
    parser.add_argument("--policies", default=",".join(POLICY_NAMES))
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    load, compared = arguments.load, arguments.policies.split(",")
    if {"saturation", "policies", "slow"} & set(names):
        if arguments.trace is None:
            parser.error("--trace is needed")
        requests = load_trace(arguments.trace, arguments.requests or None)
        if "saturation" in names or not load:
            swept = saturation(requests)
            show("saturation", swept)
            load = load or 0.8 * max(swept, key=lambda summary: float(summary["goodput"]))["load"]
        worker_blocks = kv_tokens(GPUS["H100"], MODELS["llama-3-8b"]) // 512
        for name, num_blocks in (
            ("as large as 8 workers'", 8 * worker_blocks),
            ("as large as 16 workers'", 16 * worker_blocks),
            ("without bound", None),
        ):
            print(f"hits in one cache {name}: {shared_cache_hit_rate(requests, num_blocks):.1%}")
        if "policies" in names:
            show("policies", policies(compared, requests, load, SPLIT))
        if "slow" in names:
            # Three quarters of the capacity are left.
            show("slow", policies(compared, requests, 0.75 * load, HALF_SLOW))
    if "layouts" in names:
        show("layouts", list(layouts(1000, [float(rate) for rate in arguments.rates.split(",")])))
    if "interference" in names:
        show("interference", list(interference(1500)))
    if "scale" in names:
        show("scale", [scale()])


if __name__ == "__main__":
    main()
