"""The desk with futures around it, for requests that wait on an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tandem.v1 import router_pb2 as pb
from tandem_common.errors import TandemError, Unavailable

from tandem_router.admission import PredictionError
from tandem_router.desk import Desk, Started, Ticket
from tandem_router.view import ClusterView

# Decisions of one pump: others on the event loop get their turn in between.
_STARTS_PER_TURN = 32
# While somebody waits, queues are looked at so often: workers get ready between their beats.
PUMP_S = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Dispatched:
    """A request that was started, and the seconds that matching and choosing took."""

    started: Started
    choose_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """A request that waits; whoever holds it calls `leave` when it has an outcome or is not wanted any more."""

    ticket: Ticket
    future: asyncio.Future[Dispatched]


class Dispatcher:
    """One per router; not thread-safe, on the event loop only."""

    def __init__(self, desk: Desk, clock: Callable[[], float] = time.monotonic) -> None:
        self.desk = desk
        self._clock = clock
        self._waiting: dict[Ticket, asyncio.Future[Dispatched]] = {}
        self._pump_again: asyncio.Handle | None = None

    @property
    def num_waiting(self) -> int:
        """Requests that wait now."""
        return self.desk.num_waiting

    @property
    def error(self) -> PredictionError:
        """How predictions turned out."""
        return self.desk.error

    def begin(self, message: pb.RouteQuery) -> Dispatched | Pending:
        """Start the request now, or let it wait. Raises Overloaded when it would miss its deadline or too many wait."""
        now_s = self._clock()
        answer = self.desk.arrive(message, now_s)
        if isinstance(answer, Started):
            return Dispatched(started=answer, choose_s=self._clock() - now_s)
        future: asyncio.Future[Dispatched] = asyncio.get_running_loop().create_future()
        self._waiting[answer] = future
        if self._pump_again is None:
            self._pump_again = asyncio.get_running_loop().call_later(PUMP_S, self.pump)
        return Pending(answer, future)

    def leave(self, pending: Pending) -> None:
        """Wait no longer. Idempotent."""
        if self._waiting.pop(pending.ticket, None) is not None:
            self.desk.leave(pending.ticket)

    async def route(self, message: pb.RouteQuery, on_wait: Callable[[], Awaitable[None]]) -> Dispatched:
        """Start the request now or later; `on_wait` is called once if it has to wait.

        Raises as `begin`, and Overloaded later when it waited for too long. Cancelling it leaves the queue.
        """
        answer = self.begin(message)
        if isinstance(answer, Dispatched):
            return answer
        try:
            await on_wait()
            return await answer.future
        finally:
            self.leave(answer)

    def pump(self, _: ClusterView | None = None) -> None:
        """Start those who can start now, and give up those who waited for too long."""
        if self._pump_again is not None:
            self._pump_again.cancel()
            self._pump_again = None
        num_left = _STARTS_PER_TURN
        began_s = now_s = self._clock()
        for ticket, outcome in self.desk.pump(now_s):
            future = self._waiting[ticket]
            ended_s = self._clock()
            if isinstance(outcome, TandemError):
                _fail(future, outcome)
            elif not future.done():
                future.set_result(Dispatched(started=outcome, choose_s=ended_s - began_s))
            began_s = ended_s
            num_left -= 1
            if not num_left:
                self._pump_again = asyncio.get_running_loop().call_soon(self.pump)
                return
        if self._waiting:
            self._pump_again = asyncio.get_running_loop().call_later(PUMP_S, self.pump)

    def stop(self) -> None:
        """Send all who wait elsewhere."""
        if self._pump_again is not None:
            self._pump_again.cancel()
        for future in self._waiting.values():
            _fail(future, Unavailable("this router is stopping; ask another"))


def _fail(future: asyncio.Future[Dispatched], error: TandemError) -> None:
    if not future.done():
        future.set_exception(error)
