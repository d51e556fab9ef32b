"""`tandem up`: the whole stack on this machine."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from tandem_common.model_source import read_json, resolve_model, served_name

from tandem_cli.local_stack import LocalStack
from tandem_cli.ports import can_listen, choose_port
from tandem_cli.shipped_model import find_shipped_model
from tandem_cli.stack_options import StackOptions
from tandem_cli.supervisor import StartFailed
from tandem_cli.up_console import ServedModel, UpConsole, ready_line

DEFAULT_HTTP_PORT = 8000
DEFAULT_GRPC_PORT = 8001
_STOP_LIMIT_S = 4.0


class EngineName(StrEnum):
    """What computes."""

    TORCH = "torch"
    SIMULATED = "simulated"


class DtypeName(StrEnum):
    """Number format of weights, keys and values."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class LogLevel(StrEnum):
    """Least severe level that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class _Ending:
    """How `tandem up` ended."""

    exit_code: int


def up(
    model: Annotated[
        str,
        typer.Option(
            help="Directory of a model, or a Hugging Face hub id.", show_default="the shipped model"
        ),
    ] = "",
    prefill: Annotated[int, typer.Option(min=0, help="Workers that read prompts.")] = 2,
    decode: Annotated[int, typer.Option(min=0, help="Workers that write tokens.")] = 2,
    aggregated: Annotated[int, typer.Option(min=0, help="Workers that do both.")] = 0,
    engine: Annotated[
        EngineName, typer.Option(help="What computes; simulated answers without computing anything.")
    ] = EngineName.TORCH,
    http_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="OpenAI API; 0: any.",
            show_default=f"{DEFAULT_HTTP_PORT}, or the next free one",
        ),
    ] = None,
    grpc_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="gRPC API; 0: any.",
            show_default=f"{DEFAULT_GRPC_PORT}, or the next free one",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address that all services listen on.")] = "127.0.0.1",
    redis: Annotated[
        str | None,
        typer.Option(
            envvar="TANDEM_REDIS_URL",
            help="URL of a Redis to use, such as redis://HOST:6379/0.",
            show_default="a private one",
            show_envvar=True,
        ),
    ] = None,
    cluster: Annotated[
        str, typer.Option(help="Name that keeps stacks apart which share a Redis.")
    ] = "default",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads per worker.", show_default="the cores, shared evenly")
    ] = None,
    dtype: Annotated[
        DtypeName, typer.Option(help="Number format; auto: float32 on a CPU, the model's own on a GPU.")
    ] = DtypeName.AUTO,
    block_size: Annotated[
        int | None, typer.Option(min=1, help="Tokens per block.", show_default="16")
    ] = None,
    kv_cache_mib: Annotated[
        int | None, typer.Option(min=1, help="Keys and values of each worker, in MiB.", show_default="512")
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="How the router chooses workers: predictive, dynamo, cache_aware, least_loaded, power_of_two, "
            "round_robin, random.",
            show_default="predictive",
        ),
    ] = None,
    log_dir: Annotated[
        Path | None,
        typer.Option(help="Where the processes' logs go, one file each.", show_default="removed at the end"),
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="Least severe level that is logged.")] = LogLevel.INFO,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SERVICE.NAME=VALUE",
            help="Any other setting of a service (frontend, router, planner, worker), such as "
            "worker.max_sequences=32; may be repeated.",
        ),
    ] = None,
    json_ready: Annotated[
        bool,
        typer.Option("--json-ready", help="When ready, print one JSON line with all addresses and pids."),
    ] = False,
) -> None:
    """Start router, planner, workers, frontend and a private Redis, and keep them running until Ctrl-C.

    Without options it serves the small model that ships with Tandem, with two workers that read prompts and
    two that write tokens. A crashed process is started again; if one cannot start at all, everything stops.

    With --redis, give all hosts of a cluster the same TANDEM_CLUSTER_SECRET (it is made up otherwise).
    """
    console = Console(stderr=json_ready, soft_wrap=False)
    chosen_model = model or str(find_shipped_model())
    if not Path(chosen_model).expanduser().is_dir():
        console.print(
            f"Looking for {chosen_model} on the Hugging Face hub ...", markup=False, highlight=False
        )
    chosen_http = choose_port(
        http_port, DEFAULT_HTTP_PORT, flag="--http-port", is_free=lambda port: can_listen(host, port)
    )
    chosen_grpc = choose_port(
        grpc_port,
        DEFAULT_GRPC_PORT,
        flag="--grpc-port",
        is_free=lambda port: can_listen(host, port),
        avoid=frozenset({chosen_http}),
    )
    options = StackOptions(
        model_dir=resolve_model(chosen_model).resolve(),
        served_model_name=served_name(chosen_model),
        http_port=chosen_http,
        grpc_port=chosen_grpc,
        num_prefill=prefill,
        num_decode=decode,
        num_aggregated=aggregated,
        engine=engine.value,
        host=host,
        redis_url=redis,
        cluster=cluster,
        cluster_secret=os.environ.get("TANDEM_CLUSTER_SECRET") or secrets.token_hex(16),
        threads=threads,
        dtype=dtype.value,
        block_size=block_size,
        kv_cache_mib=kv_cache_mib,
        policy=policy,
        log_level=log_level.value,
        settings=parse_settings(setting or []),
    )
    ending = asyncio.run(_run(options, log_dir, UpConsole(console), json_ready=json_ready))
    raise typer.Exit(ending.exit_code)


def parse_settings(texts: list[str]) -> dict[str, dict[str, str]]:
    """SERVICE.NAME=VALUE texts by service and name; BadParameter for any other form."""
    settings: dict[str, dict[str, str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        service, dot, name = key.partition(".")
        if not (equals and dot and name) or service not in ("frontend", "router", "planner", "worker"):
            raise typer.BadParameter(
                f"{text!r}: write SERVICE.NAME=VALUE with frontend, router, planner or worker as SERVICE"
            )
        settings.setdefault(service, {})[name.replace("-", "_")] = value
    return settings


async def _run(
    options: StackOptions, log_dir: Path | None, console: UpConsole, *, json_ready: bool
) -> _Ending:
    """Start, wait for a signal, stop; a second signal kills."""
    stack = LocalStack(options, log_dir=log_dir, on_event=console.on_event)
    interrupted = asyncio.Event()

    def on_signal() -> None:
        if interrupted.is_set():
            stack.kill()
        interrupted.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as nohup asks
            loop.add_signal_handler(number, on_signal)
    watching = asyncio.create_task(interrupted.wait())
    try:
        with console:
            starting = asyncio.create_task(stack.__aenter__())
            await asyncio.wait((starting, watching), return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                await asyncio.wait((starting,))
                console.say("Stopped before it was ready.")
                return _Ending(exit_code=130)
            try:
                starting.result()
            except StartFailed as failure:
                console.failed(failure)
                return _Ending(exit_code=1)
        if json_ready:
            sys.stdout.write(ready_line(options.served_model_name, stack.addresses, stack.processes) + "\n")
            sys.stdout.flush()
        else:
            context = read_json(options.model_dir / "config.json").get("max_position_embeddings")
            model = ServedModel(
                name=options.served_model_name, context_tokens=context if isinstance(context, int) else 0
            )
            console.running(model, stack.addresses, stack.processes)
        await watching
        console.say("Stopping ...")
        await stack.stop(_STOP_LIMIT_S)
        console.say("Stopped; nothing is left running.")
        return _Ending(exit_code=0)
    finally:
        watching.cancel()
        await stack.stop(_STOP_LIMIT_S)
