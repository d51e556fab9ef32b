"""What every service's `__main__` does: configure, run until told to stop, exit with an honest code.

Exit codes: 0 after a clean stop, 2 for a configuration that cannot be used, 1 for anything else. The first
SIGTERM or SIGINT asks for a clean stop, the second ends the process at once.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import uvloop

from tandem_common.config import ConfigError, ServiceConfig, load_config
from tandem_common.logs import configure_logging, get_logger
from tandem_common.telemetry import configure_tracing, shutdown_tracing

C = TypeVar("C", bound=ServiceConfig)

# Objects made before the youngest generation is looked at; Python's default is 700.
_GC_THRESHOLD = 20_000


class Lifecycle:
    """Between a service and whoever started it: "I am ready" one way, "stop" the other."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._stop = asyncio.Event()

    def ready(self, **facts: str | int) -> None:
        """Print the one line that a supervisor waits for; stdout carries nothing else."""
        _spare_the_collector()
        print(json.dumps({"ready": self._service, **facts}), flush=True)  # noqa: T201

    async def stopping(self) -> None:
        """Return when the service should stop."""
        await self._stop.wait()

    def request_stop(self) -> None:
        """Ask the service to stop, as a signal would."""
        self._stop.set()


def _spare_the_collector() -> None:
    """Keep what was made at start, modules mostly, out of garbage collection, and collect less often.

    A full collection visits every object of every module and stops the event loop for as long. Requests leave few
    cycles behind, so rarer collections keep little.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, 20, 100)


def run_service(
    config_class: type[C], service: str, serve: Callable[[C, Lifecycle], Awaitable[None]]
) -> None:
    """Load the configuration, run `serve` to its end, and exit the process."""
    try:
        config = load_config(config_class, service, sys.argv[1:], os.environ)
        configure_logging(service, level=config.log_level, format=config.log_format)
        configure_tracing(service)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve_until_stopped(config, service, serve))
    except ConfigError as error:
        sys.stderr.write(f"tandem-{service}: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        shutdown_tracing()


async def _serve_until_stopped(
    config: C, service: str, serve: Callable[[C, Lifecycle], Awaitable[None]]
) -> None:
    lifecycle = Lifecycle(service)
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if lifecycle._stop.is_set():  # noqa: SLF001 - the lifecycle is made here
            os._exit(128 + number)
        get_logger("service").info("stopping", signal=number.name)
        lifecycle.request_stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    await serve(config, lifecycle)
