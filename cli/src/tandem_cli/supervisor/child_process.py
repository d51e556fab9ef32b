"""One running program: started in a process group of its own, ready when it says so, and stopped as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from pathlib import Path
from typing import BinaryIO

from tandem_cli.supervisor.process_spec import Facts, ProcessSpec, describe_exit, parse_ready_line

_LAUNCHER = Path(__file__).with_name("launcher.py")
_MAX_READY_LINE_BYTES = 64 * 1024
_PING_INTERVAL_S = 0.02


class StartFailed(Exception):
    """A program ended, or said nothing, before it was ready. `log_tail` are the last lines that it wrote."""

    def __init__(self, name: str, reason: str, *, returncode: int | None, log_tail: tuple[str, ...]) -> None:
        super().__init__(f"{name} {reason}")
        self.name = name
        self.reason = reason
        self.returncode = returncode
        self.log_tail = log_tail


class ChildProcess:
    """A started program; `close` must be called in the end. Its output goes to the end of `log_path`.

    Must be started from the main thread (or one that lives as long as the child should): the kernel ties the
    child's life to the thread that started it.
    """

    def __init__(self, spec: ProcessSpec, process: asyncio.subprocess.Process, log: BinaryIO) -> None:
        self._spec = spec
        self._process = process
        self._log = log
        self._closed = False
        self._ready: asyncio.Future[Facts] = asyncio.get_running_loop().create_future()
        self._output = asyncio.create_task(self._pump(), name=f"output of {spec.name}")
        self._tasks = [self._output]
        if spec.ready_socket is not None:
            self._tasks.append(
                asyncio.create_task(self._ping(spec.ready_socket), name=f"ping of {spec.name}")
            )

    @classmethod
    async def start(cls, spec: ProcessSpec, log_path: Path) -> ChildProcess:
        """Start the program; returns at once."""
        log = log_path.open("ab", buffering=0)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                str(_LAUNCHER),
                str(os.getpid()),
                *spec.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=dict(spec.environ),
                process_group=0,
            )
        except BaseException:
            log.close()
            raise
        return cls(spec, process, log)

    @property
    def pid(self) -> int:
        """Process id, and process group id as well."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.returncode

    async def ready(self) -> Facts:
        """Wait until the program is ready; raises StartFailed."""
        exited = asyncio.ensure_future(self._process.wait())
        try:
            await asyncio.wait(
                (self._ready, exited),
                timeout=self._spec.start_timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            exited.cancel()
        if self._ready.done():
            return self._ready.result()
        if self.returncode is None:
            reason = f"was not ready after {self._spec.start_timeout_s:g} s"
        else:
            reason = describe_exit(self.returncode)
            # What it wrote last may still be in the pipe, which something that it started may hold open.
            await asyncio.wait((self._output,), timeout=0.5)
        raise StartFailed(self._spec.name, reason, returncode=self.returncode, log_tail=self.log_tail())

    async def wait(self) -> int:
        """Wait until the program has ended; returns its code."""
        return await self._process.wait()

    def terminate(self) -> None:
        """Ask the program to stop."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """End the program and whatever it started, now; nothing after `close`, when the number may be another's."""
        if self._closed:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def close(self) -> None:
        """Kill what is left, wait for its end, and free everything held for it."""
        try:
            self.kill()
            await self._process.wait()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            self._closed = True
            self._ready.cancel()
            self._log.close()

    def log_tail(self, num_lines: int = 15) -> tuple[str, ...]:
        """The last lines that the program wrote."""
        with contextlib.suppress(OSError), Path(self._log.name).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 32 * 1024))
            lines = log.read().decode("utf-8", "replace").splitlines()
            return tuple(deque((line for line in lines if line.strip()), num_lines))
        return ()

    async def _pump(self) -> None:
        """Take everything from stdout, so that the program never blocks on it; look for the ready line."""
        assert self._process.stdout is not None
        pending = b""
        while chunk := await self._process.stdout.read(64 * 1024):
            *lines, pending = (pending + chunk).split(b"\n")
            if len(pending) > _MAX_READY_LINE_BYTES:  # no line that anybody waits for
                self._log.write(pending)
                pending = b""
            for line in lines:
                facts = None if self._ready.done() or self._spec.ready_socket else parse_ready_line(line)
                if facts is None:
                    self._log.write(line + b"\n")
                else:
                    self._ready.set_result(facts)
        self._log.write(pending)

    async def _ping(self, socket_path: Path) -> None:
        """Ask a Redis until it answers."""
        while not self._ready.done():
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1.0):
                    reader, writer = await asyncio.open_unix_connection(socket_path)
                    try:
                        writer.write(b"PING\r\n")
                        if (await reader.readline()).startswith(b"+PONG"):
                            self._ready.set_result({})
                    finally:
                        writer.close()
            await asyncio.sleep(_PING_INTERVAL_S)
