"""Who starts, who waits, who is refused: queues and admission rules together. Synchronous; time is an argument.

`arrive` judges a newcomer at once. `pump`, called whenever the view has changed, starts those who wait, in the queue's
order. Who cannot start yet is passed by those that can, but on the workers that it waits for by no more than twice its
own tokens: after that nobody is started there before it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tandem.v1 import router_pb2 as pb
from tandem_common.errors import Overloaded, TandemError
from tandem_common.generation import RequestClass

from tandem_router.admission import (
    AdmissionRules,
    DrainRate,
    Judgement,
    PredictionError,
    Verdict,
    retry_after_ms,
)
from tandem_router.elsewhere import Line, WaitingElsewhere
from tandem_router.fairness import FairShares
from tandem_router.policies import Policy
from tandem_router.query import ROUTE_LIMITS, Decision, Query
from tandem_router.queue import QueueFull, RequestQueue, Waiting
from tandem_router.view import ClusterView

# So much may a tenant have been served more than one that waits at another router, which is waited for so long if it is
# not served at all.
_REQUESTS_AHEAD = 4
_MAX_HELD_S = 2.0
# Who names no deadline is due after so many times what computing the prompt takes: as with the turns of a worker's
# prompts, short ones pass long ones, and nobody for ever.
_DUE_TIMES = 3
# Of those who cannot start, how many are passed in one pump, and by how many times their own tokens where they wait.
_MOST_PASSED = 8
_PATIENCE = 2
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
    waited_ms: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A request that waits."""

    item: Waiting
    message: pb.RouteQuery
    model: str


# What became of a request that waited.
Outcome = tuple[Ticket, Started | TandemError]


class _Blocked(NamedTuple):
    """Who cannot start yet, and the workers that it waits for."""

    item: Waiting
    workers: frozenset[str]


@dataclass(slots=True)
class _Line:
    """Those who wait for one model, by the queue's key."""

    queue: RequestQueue
    drain: DrainRate = field(default_factory=DrainRate)
    tickets: dict[int, Ticket] = field(default_factory=dict)
    # Tokens started on workers that who came first waits for, by its key.
    passed_by: dict[int, int] = field(default_factory=dict)

    def is_patient(self, item: Waiting) -> bool:
        """Whether others may still pass it."""
        return self.passed_by.get(item.key, 0) < _PATIENCE * item.num_tokens


class Desk:
    """All requests of one router that have not been started."""

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
        elsewhere: WaitingElsewhere | None = None,
    ) -> None:
        """`make_query` raises InvalidRequest; `on_start` books, so that `view` knows of it from then on.

        Without `elsewhere`, there is no other router.
        """
        self._policy = policy
        self._view = view
        self._make_query = make_query
        self._on_start = on_start
        self._shares = shares
        self._rules = rules
        self._queue_rules = queue_rules
        self.error = error
        self._elsewhere = elsewhere or WaitingElsewhere()
        self._lines: dict[str, _Line] = {}
        self._keys = itertools.count()
        # Whose heads could start, but go after those who wait elsewhere: since when, and the least counter of those.
        self._held: dict[Line, tuple[float, float]] = {}

    @property
    def num_waiting(self) -> int:
        """Requests that wait now."""
        return sum(len(line.queue) for line in self._lines.values())

    def judge(self, message: pb.RouteQuery, now_s: float) -> tuple[Query, ClusterView, Decision, Judgement]:
        """What would happen to a request that came now; changes nothing. Raises what the policy raises."""
        query, view = self._make_query(message), self._view()
        decision = self._policy.choose(query, view, ROUTE_LIMITS)
        line = self._lines.get(query.model)
        line_key = (query.model, query.request_class)
        is_free = self._served_less(line_key, query.tenant, charged_tokens(query), now_s) is None
        drain_ms = 0.0
        if line is not None:
            is_free = is_free and line.queue.is_free_for(query.request_class)
            ahead = line.queue.tokens_ahead_of(query.request_class)
            drain_ms = line.drain.drain_ms(ahead, _prior_rate(query, view, decision))
        judgement = self._rules.judge(
            query,
            decision,
            is_free=is_free,
            drain_ms=drain_ms,
            error_factor=self.error.factor,
            typical_error=self.error.typical,
        )
        return query, view, decision, judgement

    def arrive(self, message: pb.RouteQuery, now_s: float) -> Started | Ticket:
        """Start a request, or let it wait: `pump` gives the outcome of the ticket, unless it has left.

        Raises Overloaded when it would miss its deadline or too many wait.
        """
        query, view, decision, judgement = self.judge(message, now_s)
        if judgement.verdict is Verdict.REFUSE:
            raise Overloaded(judgement.reason, retry_after_ms=judgement.retry_after_ms)
        line = self._lines.get(query.model)
        if judgement.verdict is Verdict.START:
            return self._start(message, query, view, decision, line)
        if line is None:
            rules = self._queue_rules
            queue = RequestQueue(self._shares, max_depth=rules.max_depth, starvation_s=rules.starvation_s)
            line = _Line(queue)
        deadline_ms = judgement.deadline_ms
        item = Waiting(
            key=next(self._keys),
            tenant=query.tenant,
            request_class=query.request_class,
            num_tokens=charged_tokens(query),
            arrived_s=now_s,
            due_s=math.inf if query.ttft_deadline_ms else now_s + _due_ms(decision) / 1000,
            **({"deadline_s": now_s + deadline_ms / 1000} if deadline_ms else {}),
        )
        try:
            line.queue.push(item, self._elsewhere.tenants((query.model, query.request_class), now_s))
        except QueueFull:
            raise Overloaded(
                f"{len(line.queue)} requests wait already; try again later",
                retry_after_ms=retry_after_ms(query.request_id, judgement.wait_ms),
            ) from None
        self._lines[query.model] = line
        line.drain.observe(now_s, 0, backlog=True)
        ticket = line.tickets[item.key] = Ticket(item, message, query.model)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """It waits no longer, whatever the reason; a ticket that has left already is fine."""
        line = self._lines.get(ticket.model)
        if line is not None and line.tickets.pop(ticket.item.key, None) is ticket:
            line.queue.remove(ticket.item)
            line.passed_by.pop(ticket.item.key, None)
            if not line.tickets:
                del self._lines[ticket.model]

    def pump(self, now_s: float) -> Iterator[Outcome]:
        """Give up those who waited for too long and start those who can start now, one by one as it is asked for.

        Those whose outcome was given have left.
        """
        for line in list(self._lines.values()):
            yield from self._give_up(line, now_s)
            blocked: list[_Blocked] = []  # nothing that is started now makes room for them
            while (outcome := self._start_next(line, now_s, blocked)) is not None:
                yield outcome

    def waiting_tenants(self) -> dict[Line, set[str]]:
        """Who waits for a turn, for other routers to know; not those who wait for workers of their own choice."""
        waiting: dict[Line, set[str]] = {}
        for model, line in self._lines.items():
            for ticket in line.tickets.values():
                message, item = ticket.message, ticket.item
                if not (message.pinned_worker_ids or message.required_labels):
                    waiting.setdefault((model, item.request_class), set()).add(item.tenant)
        return waiting

    def waiting(self) -> list[Ticket]:
        """All that wait."""
        return [ticket for line in self._lines.values() for ticket in line.tickets.values()]

    def check_integrity(self) -> None:
        """Assert that queues and tickets hold the same, and that no line is kept for nobody."""
        for model, line in self._lines.items():
            assert line.tickets, "a line without tickets is not kept"
            assert {item.key for item in line.queue.items()} == line.tickets.keys()
            assert all(ticket.model == model for ticket in line.tickets.values())
            line.queue.check_integrity()

    def _start_next(self, line: _Line, now_s: float, blocked: list[_Blocked]) -> Outcome | None:
        """Start, or fail, the next one that is not `blocked`; None when nobody can start or nobody waits."""
        while len(blocked) < _MOST_PASSED:
            item = line.queue.upcoming(now_s, {other.item.key for other in blocked})
            if item is None:
                return None
            ticket = line.tickets[item.key]
            try:
                query, view = self._make_query(ticket.message), self._view()
                decision = self._policy.choose(query, view, ROUTE_LIMITS)
            except TandemError as error:
                self.leave(ticket)
                return ticket, error
            starved = item.request_class is RequestClass.BATCH and line.queue.starved(now_s) is item
            if not starved and self._is_held(ticket, now_s):
                break
            workers = _workers_of(decision)
            passed = [other.item for other in blocked if not workers.isdisjoint(other.workers)]
            if all(map(line.is_patient, passed)) and self._rules.can_start(query, decision, starved=starved):
                for waiting in passed:
                    line.passed_by[waiting.key] = line.passed_by.get(waiting.key, 0) + item.num_tokens
                waited_ms = 1000 * (now_s - item.arrived_s)
                started = self._start(ticket.message, query, view, decision, line, waited_ms)
                self.leave(ticket)
                line.drain.observe(now_s, item.num_tokens, backlog=bool(line.tickets))
                return ticket, started
            blocked.append(_Blocked(item, workers))
        line.drain.observe(now_s, 0, backlog=True)
        return None

    def _is_held(self, ticket: Ticket, now_s: float) -> bool:
        """Whether tenants that were served less wait at other routers, and are served.

        What waits there may be unable to start for reasons of its own: nobody is held for those who make no progress.
        """
        item = ticket.item
        line = (ticket.model, item.request_class)
        least = self._served_less(line, item.tenant, item.num_tokens, now_s)
        if least is None:
            self._held.pop(line, None)
            return False
        since_s, known = self._held.get(line, (now_s, None))
        if known != least:
            since_s = now_s
        self._held[line] = (since_s, least)
        return now_s - since_s < _MAX_HELD_S

    def _served_less(self, line: Line, tenant: str, num_tokens: int, now_s: float) -> float | None:
        """The least counter of those who wait at other routers, if it is well below this tenant's."""
        shares = self._shares
        least = min(map(shares.counter, self._elsewhere.tenants(line, now_s)), default=math.inf)
        # A little ahead is fine: no router stands idle while news travel.
        ahead = _REQUESTS_AHEAD * num_tokens / shares.weight(tenant)
        return least if shares.counter(tenant) - ahead > least else None

    def _start(
        self,
        message: pb.RouteQuery,
        query: Query,
        view: ClusterView,
        decision: Decision,
        line: _Line | None,
        waited_ms: float = 0.0,
    ) -> Started:
        if line is not None:
            line.queue.started(query.request_class)
        self._shares.charge(query.tenant, charged_tokens(query))
        self._on_start(message, query, decision)
        return Started(query=query, view=view, decision=decision, waited_ms=waited_ms)

    def _give_up(self, line: _Line, now_s: float) -> Iterator[Outcome]:
        for item in line.queue.overdue(now_s, self._queue_rules.max_age_s):
            ticket = line.tickets[item.key]
            self.leave(ticket)
            waited_ms = 1000 * (now_s - item.arrived_s)
            retry_ms = retry_after_ms(ticket.message.request_id, waited_ms)
            yield ticket, Overloaded(_WAITED_TOO_LONG, retry_after_ms=retry_ms)


def charged_tokens(query: Query) -> int:
    """What a request counts as in its tenant's share when it starts: its prompt and the answer that is expected."""
    return query.num_tokens + expected_new_tokens(query.max_tokens)


def expected_new_tokens(max_tokens: int) -> int:
    """How long an answer is charged as until it is known: the most that it may be, up to 256."""
    return min(max_tokens, 256)


def _due_ms(decision: Decision) -> float:
    return _DUE_TIMES * decision.chosen.terms.get("prefill", math.inf) if decision.unit == "ms" else math.inf


def _workers_of(decision: Decision) -> frozenset[str]:
    chosen = decision.chosen
    return frozenset((chosen.computing.facts.worker_id, chosen.decode.facts.worker_id))


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
