"""What `tandem up` shows: progress while it works, then what is running; plain lines when nobody watches."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tandem_cli.local_stack import StackAddresses
from tandem_cli.supervisor import Crashed, Event, Facts, Killed, ProcessState, Ready, Started, StartFailed


class UpConsole:
    """Context manager around the time of the start; `on_event` may be called before, in and after it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started_s = time.monotonic()
        self._waiting: set[str] = set()
        self._num_ready = 0
        self._live: Live | None = None

    def say(self, message: str) -> None:
        """One line, with the time since the start when there is no progress display."""
        prefix = "" if self._console.is_terminal else f"[{self._elapsed_s:5.1f} s] "
        self._console.print(f"{prefix}{message}", markup=False, highlight=False, soft_wrap=True)

    def on_event(self, event: Event) -> None:
        """Show what happened to a process."""
        match event:
            case Started():
                self._waiting.add(event.name)
            case Ready():
                self._waiting.discard(event.name)
                self._num_ready += 1
                if event.is_restart:
                    self.say(f"{event.name} is back after {event.after_s:.1f} s")
                elif not self._console.is_terminal:
                    self.say(f"{event.name} is ready")
            case Crashed():
                self.say(f"{event.name} {event.reason}; starting it again in {event.restart_in_s:g} s")
            case Killed():
                self.say(f"{event.name} did not stop in time and was killed")

    def failed(self, failure: StartFailed) -> None:
        """Say why the stack did not start: the culprit's own words."""
        if failure.returncode == 2 and failure.log_tail:  # a setting that it cannot use; it said so itself
            self.say(f"{failure.name} did not start: {failure.log_tail[-1]}")
            return
        self.say(f"{failure.name} did not start: it {failure.reason}. Its last lines:")
        for line in failure.log_tail:
            self._console.print(f"    {line}", markup=False, highlight=False, soft_wrap=True)

    def running(
        self, model: ServedModel, addresses: StackAddresses, processes: Mapping[str, ProcessState]
    ) -> None:
        """Say what is running, how to use it and how to stop it."""
        self.say(f"Tandem serves {model.name}, ready after {self._elapsed_s:.1f} s.")
        if short := short_context_line(model, processes):
            self.say(short)
        self._console.print()
        self._console.print(process_table(processes))
        tandem = shlex.quote(_command_as_typed())
        for line in (
            "",
            "Ask it something:",
            f"  {curl_line(addresses.http_address, model.name)}",
            f"  {tandem} chat",
            "",
            f"OpenAI API: http://{addresses.http_address}/v1   gRPC: {addresses.grpc_address}",
            f"Logs: {addresses.log_dir}",
            "Ctrl-C stops everything.",
        ):
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def _progress(self) -> Text:
        waiting = ", ".join(sorted(self._waiting)) or "the first health check"
        return Text(
            f"{self._elapsed_s:5.1f} s  {self._num_ready} processes ready, waiting for {waiting} ...",
            style="cyan",
            overflow="ellipsis",
            no_wrap=True,
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._progress, console=self._console, refresh_per_second=8, transient=True
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """The model of a stack, and the context that it was made for in tokens (0: not known)."""

    name: str
    context_tokens: int


def short_context_line(model: ServedModel, processes: Mapping[str, ProcessState]) -> str | None:
    """What to do when the workers' caches hold less than the model's context; None when they do not."""
    served = min(
        (facts for p in processes.values() if isinstance(facts := p.facts.get("max_context_tokens"), int)),
        default=model.context_tokens,
    )
    if served >= model.context_tokens:
        return None
    return (
        f"Prompt and answer together can have {served:,} tokens, of the {model.context_tokens:,} that the model "
        "was made for: a larger --kv-cache-mib makes room for more."
    )


def process_table(processes: Mapping[str, ProcessState]) -> Table:
    """One row per process: name, pid and what it said about itself when it was ready."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("process", no_wrap=True)
    table.add_column("pid", justify="right", no_wrap=True)
    table.add_column("where")
    for name in sorted(processes):
        process = processes[name]
        table.add_row(name, str(process.pid), Text(_where(process.facts)))
    return table


def _where(facts: Facts) -> str:
    """The addresses in what a process said: HTTP, gRPC and metrics."""
    parts = []
    for key, value in facts.items():
        if key.endswith(("address", "port")) and value:
            kind = key.removesuffix("address").removesuffix("port").strip("_") or "gRPC"
            parts.append(f"{kind.replace('http', 'HTTP')} {str(value).removeprefix('127.0.0.1')}")
    return "  ".join(parts)


def curl_line(http_address: str, model: str) -> str:
    """A request that works as pasted into a shell."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 64,
    }
    url = f"http://{http_address}/v1/chat/completions"
    return f"curl {url} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"


def ready_line(model: str, addresses: StackAddresses, processes: Mapping[str, ProcessState]) -> str:
    """What `tandem up --json-ready` prints on stdout: one JSON object with every address and pid."""
    return json.dumps(
        {
            "ready": "up",
            "model": model,
            "http_address": addresses.http_address,
            "grpc_address": addresses.grpc_address,
            "router_address": addresses.router_address,
            "redis_url": addresses.redis_url,
            "run_dir": str(addresses.run_dir),
            "log_dir": str(addresses.log_dir),
            "pid": os.getpid(),
            "processes": {name: {"pid": process.pid, **process.facts} for name, process in processes.items()},
        }
    )


def _command_as_typed() -> str:
    """How to type this program again from the working directory."""
    program = Path(sys.argv[0])
    if program.name != "tandem" or os.sep not in sys.argv[0]:
        return "tandem"
    relative = os.path.relpath(program)
    return relative if len(relative) < len(str(program)) else str(program)
