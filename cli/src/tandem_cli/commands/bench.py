"""`tandem bench`: load on a server, and what it felt like from outside."""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.status import Status
from tandem_common.config import ConfigError
from tandem_load.bench_page import bench_page
from tandem_load.conversation import PromptShape
from tandem_load.load_task import LatencyTargets, Replay
from tandem_load.probe import ProbeError, probe
from tandem_load.summary import DEFINITIONS, Summary
from tandem_load.target import Target, TargetError

from tandem_cli.bench_plan import (
    DEFAULT_DURATION_S,
    DEFAULT_WARMUP_S,
    BenchPlan,
    parse_lengths,
    parse_traffic,
    target_s,
)
from tandem_cli.bench_run import run_points
from tandem_cli.bench_table import print_figures
from tandem_cli.run_file import run_files_dir, running_stacks

_SERVER, _LOAD, _PROMPTS, _TARGETS, _OUTPUT = (
    "Server",
    "How much load (one of --concurrency, --rate, --trace)",
    "What is asked",
    "Targets of goodput (0: none)",
    "Output",
)


class Endpoint(StrEnum):
    """What requests are sent to."""

    CHAT = "chat"
    COMPLETIONS = "completions"


class ArrivalKind(StrEnum):
    """How an open loop's requests come."""

    POISSON = "poisson"
    EVEN = "even"


def bench(
    url: Annotated[
        str | None,
        typer.Option(
            help="Address of an OpenAI-compatible server, http or https.",
            show_default="the stack on this machine, else http://127.0.0.1:8000",
            metavar="URL",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model to ask.",
            show_default="the first that is served",
            metavar="NAME",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    endpoint: Annotated[Endpoint, typer.Option(rich_help_panel=_SERVER)] = Endpoint.CHAT,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar=["TANDEM_CLI_API_KEY", "OPENAI_API_KEY"],
            help="Key that the server asks for; better in the environment than on the command line.",
            metavar="KEY",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            min=0.1,
            help="Seconds after which a request counts as failed.",
            metavar="SECONDS",
            rich_help_panel=_SERVER,
        ),
    ] = 600.0,
    concurrency: Annotated[
        str | None,
        typer.Option(
            help="Closed loop: so many clients, each asks again when it was answered. Several numbers are a sweep.",
            show_default="1,4,16",
            metavar="N,N,...",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            help="Open loop: requests per second that come whatever the server does. Several numbers are a sweep.",
            metavar="N,N,...",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    arrivals: Annotated[
        ArrivalKind, typer.Option(help="How the requests of --rate come.", rich_help_panel=_LOAD)
    ] = ArrivalKind.POISSON,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Open loop: replay a Mooncake (.jsonl) or Azure (.csv) trace, plain or gzipped.",
            metavar="FILE",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    speed: Annotated[
        str,
        typer.Option(
            help="Factor by which the trace is sped up. Several numbers are a sweep.",
            metavar="N,N,...",
            rich_help_panel=_LOAD,
        ),
    ] = "1",
    length_scale: Annotated[
        float,
        typer.Option(
            min=0.0001,
            help="Factor for the trace's lengths, for small models.",
            metavar="FACTOR",
            rich_help_panel=_LOAD,
        ),
    ] = 1.0,
    duration: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Seconds in which the requests that are measured are sent; all of them are waited for.",
            show_default="5, or as long as --requests or --trace take",
            metavar="SECONDS",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            min=1, help="Send so many measured requests at most.", metavar="N", rich_help_panel=_LOAD
        ),
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Seconds of the same load before, not measured.",
            show_default="1; 0 for a trace",
            metavar="SECONDS",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    input_tokens: Annotated[
        str,
        typer.Option(
            help="Length of a prompt: 512, 128-1024 (evenly drawn) or 512~2048 (log-normal, median~p99).",
            metavar="LENGTH",
            rich_help_panel=_PROMPTS,
        ),
    ] = "256",
    output_tokens: Annotated[
        str, typer.Option(help="Length of an answer, likewise.", metavar="LENGTH", rich_help_panel=_PROMPTS)
    ] = "64",
    shared_prefix: Annotated[
        int,
        typer.Option(
            min=0,
            help="Tokens that prompts have in common, in front of the others.",
            metavar="TOKENS",
            rich_help_panel=_PROMPTS,
        ),
    ] = 0,
    prefixes: Annotated[
        int,
        typer.Option(
            min=1, help="How many such beginnings there are.", metavar="N", rich_help_panel=_PROMPTS
        ),
    ] = 1,
    turns: Annotated[
        int,
        typer.Option(
            min=1,
            help="Requests of one conversation: each sends all before it and --input-tokens more.",
            metavar="N",
            rich_help_panel=_PROMPTS,
        ),
    ] = 1,
    think: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Seconds between an answer and the next turn.",
            metavar="SECONDS",
            rich_help_panel=_PROMPTS,
        ),
    ] = 0.0,
    ignore_eos: Annotated[
        bool,
        typer.Option(
            help="Ask for answers of exactly --output-tokens, if the server knows ignore_eos.",
            rich_help_panel=_PROMPTS,
        ),
    ] = True,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="The same seed asks the same. Use another one for the same server again, or its cache answers.",
            show_default="a random one, which is printed",
            metavar="N",
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    slo_ttft_ms: Annotated[
        float, typer.Option(min=0.0, help="Time to the first token.", metavar="MS", rich_help_panel=_TARGETS)
    ] = 2000.0,
    slo_tpot_ms: Annotated[
        float,
        typer.Option(min=0.0, help="Mean time per further token.", metavar="MS", rich_help_panel=_TARGETS),
    ] = 50.0,
    slo_itl_ms: Annotated[
        float,
        typer.Option(min=0.0, help="Longest gap between two tokens.", metavar="MS", rich_help_panel=_TARGETS),
    ] = 0.0,
    slo_e2e_ms: Annotated[
        float, typer.Option(min=0.0, help="Whole answer.", metavar="MS", rich_help_panel=_TARGETS)
    ] = 0.0,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="Write all figures here; - for standard output.",
            metavar="FILE",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    html_file: Annotated[
        Path | None,
        typer.Option("--html", help="Write a page with plots here.", metavar="FILE", rich_help_panel=_OUTPUT),
    ] = None,
) -> None:
    """Load a server and measure what its clients would feel: latencies, goodput, throughput.

    Works with any OpenAI-compatible server. Without options it takes 20 seconds: 1, 4 and 16 clients in turn.
    Ctrl-C ends it with what was measured so far. docs/benchmarking.md defines the figures.

    Example: tandem bench --rate 2,4,8 --input-tokens 512 --output-tokens 128 --html report.html
    """
    for file in (json_file, html_file):
        if file is not None and str(file) != "-" and not file.absolute().parent.is_dir():
            raise ConfigError(f"there is no directory {file.parent} to write {file.name} into")
    traffic = parse_traffic(
        concurrency, rate, trace, evenly=arrivals is ArrivalKind.EVEN, speed=speed, length_scale=length_scale
    )
    has_end = requests is not None or trace is not None
    plan = BenchPlan(
        traffic=traffic,
        shape=PromptShape(
            input_tokens=parse_lengths("--input-tokens", input_tokens),
            output_tokens=parse_lengths("--output-tokens", output_tokens),
            shared_prefix_tokens=shared_prefix,
            num_prefixes=prefixes,
            num_turns=turns,
            think_s=think,
        ),
        targets=LatencyTargets(
            ttft_s=target_s(slo_ttft_ms),
            tpot_s=target_s(slo_tpot_ms),
            itl_s=target_s(slo_itl_ms),
            e2e_s=target_s(slo_e2e_ms),
        ),
        warmup_s=(0.0 if trace is not None else DEFAULT_WARMUP_S) if warmup is None else warmup,
        duration_s=duration if duration is not None or has_end else DEFAULT_DURATION_S,
        max_requests=requests,
        timeout_s=timeout,
        seed=secrets.randbelow(10**6) if seed is None else seed,
    )
    report = _measure(plan, url or _local_url(), api_key or "", model, endpoint, ignore_eos=ignore_eos)
    report["trace"] = trace.name if isinstance(traffic[0], Replay) and trace is not None else ""
    text = msgspec.json.format(msgspec.json.encode(report), indent=1).decode() + "\n"
    if json_file is not None and str(json_file) == "-":
        typer.echo(text, nl=False)
    else:
        print_figures(report, Console())
        if json_file is not None:
            json_file.write_text(text, encoding="utf-8")
    if html_file is not None:
        html_file.write_text(bench_page(report), encoding="utf-8")
        Console(stderr=True).print(f"wrote {html_file}", style="dim", highlight=False)
    if not any(point["num_done"] for point in report["points"]):
        raise typer.Exit(1)


def _measure(
    plan: BenchPlan, url: str, api_key: str, model: str | None, endpoint: Endpoint, *, ignore_eos: bool
) -> Summary:
    console = Console(stderr=True)
    try:
        target = Target.parse(url, api_key)
        with Status(f"asking {target.url} what it serves", console=console):
            found = probe(target, model, endpoint.value, ignore_eos=ignore_eos, seed=plan.seed)
    except (TargetError, ProbeError) as error:
        raise ConfigError(str(error)) from None
    started = datetime.now(UTC)
    console.print(
        f"{found.dialect.model} at {target.url}, seed {plan.seed}", style="dim", highlight=False, markup=False
    )
    points = run_points(plan.tasks(target, found.dialect), console)
    return {
        "url": target.url,
        "endpoint": endpoint.value,
        "model": found.dialect.model,
        "started": f"{started:%Y-%m-%d %H:%M:%S} UTC",
        "seed": plan.seed,
        "asked": msgspec.to_builtins(plan.shape)
        | {"input_tokens": str(plan.shape.input_tokens), "output_tokens": str(plan.shape.output_tokens)},
        "words": {
            "tokens_per_word": found.dialect.tokens_per_word,
            "overhead_tokens": found.dialect.overhead_tokens,
        },
        "notes": found.notes,
        "definitions": DEFINITIONS,
        "points": points,
    }


def _local_url() -> str:
    stacks = running_stacks(run_files_dir(os.environ))
    return f"http://{stacks[0].http_address if stacks else '127.0.0.1:8000'}"
