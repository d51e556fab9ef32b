"""Further frontend processes behind the same ports: one event loop per core, the kernel shares connections out.

The process that was started is the first; it starts the others with its own command line, starts again what ends,
and stops them when it stops. Each has sessions, metrics and a place in the registry of its own. Should the first be
killed, the others see the end of their standard input and stop.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence

from tandem_common.config import ConfigError
from tandem_common.logs import get_logger
from tandem_common.service import Lifecycle

_START_TIMEOUT_S = 60.0
_RESTART_PAUSE_S = 1.0

_log = get_logger("siblings")


class Siblings:
    """Owns `count` processes from `start` to `stop`."""

    def __init__(self, count: int, argv: Sequence[str], *, stop_timeout_s: float) -> None:
        """`argv` are the flags for each; they settle everything, ports included."""
        self._count = count
        self._argv = argv
        self._stop_timeout_s = stop_timeout_s
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Return when all are ready; ConfigError when one does not become so."""
        processes = await asyncio.gather(*(self._start_one() for _ in range(self._count)))
        self._keepers = [asyncio.create_task(self._keep(process), name="sibling") for process in processes]

    async def stop(self) -> None:
        """Let them drain, and kill what does not end in time. Idempotent."""
        keepers, self._keepers = self._keepers, []
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)

    async def _start_one(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tandem_frontend",
            *self._argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                line = await process.stdout.readline()
            if not line or json.loads(line).get("ready") != "frontend":
                raise ConfigError(
                    "workers: a further frontend process did not start; see its log lines above"
                )
        except BaseException:
            await self._end(process)
            raise
        return process

    async def _keep(self, process: asyncio.subprocess.Process) -> None:
        """Start it again whenever it ends, until cancelled."""
        try:
            while True:
                await process.wait()
                _log.error(
                    "a further frontend process ended; starting it again", exit_code=process.returncode
                )
                await asyncio.sleep(_RESTART_PAUSE_S)
                try:
                    process = await self._start_one()
                except (ConfigError, OSError, TimeoutError) as error:
                    _log.error("a further frontend process does not start", error=str(error))
        finally:
            await self._end(process)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(self._stop_timeout_s):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def sibling_flags(argv: Sequence[str], *, http_port: int, port: int, metrics_port: int) -> list[str]:
    """The flags of a process that joins the one with `argv`: the last of a flag counts.

    Metrics ports cannot be shared: any free one, unless there is none at all.
    """
    settled = {
        "--workers": 1,
        "--joins": "true",
        "--http-port": http_port,
        "--port": port,
        "--metrics-port": min(0, metrics_port),
    }
    return [*argv, *(str(part) for flag in settled.items() for part in flag)]


def stop_with_standard_input(lifecycle: Lifecycle) -> None:
    """Ask for a stop when whoever started this process is gone."""
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()

    def on_readable() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            lifecycle.request_stop()

    loop.add_reader(descriptor, on_readable)
