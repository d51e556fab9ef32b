"""An engine in a thread of this process: a scheduler, a pool of blocks and a model runner behind the Engine seam.

The event loop puts commands into the inbox; the engine's thread runs them between two steps, and puts what each
step made known into the outbox. They share nothing else but the scheduler for the length of a snapshot.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future

from tandem_common.errors import Unavailable
from tandem_common.generation import Generation

from tandem_engine.api import EngineDied, EngineInfo, EngineSnapshot, PrefillMode, StepOutput
from tandem_engine.batch import Runner
from tandem_engine.block_exchange import LocalBlockExchange
from tandem_engine.config import EngineConfig
from tandem_engine.engine_core import EngineCore
from tandem_engine.inbox import Inbox
from tandem_engine.outbox import Outbox
from tandem_engine.snapshot import take_snapshot

# Outputs that the consumer of `steps` may lag behind before no more is computed.
_MAX_UNREAD_OUTPUTS = 256


class LocalEngine:
    """`Engine` of tandem_engine.api over a runner. Start, use and stop it in one event loop; it starts only once."""

    def __init__(self, config: EngineConfig, runner: Runner, inbox: Inbox | None = None) -> None:
        self._config = config
        self._runner = runner
        self._inbox = inbox or Inbox()
        self._outbox = Outbox(_MAX_UNREAD_OUTPUTS, on_room=lambda: self._inbox.put(_do_nothing))
        self._thread: threading.Thread | None = None
        self._core: EngineCore | None = None
        self._has_ended = asyncio.Event()
        self._keys = itertools.count()
        # Lengths of what the thread has not taken from the inbox yet; it waits there while a step runs.
        self._submitted: dict[int, int] = {}

    @property
    def info(self) -> EngineInfo:
        """What it is; valid after `start`."""
        return self._started().info

    @property
    def blocks(self) -> LocalBlockExchange:
        """Its blocks; valid after `start`."""
        return self._started().exchange

    async def start(self) -> None:
        """Load the model in the engine's thread; raises what is wrong with it."""
        if self._thread is not None:
            raise RuntimeError("the engine was started before")
        loading: Future[EngineCore] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(asyncio.get_running_loop(), loading), name="tandem-engine", daemon=True
        )
        self._thread.start()
        self._core = await asyncio.wrap_future(loading)

    async def stop(self) -> None:
        """End all requests silently and free everything. Idempotent."""
        if self._thread is None:
            self._outbox.close()
            return
        self._inbox.put(self._halt)
        await self._has_ended.wait()
        self._thread.join()

    def submit(self, generation: Generation, prefill: PrefillMode = PrefillMode.LOCAL) -> None:
        """Queue a request; what is wrong with it is reported by a RequestFailure."""
        core = self._started()
        if self._has_ended.is_set():
            return
        key = next(self._keys)
        self._submitted[key] = len(generation.token_ids)

        def submit() -> None:
            core.submit(generation, prefill)
            # Between the two lines a snapshot counts it twice, which is better than not at all.
            self._submitted.pop(key, None)

        self._inbox.put(submit)

    def cancel(self, request_id: str) -> None:
        """End a request and free its blocks, without a report. Idempotent."""
        core = self._started()
        if not self._has_ended.is_set():
            self._inbox.put(lambda: core.exchange.cancel(request_id))

    async def deliver(self, take: Callable[[StepOutput], None]) -> None:
        """The outbox, each output handed to `take`."""
        await self._outbox.deliver(take)

    def steps(self) -> AsyncIterator[StepOutput]:
        """The outbox; one consumer. Raises EngineDied when the engine failed, ends after `stop`."""
        return self._outbox.outputs()

    def snapshot(self) -> EngineSnapshot:
        """What it holds now; nothing before `start` and after its end."""
        if self._core is None or self._has_ended.is_set():
            return EngineSnapshot()
        with self._core.lock:
            return take_snapshot(self._core.scheduler, tuple(self._submitted.values()))

    def _started(self) -> EngineCore:
        if self._core is None:
            raise RuntimeError("the engine is not started")
        return self._core

    def _run(self, loop: asyncio.AbstractEventLoop, loading: Future[EngineCore]) -> None:
        """The whole life of the thread."""
        error: Exception | None = None
        loading.set_running_or_notify_cancel()  # from here on it cannot be cancelled, only stopped later
        try:
            self._outbox.open(loop)
            core = EngineCore(self._config, self._runner.load(), self._runner, self._inbox, self._outbox)
        except BaseException as problem:  # noqa: BLE001 - whoever waits in start() shall see it, whatever it is
            loading.set_exception(problem)
        else:
            self._core = core
            loading.set_result(core)
            try:
                core.run()
            except Exception as problem:  # noqa: BLE001 - whatever ends the loop is the engine's death
                error = EngineDied(f"the engine failed: {type(problem).__name__}")
                error.__cause__ = problem
        finally:
            self._runner.close()
            with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody is left to be told
                loop.call_soon_threadsafe(self._end, error)

    def _halt(self) -> None:
        if self._core is not None:
            self._core.halt()

    def _end(self, error: Exception | None) -> None:
        """In the event loop, after the last step."""
        self._outbox.close(error)
        if self._core is not None:
            self._core.exchange.close(error or Unavailable("the engine was stopped"))
        self._has_ended.set()


def _do_nothing() -> None:
    """A command that only wakes the engine."""
