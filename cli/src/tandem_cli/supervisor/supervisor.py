"""Keeps a set of programs running, and stops them in order."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Self

from tandem_cli.supervisor.child_process import ChildProcess, StartFailed
from tandem_cli.supervisor.process_spec import Facts, ProcessSpec, describe_exit
from tandem_cli.supervisor.restart_backoff import RestartBackoff


@dataclass(frozen=True, kw_only=True)
class Started:
    """A program was started; it is not ready yet."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A program is ready; `is_restart` after a crash."""

    name: str
    after_s: float
    is_restart: bool


@dataclass(frozen=True, kw_only=True)
class Crashed:
    """A program ended by itself, and will be started again."""

    name: str
    reason: str
    restart_in_s: float


@dataclass(frozen=True, kw_only=True)
class Killed:
    """A program did not stop when asked, and was killed."""

    name: str


Event = Started | Ready | Crashed | Killed


@dataclass(frozen=True, kw_only=True)
class ProcessState:
    """A running program: its pid, what it said when it was ready, and how often it was started again."""

    name: str
    pid: int
    facts: Facts
    num_restarts: int
    log_path: Path


@dataclass(kw_only=True)
class _Member:
    """A spec, its child of the moment and the task that looks after it."""

    spec: ProcessSpec
    first_ready: asyncio.Future[Facts]
    child: ChildProcess | None = None
    facts: Facts = field(default_factory=dict)
    num_starts: int = 0
    task: asyncio.Task[None] | None = None

    @property
    def has_been_ready(self) -> bool:
        """Whether its first start succeeded: from then on it is started again when it ends."""
        ready = self.first_ready
        return ready.done() and not ready.cancelled() and ready.exception() is None

    @property
    def is_alive(self) -> bool:
        """Whether its program runs."""
        return self.child is not None and self.child.returncode is None


class Supervisor:
    """Async context manager; leaving it kills whatever `stop` has not stopped.

    `log_dir` gets one file per program; `on_event` is called in the event loop with everything that happens.
    """

    def __init__(
        self,
        log_dir: Path,
        *,
        on_event: Callable[[Event], None] = lambda event: None,
        backoff: RestartBackoff | None = None,
    ) -> None:
        self._log_dir = log_dir
        self._on_event = on_event
        self._backoff = backoff or RestartBackoff()
        self._members: dict[str, _Member] = {}
        self._stopping = asyncio.Event()

    @property
    def processes(self) -> Mapping[str, ProcessState]:
        """The programs that run now, by name."""
        return {
            name: ProcessState(
                name=name,
                pid=member.child.pid,
                facts=member.facts,
                num_restarts=member.num_starts - 1,
                log_path=self._log_path(member.spec),
            )
            for name, member in self._members.items()
            if member.child is not None and member.is_alive
        }

    async def start(self, specs: Iterable[ProcessSpec]) -> dict[str, Facts]:
        """Start programs at the same time and wait until all are ready; returns what each said, by name.

        Raises StartFailed as soon as one fails; the others stay until `stop` or the end of the context.
        """
        members = []
        for spec in specs:
            if spec.name in self._members:
                raise ValueError(f"there is a process {spec.name!r} already")
            member = _Member(spec=spec, first_ready=asyncio.get_running_loop().create_future())
            self._members[spec.name] = member
            member.task = asyncio.create_task(self._look_after(member), name=f"supervision of {spec.name}")
            members.append(member)
        facts = await asyncio.gather(*(member.first_ready for member in members))
        return {member.spec.name: fact for member, fact in zip(members, facts, strict=True)}

    async def stop(self, limit_s: float = 4.0) -> None:
        """Ask tier after tier to stop, highest first; kill what has not ended when the time is up."""
        self._stopping.set()
        deadline_s = time.monotonic() + limit_s
        highest_first = sorted(self._members.values(), key=lambda member: -member.spec.tier)
        for _, tier in groupby(highest_first, key=lambda member: member.spec.tier):
            members = list(tier)
            for member in members:
                if member.child is not None:
                    member.child.terminate()
            wait_s = min(
                max(member.spec.stop_wait_s for member in members), max(0.0, deadline_s - time.monotonic())
            )
            await _ended(members, wait_s)
        await _ended(list(self._members.values()), max(0.0, deadline_s - time.monotonic()))
        for member in self._members.values():
            if member.is_alive:
                self._on_event(Killed(name=member.spec.name))
        await self._kill_all()

    def kill(self) -> None:
        """Kill everything now, without asking; `stop` then returns soon."""
        self._stopping.set()
        for member in self._members.values():
            if member.child is not None:
                member.child.kill()

    async def _kill_all(self) -> None:
        self.kill()
        # No task is cancelled: killed programs and `_stopping` end them all, with their files closed.
        tasks = [member.task for member in self._members.values() if member.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        for member in self._members.values():
            member.first_ready.cancel()
        self._members.clear()

    async def _look_after(self, member: _Member) -> None:
        """Start, wait for the end, start again; until stopping or a failed first start."""
        num_failures = 0
        while True:
            started_s = time.monotonic()
            reason = await self._run_once(member, started_s)
            if self._stopping.is_set() or not member.has_been_ready:
                return
            num_failures = self._backoff.next_failures(num_failures, time.monotonic() - started_s)
            wait_s = self._backoff.wait_s(num_failures)
            self._on_event(Crashed(name=member.spec.name, reason=reason, restart_in_s=wait_s))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait_s)
                return

    async def _run_once(self, member: _Member, started_s: float) -> str:
        """One life of a program; returns how it ended."""
        self._on_event(Started(name=member.spec.name))
        try:
            child = await ChildProcess.start(member.spec, self._log_path(member.spec))
        except OSError as error:
            failure = StartFailed(
                member.spec.name,
                f"could not be started: {error.strerror}",
                returncode=None,
                log_tail=(),
            )
            if not member.first_ready.done():
                member.first_ready.set_exception(failure)
            return failure.reason
        member.child = child
        member.num_starts += 1
        try:
            if self._stopping.is_set():
                return "was stopped while it started"
            member.facts = await child.ready()
            after_s = time.monotonic() - started_s
            self._on_event(Ready(name=member.spec.name, after_s=after_s, is_restart=member.has_been_ready))
            if not member.first_ready.done():
                member.first_ready.set_result(member.facts)
            return describe_exit(await child.wait())
        except StartFailed as failure:
            if not member.first_ready.done():
                member.first_ready.set_exception(failure)
            return failure.reason
        finally:
            await child.close()

    def _log_path(self, spec: ProcessSpec) -> Path:
        return self._log_dir / f"{spec.name}.log"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._kill_all()


async def _ended(members: list[_Member], timeout_s: float) -> None:
    """Wait until all programs have ended, or the time is up."""
    tasks = [member.task for member in members if member.task is not None and member.is_alive]
    if tasks:
        await asyncio.wait(tasks, timeout=timeout_s)
