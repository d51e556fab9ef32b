"""`tandem simulate`: what a cluster would do with some traffic, on virtual time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from tandem_common.config import ConfigError

if TYPE_CHECKING:
    from tandem_load.traffic import TrafficRequest
    from tandem_sim.scenario import Fault, RouterSetting, WorkerGroup

_FAULT = re.compile(r"(?P<worker>[a-z]+-\d{4})@(?P<time>\d+(\.\d+)?)")


def simulate(
    trace: Annotated[
        Path | None, typer.Option(help="Mooncake (.jsonl) or Azure (.csv) trace, plain or gzipped.")
    ] = None,
    mix: Annotated[
        str | None, typer.Option(help="Instead: made-up traffic, mixed (1 % of 32 k prompts) or chat.")
    ] = None,
    rate: Annotated[float, typer.Option(min=0.001, help="Requests per second of --mix.")] = 10.0,
    requests: Annotated[
        int, typer.Option(min=0, help="Requests sent, the first ones of a trace; 0: the whole trace.")
    ] = 0,
    prefill: Annotated[int, typer.Option(min=0, help="Prefill workers.")] = 0,
    decode: Annotated[int, typer.Option(min=0, help="Decode workers.")] = 0,
    aggregated: Annotated[int, typer.Option(min=0, help="Workers that do both.")] = 0,
    chunk: Annotated[
        int, typer.Option(min=16, help="Tokens of a step of aggregated workers: their chunk of a prompt.")
    ] = 2048,
    handoffs: Annotated[
        bool, typer.Option(help="Whether aggregated workers may prefill for each other.")
    ] = True,
    slow: Annotated[
        float, typer.Option(min=0.01, max=1, help="Speed of every second worker against the others.")
    ] = 1.0,
    gpu: Annotated[str, typer.Option(help="H100, H200, B200 or L40S.")] = "H100",
    model: Annotated[
        str, typer.Option(help="llama-3-8b, llama-3-70b, qwen3-32b or gpt-oss-120b.")
    ] = "llama-3-8b",
    step_model: Annotated[
        str, typer.Option(help="How steps are timed: roofline, fitted or measured (docs/simulation.md).")
    ] = "roofline",
    policy: Annotated[
        str, typer.Option(help="Routing policies, separated by commas: each is simulated.")
    ] = "predictive",
    load: Annotated[
        str,
        typer.Option(help="Factors by which arrivals are sped up, separated by commas: each is simulated."),
    ] = "1",
    network: Annotated[
        str, typer.Option(help="Between hosts: nvlink, pcie, rdma, ethernet-100g or ethernet-10g.")
    ] = "rdma",
    routers: Annotated[
        int, typer.Option(min=1, help="Routers that requests are spread over; they share what they book.")
    ] = 1,
    router: Annotated[
        list[str] | None,
        typer.Option(help="A setting of the routers, as in max_worker_queue_ms=500 or session_affinity=0."),
    ] = None,
    kill: Annotated[
        list[str] | None, typer.Option(help="A worker that dies at a second, as in decode-0003@120.")
    ] = None,
    ttft_ms: Annotated[float, typer.Option(min=1, help="Target that counts as goodput.")] = 2000.0,
    tpot_ms: Annotated[float, typer.Option(min=0.1, help="Target that counts as goodput.")] = 50.0,
    block_size: Annotated[
        int, typer.Option(min=0, help="Tokens per block.", show_default="512 for Mooncake, else 64")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same result.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures here; - for standard output.")
    ] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="Write a page with plots here.")] = None,
) -> None:
    """Replay traffic on simulated GPUs with the real router, scheduler and planner.

    Example: tandem simulate --mix mixed --rate 20 --requests 2000 --prefill 2 --decode 2 --html page.html
    """
    try:
        from tandem_load.traffic import faster, mean_rate
        from tandem_sim.page import html_page
        from tandem_sim.report import Run, summarise, table, to_json
        from tandem_sim.scenario import Scenario, Targets
        from tandem_sim.simulation import Simulation
    except ImportError:
        raise ConfigError("the simulator is not installed; install the package tandem-sim (sim/)") from None
    try:
        sent = _traffic(trace, mix, rate, requests, seed)
        has_blocks = any(request.segments for request in sent)
        summaries = []
        for name in policy.split(","):
            for factor in load.split(","):
                scenario = Scenario(
                    model=model,
                    step_model=step_model,
                    workers=_workers(
                        {"prefill": prefill, "decode": decode, "both": aggregated},
                        gpu,
                        slow,
                        chunk,
                        handoffs=handoffs,
                    ),
                    policy=name,
                    seed=seed,
                    block_size=block_size or (512 if has_blocks else 64),
                    network=network,
                    num_routers=routers,
                    router=dict(_setting(text) for text in router or ()),
                    targets=Targets(ttft_s=ttft_ms / 1e3, tpot_s=tpot_ms / 1e3),
                    faults=tuple(_fault(text) for text in kill or ()),
                )
                scaled = faster(sent, float(factor))
                run = Run(
                    scenario=scenario,
                    load=float(factor),
                    rate=mean_rate(scaled),
                    measurement=Simulation(scenario).run(scaled),
                )
                summaries.append(summarise(run))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    text = to_json(summaries)
    if json_file is not None and str(json_file) == "-":
        typer.echo(text, nl=False)
    else:
        typer.echo(table(summaries))
        if json_file is not None:
            json_file.write_text(text, encoding="utf-8")
    if html_file is not None:
        source = trace.name if trace is not None else f"{mix} traffic"
        html_file.write_text(html_page(f"Tandem simulation: {source}, {model}", summaries), encoding="utf-8")


def _traffic(
    trace: Path | None, mix: str | None, rate: float, num_requests: int, seed: int
) -> list[TrafficRequest]:
    from tandem_load.traces import load_trace
    from tandem_sim.synthetic import MIXES, poisson

    if (trace is None) == (mix is None):
        raise ConfigError("pass either --trace FILE or --mix NAME")
    if trace is not None:
        return load_trace(trace, num_requests or None)
    if mix not in MIXES:
        raise ConfigError(f"--mix {mix}: must be one of {', '.join(MIXES)}")
    return poisson(MIXES[mix], rate=rate, num_requests=num_requests or 1000, seed=seed)


def _workers(
    counts: dict[str, int], gpu: str, slow: float, chunk: int, *, handoffs: bool
) -> tuple[WorkerGroup, ...]:
    from tandem_sim.scenario import WorkerGroup

    groups = []
    for role, count in counts.items():
        num_slow = count // 2 if slow < 1 else 0
        max_step_tokens = chunk if role == "both" else 8192
        for number, speed in ((count - num_slow, 1.0), (num_slow, slow)):
            if number:
                groups.append(
                    WorkerGroup(
                        role=role,
                        count=number,
                        gpu=gpu,
                        speed=speed,
                        max_step_tokens=max_step_tokens,
                        handoffs=handoffs or role != "both",
                    )
                )
    return tuple(groups)


def _setting(text: str) -> tuple[str, RouterSetting]:
    from tandem_sim.routers import router_setting_kinds

    name, _, value = text.partition("=")
    kinds = router_setting_kinds()
    if not value or name not in kinds:
        raise ConfigError(
            f"--router {text}: expected a setting of tandem-router and its value, as in name=value"
        )
    try:
        match kinds[name]:
            case "int":
                return name, int(value)
            case "float":
                return name, float(value)
            case "str":
                return name, value
            case _:
                return name, tuple(value.split(","))
    except ValueError:
        raise ConfigError(f"--router {text}: {value!r} is not a {kinds[name]}") from None


def _fault(text: str) -> Fault:
    from tandem_sim.scenario import Fault

    match = _FAULT.fullmatch(text)
    if match is None:
        raise ConfigError(f"--kill {text}: expected a worker and a second, as in decode-0003@120")
    return Fault(worker_id=match["worker"], time_s=float(match["time"]))
