"""An engine's loop: runs commands, then a step, then tells what it made known; over and over."""

from __future__ import annotations

import threading
import time

from tandem_common.errors import TandemError
from tandem_common.generation import Generation

from tandem_engine.api import EngineInfo, PrefillMode, RequestFailure, StepCost, StepOutput, TokenOutput
from tandem_engine.batch import Batch, Draw, Runner
from tandem_engine.block_exchange import ExchangeContext, LocalBlockExchange
from tandem_engine.block_pool import BlockPool
from tandem_engine.config import EngineConfig
from tandem_engine.inbox import Inbox
from tandem_engine.outbox import Outbox
from tandem_engine.scheduler import Scheduler
from tandem_engine.step_cost import step_cost

# After a pause of this length it is checked that nothing contradicts itself: few requests meet it. Checks take tens of
# milliseconds with many blocks, and no more than this part of the time: an idle stack's canary asks for one each time.
_IDLE_CHECK_S = 1.0
_MAX_CHECKING = 1 / 5000


class EngineCore:
    """A loaded runner, a scheduler and their loop.

    All methods are for one thread: `run` is its whole life, or an event loop calls `next_batch` and `finish` in turn.

    `lock` is held while the scheduler or its pool changes, so that the event loop can take a snapshot or borrow blocks
    in between; it is free while the runner computes.
    """

    def __init__(
        self, config: EngineConfig, info: EngineInfo, runner: Runner, inbox: Inbox, outbox: Outbox
    ) -> None:
        self._poison = config.poison_freed_blocks
        self._runner = runner
        self._inbox = inbox
        self._outbox = outbox
        self.info = info
        self.lock = threading.Lock()
        pool = BlockPool(info.num_blocks, info.block_size, record_freed=self._poison)
        self.scheduler = Scheduler(info, pool, max_waiting=config.max_waiting)
        # What commands made known since the last report.
        self._first_tokens: list[TokenOutput] = []
        self._failures: list[RequestFailure] = []
        self.halted = False
        self._is_checked = True
        self._next_check_s = 0.0
        self.exchange = LocalBlockExchange(
            ExchangeContext(
                info=info,
                scheduler=self.scheduler,
                runner=runner,
                inbox=inbox,
                lock=self.lock,
                report=self._first_tokens.append,
            )
        )

    def run(self) -> None:
        """Serve until halted. Whatever it raises is the engine's death."""
        idle = True
        while not self.halted:
            if idle:
                self._wait()
            batch = self.next_batch()
            if batch.sequences:
                # Counted now, since computing drives the rows out of the processor's caches.
                work = step_cost(batch, 0.0)
                started = time.perf_counter()
                drawn = self._runner.execute(batch)
                self.finish(batch, drawn, work.lasting((time.perf_counter() - started) * 1e3))
            idle = not batch.sequences

    def next_batch(self) -> Batch:
        """Run commands, choose the next step; what its rows gave, if there are any, is for `finish`."""
        self._inbox.run_waiting()
        batch = self._schedule()
        self._report_commands(batch)
        if not batch.sequences:
            self.exchange.advance()
        return batch

    def finish(self, batch: Batch, drawn: list[Draw], cost: StepCost) -> None:
        """Take in and tell what the last batch's runner computed."""
        with self.lock:
            output = self.scheduler.postprocess(batch, drawn, cost)
            if self._poison:
                self.scheduler.check_integrity()
        self._outbox.put(output)
        self.exchange.advance()

    def submit(self, generation: Generation, prefill: PrefillMode) -> None:
        """Queue a request, or report what is wrong with it."""
        try:
            with self.lock:
                self.scheduler.submit(generation, prefill)
        except TandemError as error:
            self._failures.append(RequestFailure(request_id=generation.request_id, error=error))

    def halt(self) -> None:
        """End `run` before the next step."""
        self.halted = True

    def check_pause_s(self) -> float:
        """After so long a pause `check` is to be called."""
        return max(_IDLE_CHECK_S, self._next_check_s - time.monotonic())

    def check(self) -> None:
        """Raise BrokenInvariant when something contradicts itself."""
        began_s = time.monotonic()
        with self.lock:
            self.scheduler.check_integrity()
        self._next_check_s = began_s + (time.monotonic() - began_s) / _MAX_CHECKING

    def _wait(self) -> None:
        """For a command."""
        if not self._is_checked and not self._inbox.wait(self.check_pause_s()):
            self.check()
            self._is_checked = True
        if self._is_checked:
            self._inbox.wait()
        self._is_checked = False

    def _schedule(self) -> Batch:
        if self.halted or self._outbox.is_full():
            return Batch([])  # the consumer's next visit wakes us
        with self.lock:
            batch = self.scheduler.schedule()
            freed = self.scheduler.pool.take_freed()
        if self._poison:
            # Before anyone fills the blocks that were given out just now.
            self._runner.poison_blocks(freed)
        self.exchange.advance()
        return batch

    def _report_commands(self, batch: Batch) -> None:
        """Failures and first tokens do not wait for the end of the step that is about to begin."""
        if batch.sequences and not self._first_tokens and not self._failures:
            return
        with self.lock:
            removed, stored = self.scheduler.pool.take_changes()
        if self._first_tokens or self._failures or removed or stored:
            self._outbox.put(
                StepOutput(
                    tokens=tuple(self._first_tokens),
                    failures=tuple(self._failures),
                    removed_hashes=removed,
                    stored_hashes=stored,
                )
            )
            self._first_tokens.clear()
            self._failures.clear()
