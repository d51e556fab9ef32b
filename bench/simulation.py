"""What the simulator says: policies, layouts and interference, on traces and on made-up traffic.

    .venv/bin/python bench/simulation.py --trace mooncake_conversation.jsonl.gz [--only policies,slow,...]

Experiments, each printed as a table and written to bench/results/simulation-NAME.json:

    saturation    Mooncake on 8 prefill + 8 decode workers, load swept: where goodput stops to rise
    policies      the same at 80 % of that load, every policy that the router knows
    slow          the same, at the same load, with every second worker at half speed
    view          the same with a router that knows everything at once: what a perfect view would find in the caches
    layouts       disaggregated against aggregated with swept chunk size, 70B, 1 % of 32 k prompts, TPOT target 40 ms
                  or as asked for
    interference  ITL of short chats with and without 32 k prompts among them
    scale         2,000 workers, a short run: how long the simulator takes
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from machine import describe_machine
from tandem_load.traces import load_trace
from tandem_load.traffic import TrafficRequest, faster, mean_rate
from tandem_router.policies import POLICY_NAMES
from tandem_sim.hardware import GPUS
from tandem_sim.ideal_cache import shared_cache_hit_rate
from tandem_sim.models import MODELS
from tandem_sim.report import Run, Summary, summarise, table, to_json
from tandem_sim.scenario import Control, Scenario, Targets, WorkerGroup
from tandem_sim.simulation import Simulation
from tandem_sim.step_time import STEP_MODELS, kv_tokens
from tandem_sim.synthetic import CHAT_ONLY, MIXED, Kind, poisson

AT_ONCE = Control(heartbeat_s=0.01, poll_s=0.01, kv_event_delay_s=0.0)
RESULTS = Path(__file__).resolve().parent / "results"
LOADS = (3.0, 3.5, 4.0, 4.5, 5.0, 5.5)
WARM_S = 20.0
SHARES = (0.9, 0.95, 0.98)
# Tokens of a step of prefill and decode workers, whatever the policy: a short prompt waits for the step in progress.
STEP = 2048
SPLIT = (
    WorkerGroup(role="prefill", count=8, max_step_tokens=STEP),
    WorkerGroup(role="decode", count=8, max_step_tokens=STEP),
)
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


def run_warm(scenario: Scenario, requests: Sequence[TrafficRequest]) -> Summary:
    """The same after some light traffic that is not counted: workers know by then how fast they are."""
    warm = poisson(CHAT_ONLY, rate=6.0, num_requests=120, seed=9)
    later = [replace(r, time_s=r.time_s + WARM_S, index=r.index + len(warm)) for r in requests]
    started_s = time.process_time()
    measurement = Simulation(scenario).run([*warm, *later])
    cpu_s = time.process_time() - started_s
    measurement.records = [
        replace(
            record,
            sent_s=record.sent_s - WARM_S,
            first_token_s=_sooner(record.first_token_s),
            last_token_s=_sooner(record.last_token_s),
        )
        for record in measurement.records
        if record.index >= len(warm)
    ]
    summary = summarise(Run(scenario=scenario, load=1.0, rate=mean_rate(requests), measurement=measurement))
    return summary | {"cpu_s": round(cpu_s, 1)}


def _sooner(time_s: float | None) -> float | None:
    return None if time_s is None else time_s - WARM_S


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


@dataclass(frozen=True, kw_only=True)
class LayoutSweep:
    """What `layouts` runs: rates are per worker, chunks those of aggregated workers."""

    num_requests: int
    rates: Sequence[float]
    chunks: Sequence[int]
    tpot_s: float
    step_model: str
    seed: int


def layouts(num_workers: int, sweep: LayoutSweep) -> Iterator[Summary]:
    """All ways to use so many workers of 4 GPUs, over swept rates: split, aggregated, and aggregated with handoffs."""
    targets = Targets(ttft_s=2.0, tpot_s=sweep.tpot_s)
    splits = [
        (
            WorkerGroup(role="prefill", count=n, max_step_tokens=STEP),
            WorkerGroup(role="decode", count=num_workers - n, max_step_tokens=256),
        )
        for n in range(num_workers // 2, num_workers)
    ]
    wholes = [
        (WorkerGroup(role="both", count=num_workers, max_step_tokens=chunk, handoffs=handoffs),)
        for handoffs in (False, True)
        for chunk in (sweep.chunks if not handoffs else (256,))
    ]
    for rate in (num_workers * each for each in sweep.rates):
        mixed = poisson(MIXED, rate=rate, num_requests=sweep.num_requests, seed=sweep.seed)
        for workers in (*splits, *wholes):
            scenario = Scenario(
                workers=workers,
                block_size=64,
                targets=targets,
                with_planner=False,
                step_model=sweep.step_model,
            )
            yield run_warm(scenario, mixed)


def show_capacities(summaries: Sequence[Summary]) -> None:
    """The highest rate at which a share of the requests is in target, by layout; between rates it is interpolated."""
    by_layout: dict[str, list[tuple[float, float]]] = {}
    for summary in summaries:
        name = " + ".join(_group(group) for group in summary["workers"])
        by_layout.setdefault(name, []).append((summary["rate"], summary["good_share"]))
    print(f"{'highest rate, 1/s, with so many in target':46} " + " ".join(f"{s:>7.0%}" for s in SHARES))
    for name, points in by_layout.items():
        print(f"{name:46} " + " ".join(_capacity(sorted(points), share) for share in SHARES))


def _capacity(points: Sequence[tuple[float, float]], share: float) -> str:
    if points[0][1] < share:
        return f"<{points[0][0]:6.1f}"
    for (rate, good), (next_rate, next_good) in pairwise(points):
        if next_good < share:
            return f"{rate + (next_rate - rate) * (good - share) / (good - next_good):7.1f}"
    return f">{points[-1][0]:6.1f}"


def interference(num_requests: int) -> Iterator[Summary]:
    """The same chats with and without long prompts among them, on 4 workers of the 70B shape."""
    chats = poisson(CHAT_ONLY, rate=4.0, num_requests=num_requests, seed=2)
    longs = (Kind(label="long", share=1.0, prompt_median=32_000, output_median=200),)
    added = poisson(longs, rate=0.12, num_requests=max(1, round(num_requests * 0.03)), seed=3)
    both = sorted(
        [*chats, *(replace(r, index=r.index + num_requests) for r in added)], key=lambda r: r.time_s
    )
    for workers in (
        (
            WorkerGroup(role="prefill", count=2, max_step_tokens=STEP),
            WorkerGroup(role="decode", count=2, max_step_tokens=512),
        ),
        *(
            (WorkerGroup(role="both", count=4, max_step_tokens=chunk, handoffs=False),)
            for chunk in (256, 512, 2048, 8192)
        ),
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
    handoffs = " with handoffs" if group["role"] == "both" and group["handoffs"] else ""
    return f"{group['count']} {group['role']}{speed}{chunk}{handoffs}"


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, help="Mooncake's conversation trace")
    parser.add_argument("--only", default="saturation,policies,slow,view,layouts,interference,scale")
    parser.add_argument("--requests", type=int, default=3000, help="of the trace; 0 for all")
    parser.add_argument(
        "--load", type=float, default=0.0, help="for policies and slow; 0: 80 %% of saturation"
    )
    parser.add_argument("--rates", default="4,5,5.5,6,6.5,7,7.5,8", help="of layouts, per worker")
    parser.add_argument("--chunks", default="192,256,376,512,1024", help="of layouts, of aggregated workers")
    parser.add_argument("--seed", type=int, default=1, help="of layouts' arrivals")
    parser.add_argument("--tpot-ms", type=float, default=40.0, help="target of layouts")
    parser.add_argument("--step-model", default="roofline", choices=STEP_MODELS, help="of layouts")
    parser.add_argument("--nodes", default="2,4", help="workers of layouts: 2 of 4 GPUs are a node")
    parser.add_argument("--policies", default=",".join(POLICY_NAMES))
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    load, compared = arguments.load, arguments.policies.split(",")
    if {"saturation", "policies", "slow", "view"} & set(names):
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
            show("slow", policies(compared, requests, load, HALF_SLOW))
        if "view" in names:
            show("view", [run(replace(mooncake("predictive", SPLIT), control=AT_ONCE), requests, load)])
    if "layouts" in names:
        sweep = LayoutSweep(
            num_requests=arguments.requests,
            rates=[float(rate) for rate in arguments.rates.split(",")],
            chunks=[int(chunk) for chunk in arguments.chunks.split(",")],
            tpot_s=arguments.tpot_ms / 1e3,
            step_model=arguments.step_model,
            seed=arguments.seed,
        )
        for num_workers in (int(count) for count in arguments.nodes.split(",")):
            swept = list(layouts(num_workers, sweep))
            show(f"layouts-{arguments.step_model}-{num_workers}", swept)
            show_capacities(swept)
    if "interference" in names:
        show("interference", list(interference(1500)))
    if "scale" in names:
        show("scale", [scale()])


if __name__ == "__main__":
    main()
