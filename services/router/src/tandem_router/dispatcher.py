"""Starts requests, lets them wait, or refuses them: the queue and admission rules with futures around them.

`route` judges a newcomer at once. `pump`, called whenever the view has changed, starts those who wait, in the queue's
order, as long as the first of them can start; so nobody overtakes a large request for ever.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tandem.v1 import router_pb2 as pb
from tandem_common.errors import Overloaded, TandemError, Unavailable
from tandem_common.generation import RequestClass

from tandem_router.admission import (
    AdmissionRules,
    DrainRate,
    Judgement,
    PredictionError,
    Verdict,
    retry_after_ms,
)
from tandem_router.fairness import FairShares
from tandem_router.policies import Policy
from tandem_router.query import ROUTE_LIMITS, Decision, Query
from tandem_router.queue import QueueFull, RequestQueue, Waiting
from tandem_router.view import ClusterView

# Decisions of one pump: others on the event loop get their turn in between.
_STARTS_PER_TURN = 32
_WAITED_TOO_LONG = "the request waited for too long; try again later"


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueRules:
    """Bounds of waiting."""

    max_depth: int = 1024
    max_age_s: float = 60.0
    starvation_s: float = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """A decision whose load is booked."""

    query: Query
    view: ClusterView
    decision: Decision
    waited_ms: float
    choose_s: float  # what matching and choosing took


@dataclass(slots=True)
class _Pending:
    item: Waiting
    message: pb.RouteQuery
    started: asyncio.Future[Started]


@dataclass(slots=True)
class _Line:
    """Those who wait for one model."""

    queue: RequestQueue
    drain: DrainRate = field(default_factory=DrainRate)
    pending: dict[int, _Pending] = field(default_factory=dict)


class Dispatcher:
    """One per router; not thread-safe, on the event loop only."""

    def __init__(
        self,
        policy: Policy,
        view: Callable[[], ClusterView],
        make_query: Callable[[pb.RouteQuery], Query],
        on_start: Callable[[pb.RouteQuery, Query, Decision], None],
        *,
        shares: FairShares,
        rules: AdmissionRules,
        queue_rules: QueueRules,
        error: PredictionError,
    ) -> None:
        """`make_query` raises InvalidRequest; `on_start` books, so that `view` knows of it from then on."""
        self._policy = policy
        self._view = view
        self._make_query = make_query
        self._on_start = on_start
        self._shares = shares
        self._rules = rules
        self._queue_rules = queue_rules
        self.error = error
        self._lines: dict[str, _Line] = {}
        self._keys = itertools.count()
        self._pump_again: asyncio.Handle | None = None

    @property
    def num_waiting(self) -> int:
        """Requests that wait now."""
        return sum(len(line.queue) for line in self._lines.values())

    def judge(self, message: pb.RouteQuery) -> tuple[Query, ClusterView, Decision, Judgement]:
        """What would happen to a request that came now; changes nothing. Raises what the policy raises."""
        query, view = self._make_query(message), self._view()
        decision = self._policy.choose(query, view, ROUTE_LIMITS)
        line = self._lines.get(query.model)
        is_free, drain_ms = True, 0.0
        if line is not None:
            is_free = line.queue.is_free_for(query.request_class)
            ahead = line.queue.tokens_ahead_of(query.request_class)
            drain_ms = line.drain.drain_ms(ahead, _prior_rate(query, view, decision))
        judgement = self._rules.judge(
            query, decision, is_free=is_free, drain_ms=drain_ms, error_factor=self.error.factor
        )
        return query, view, decision, judgement

    async def route(self, message: pb.RouteQuery, on_wait: Callable[[], Awaitable[None]]) -> Started:
        """Start the request now or later; `on_wait` is called once if it has to wait.

        Raises Overloaded at once when it would miss its deadline or too many wait, and later when it waited for too
        long. Cancelling it leaves the queue.
        """
        began_s = time.monotonic()
        query, view, decision, judgement = self.judge(message)
        if judgement.verdict is Verdict.REFUSE:
            raise Overloaded(judgement.reason, retry_after_ms=judgement.retry_after_ms)
        if judgement.verdict is Verdict.START:
            line = self._lines.get(query.model)
            return self._start(message, query, view, decision, line, 0.0, time.monotonic() - began_s)
        line = self._lines.get(query.model)
        if line is None:
            rules = self._queue_rules
            queue = RequestQueue(self._shares, max_depth=rules.max_depth, starvation_s=rules.starvation_s)
            line = self._lines[query.model] = _Line(queue)
        now_s = time.monotonic()
        deadline_ms = judgement.deadline_ms
        item = Waiting(
            key=next(self._keys),
            tenant=query.tenant,
            request_class=query.request_class,
            num_tokens=charged_tokens(query),
            arrived_s=now_s,
            **({"deadline_s": now_s + deadline_ms / 1000} if deadline_ms else {}),
        )
        try:
            line.queue.push(item)
        except QueueFull:
            raise Overloaded(
                f"{len(line.queue)} requests wait already; try again later",
                retry_after_ms=retry_after_ms(query.request_id, judgement.wait_ms),
            ) from None
        line.drain.observe(now_s, 0, backlog=True)
        pending = _Pending(item, message, asyncio.get_running_loop().create_future())
        line.pending[item.key] = pending
        try:
            await on_wait()
            return await pending.started
        finally:
            line.queue.remove(item)
            line.pending.pop(item.key, None)
            if not line.pending and self._lines.get(query.model) is line:
                del self._lines[query.model]

    def pump(self, _: ClusterView | None = None) -> None:
        """Start those who can start now, and give up those who waited for too long."""
        if self._pump_again is not None:
            self._pump_again.cancel()
            self._pump_again = None
        num_left = _STARTS_PER_TURN
        for line in list(self._lines.values()):
            self._give_up(line)
            while num_left and self._start_head(line):
                num_left -= 1
        if not num_left:
            self._pump_again = asyncio.get_running_loop().call_soon(self.pump)

    def stop(self) -> None:
        """Send all who wait elsewhere."""
        for line in self._lines.values():
            for pending in line.pending.values():
                _fail(pending, Unavailable("this router is stopping; ask another"))

    def _start_head(self, line: _Line) -> bool:
        """Start, or fail, the next one; False when it has to wait on or nobody waits."""
        now_s = time.monotonic()
        item = line.queue.head(now_s)
        if item is None:
            line.drain.observe(now_s, 0, backlog=False)
            return False
        pending = line.pending[item.key]
        try:
            query, view = self._make_query(pending.message), self._view()
            decision = self._policy.choose(query, view, ROUTE_LIMITS)
        except TandemError as error:
            line.queue.remove(item)
            _fail(pending, error)
            return True
        starved = item.request_class is RequestClass.BATCH and line.queue.starved(now_s) is item
        if not self._rules.can_start(query, decision, starved=starved):
            line.drain.observe(now_s, 0, backlog=True)
            return False
        line.queue.remove(item)
        started = self._start(
            pending.message,
            query,
            view,
            decision,
            line,
            1000 * (now_s - item.arrived_s),
            time.monotonic() - now_s,
        )
        line.drain.observe(now_s, item.num_tokens, backlog=True)
        if not pending.started.done():
            pending.started.set_result(started)
        return True

    def _start(
        self,
        message: pb.RouteQuery,
        query: Query,
        view: ClusterView,
        decision: Decision,
        line: _Line | None,
        waited_ms: float,
        choose_s: float,
    ) -> Started:
        if line is not None:
            line.queue.started(query.request_class)
        self._shares.charge(query.tenant, charged_tokens(query))
        self._on_start(message, query, decision)
        return Started(query=query, view=view, decision=decision, waited_ms=waited_ms, choose_s=choose_s)

    def _give_up(self, line: _Line) -> None:
        now_s = time.monotonic()
        for item in line.queue.overdue(now_s, self._queue_rules.max_age_s):
            line.queue.remove(item)
            pending = line.pending[item.key]
            waited_ms = 1000 * (now_s - item.arrived_s)
            _fail(
                pending,
                Overloaded(
                    _WAITED_TOO_LONG, retry_after_ms=retry_after_ms(pending.message.request_id, waited_ms)
                ),
            )


def charged_tokens(query: Query) -> int:
    """What a request counts as in its tenant's share: its prompt and the most that it may generate, up to 256."""
    return query.num_tokens + min(query.max_tokens, 256)


def _fail(pending: _Pending, error: TandemError) -> None:
    if not pending.started.done():
        pending.started.set_exception(error)


def _prior_rate(query: Query, view: ClusterView, decision: Decision) -> float:
    """Tokens per millisecond that the model's workers take in, if all compute as fast as the chosen one."""
    prefill_ms = decision.chosen.terms.get("prefill", 0.0)
    if decision.unit != "ms" or prefill_ms <= 0:
        return 1.0
    pool = view.pools.get(query.model, ())
    role = decision.chosen.computing.facts.role
    alike = sum(worker.facts.role is role for worker in pool)
    uncached = query.num_tokens - decision.chosen.predicted_cached_tokens
    return max(1, alike) * uncached / prefill_ms
