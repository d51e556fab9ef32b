"""An engine in the event loop itself, for a runner that only takes time: no thread, and one wake-up per step.

What a real engine computes in its thread or on a device is a pause here. A thread for it would cost a worker more than
the simulated model does: two threads that wake each other for every step, with cold caches each, and one interpreter
between them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from tandem_engine.alarm import Alarm
from tandem_engine.api import EngineDied, StepCost
from tandem_engine.batch import Batch, Draw, Runner
from tandem_engine.config import EngineConfig
from tandem_engine.engine_core import EngineCore
from tandem_engine.inbox import Command, Inbox
from tandem_engine.local_engine import LocalEngine


class PausingRunner(Runner, Protocol):
    """A runner whose steps are a little work and a long wait."""

    def begin(self, batch: Batch) -> tuple[list[Draw], StepCost]:
        """What `execute` gives, at once, and what it would have cost by when it would have given it."""
        ...


class LoopEngine(LocalEngine):
    """`Engine` of tandem_engine.api over such a runner. Start, use and stop it in one event loop, once."""

    def __init__(self, config: EngineConfig, runner: PausingRunner) -> None:
        super().__init__(config, runner, _LoopInbox(self._wake))
        self._pausing = runner
        self._loop: asyncio.AbstractEventLoop | None = None
        self._alarm: Alarm | None = None
        self._is_awake = False  # a step is under way, or the next one is to be chosen soon
        self._step: tuple[Batch, list[Draw], StepCost] | None = None
        self._checking: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Load the model; raises what is wrong with it."""
        if self._loop is not None:
            raise RuntimeError("the engine was started before")
        self._loop = asyncio.get_running_loop()
        try:
            info = self._runner.load()
            self._alarm = Alarm(self._on_step_end)
        except BaseException:
            self._has_ended.set()
            self._runner.close()
            raise
        self._core = EngineCore(self._config, info, self._runner, self._inbox, self._outbox)

    async def stop(self) -> None:
        """End all requests silently and free everything. Idempotent."""
        if self._core is None:
            self._outbox.close()
            return
        self._inbox.put(self._halt)
        await self._has_ended.wait()

    def _wake(self) -> None:
        """A command came: it is run between two steps."""
        if not self._is_awake and self._loop is not None and not self._has_ended.is_set():
            self._is_awake = True
            if self._checking is not None:
                self._checking.cancel()
                self._checking = None
            self._loop.call_soon(self._guarded, self._next_step)

    def _on_step_end(self) -> None:
        self._guarded(self._end_step)

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do it; whatever it raises is the engine's death."""
        try:
            work()
            # After the next step has begun, as the tokens of a device are passed on while it computes.
            self._outbox.hand_over()
            if not self._is_awake and not self._inbox.is_empty:
                self._wake()
        except Exception as problem:  # noqa: BLE001 - the same as the end of a thread
            error = EngineDied(f"the engine failed: {type(problem).__name__}")
            error.__cause__ = problem
            self._leave(error)

    def _next_step(self) -> None:
        core, loop = self._started(), self._loop
        assert loop is not None
        assert self._alarm is not None
        batch = core.next_batch()
        if core.halted:
            self._leave(None)
        elif batch.sequences:
            started_ns = time.monotonic_ns()
            drawn, cost = self._pausing.begin(batch)
            self._step = batch, drawn, cost
            if cost.duration_ms > 0:
                self._alarm.set(started_ns + int(1e6 * cost.duration_ms))
            else:
                loop.call_soon(self._on_step_end)
        else:
            self._is_awake = False
            self._checking = loop.call_later(core.check_pause_s(), self._guarded, core.check)

    def _end_step(self) -> None:
        assert self._step is not None
        step, self._step = self._step, None
        self._started().finish(*step)
        self._next_step()

    def _leave(self, error: Exception | None) -> None:
        if self._alarm is not None:
            self._alarm.close()
        self._runner.close()
        self._end(error)


class _LoopInbox(Inbox):
    """Commands of an event loop to itself."""

    def __init__(self, wake: Callable[[], None]) -> None:
        super().__init__()
        self._wake = wake

    def put(self, command: Command) -> None:
        """Queue a command and wake the engine if it is idle."""
        super().put(command)
        self._wake()
