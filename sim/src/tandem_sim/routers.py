"""The routers on virtual time: each with its own desk, view and shares, all hearing of each other's bookings.

A router is put together as `tandem_router.app` and `tandem_router.servicer` do it. One block index serves all of them:
they would all hold the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import fields

from tandem.v1 import router_pb2 as pb
from tandem_common.errors import TandemError
from tandem_common.registry import RegisteredWorker
from tandem_router.admission import Judgement, PredictionError
from tandem_router.affinity import Sessions
from tandem_router.bookings import Booking, Bookings
from tandem_router.cluster import Cluster
from tandem_router.config import RouterConfig
from tandem_router.desk import Desk, Started, Ticket, charged_tokens
from tandem_router.dispatcher import PUMP_S
from tandem_router.elsewhere import WaitingElsewhere
from tandem_router.fairness import FairShares
from tandem_router.index import BlockIndex
from tandem_router.query import Decision, Query
from tandem_router.speculative import SpeculativeIndex
from tandem_router.wire import query_from_proto

from tandem_sim.event_loop import EventLoop
from tandem_sim.scenario import Scenario

# Between two times that a router tells who waits with it.
_TELL_S = 0.1
_UNUSED = "simulated; never sent"

# Who asked hears of it once.
Answer = Callable[[Started | TandemError], None]


def router_setting_kinds() -> dict[str, object]:
    """Types of the router's settings by name, as they are written: "int", "float", ..."""
    return {field.name: field.type for field in fields(RouterConfig)}


def router_config(scenario: Scenario) -> RouterConfig:
    """The router's own configuration, so that policies and settings are those that the router knows by name."""
    settings: dict[str, object] = {
        "policy": scenario.policy,
        "random_seed": scenario.seed,
        **scenario.router,
    }
    return RouterConfig(
        redis_url="redis://unused",
        cluster="simulated",
        cluster_secret=_UNUSED,
        **settings,  # type: ignore[arg-type]
    )


class Router:
    """One router."""

    def __init__(self, name: str, scenario: Scenario, loop: EventLoop, index: BlockIndex) -> None:
        self._name = name
        config = router_config(scenario)
        rules = config.servicer_rules()
        self._loop = loop
        self._index = index
        self._exchange_s = scenario.control.exchange_s
        self._others: list[Router] = []
        self._elsewhere = WaitingElsewhere()
        self._shares = FairShares(config.weights())
        self._cluster = Cluster(
            Bookings(max_age_s=config.booking_max_age_s, max_per_worker=config.max_bookings_per_worker),
            empty_grace_s=config.registry_grace_s,
        )
        self._expected = SpeculativeIndex(ttl_s=rules.speculative_ttl_s)
        self._sessions = Sessions(ttl_s=rules.session_ttl_s)
        self._turns: Counter[str] = Counter()
        self._answers: dict[Ticket, Answer] = {}
        self._pump_is_due = False
        self._desk = Desk(
            config.make_policy(),
            lambda: self._cluster.view,
            self._make_query,
            self._start,
            shares=self._shares,
            rules=rules.admission,
            queue_rules=rules.queue,
            error=PredictionError(quantile=rules.error_quantile),
            elsewhere=self._elsewhere,
        )

    @property
    def num_waiting(self) -> int:
        """Requests that wait here."""
        return self._desk.num_waiting

    def meet(self, others: list[Router]) -> None:
        """Share bookings, charges and who waits with these from now on."""
        self._others = others
        if others:
            self._loop.every(_TELL_S, self._tell, first_s=_TELL_S)

    def observe(self, registered: Mapping[str, RegisteredWorker]) -> None:
        """Take what the registry says, and start those who can start now."""
        self._cluster.observe(registered, self._loop.now_s)
        self.pump()

    def pump(self) -> None:
        """Start those who can start now, and tell those who were given up."""
        for ticket, outcome in self._desk.pump(self._loop.now_s):
            self._answers.pop(ticket)(outcome)

    def route(self, message: pb.RouteQuery, answer: Answer) -> None:
        """Start a request, now or later, or refuse it."""
        try:
            arrived = self._desk.arrive(message, self._loop.now_s)
        except TandemError as error:
            answer(error)
            return
        if isinstance(arrived, Started):
            answer(arrived)
        else:
            self._answers[arrived] = answer
            self._pump_later()

    def _pump_later(self) -> None:
        if not self._pump_is_due:
            self._pump_is_due = True
            self._loop.after(PUMP_S, self._pump_again)

    def _pump_again(self) -> None:
        self._pump_is_due = False
        self.pump()
        if self._answers:
            self._pump_later()

    def judge(self, message: pb.RouteQuery) -> Judgement:
        """What would happen to it now; changes nothing."""
        return self._desk.judge(message, self._loop.now_s)[-1]

    def observe_ttft(self, predicted_ms: float, observed_ms: float) -> None:
        """A frontend tells how a prediction turned out."""
        self._desk.error.observe(predicted_ms, observed_ms)

    def check_integrity(self) -> None:
        """Raise unless what waits is where it belongs."""
        self._desk.check_integrity()

    def _make_query(self, message: pb.RouteQuery) -> Query:
        now_s = self._loop.now_s
        return query_from_proto(
            message,
            self._index,
            self._turns[message.model],
            now_s=now_s,
            expected=self._expected,
            preferred=self._sessions.preferred(message.tenant, message.session_id, now_s),
        )

    def _start(self, message: pb.RouteQuery, query: Query, decision: Decision) -> None:
        now_s = self._loop.now_s
        self._turns[query.model] += 1
        bookings = self._cluster.book(query, decision, now_s)
        if self._others:
            self._share(query, bookings)
        self._expected.add(message.block_hashes, decision.chosen.computing.facts.worker_id, now_s)
        self._sessions.note(message.tenant, message.session_id, decision, now_s)

    def _tell(self) -> None:
        """Who waits here."""
        waiting = self._desk.waiting_tenants()

        def arrived() -> None:
            for other in self._others:
                other._elsewhere.note(self._name, waiting, self._loop.now_s)  # noqa: SLF001
                other.pump()

        self._loop.after(self._exchange_s, arrived)

    def _share(self, query: Query, bookings: list[Booking]) -> None:
        """As the booking exchange does through its stream."""
        self._cluster.expect_alike(query.request_id, query.model, bookings, len(self._others))

        def arrived() -> None:
            for other in self._others:
                other._hear(query, bookings)  # noqa: SLF001
            self._cluster.settle(query.model, [query.request_id])

        self._loop.after(self._exchange_s, arrived)

    def _hear(self, query: Query, bookings: list[Booking]) -> None:
        self._cluster.book_shared(query.model, [(query.request_id, bookings)])
        if query.tenant:
            self._shares.charge(query.tenant, charged_tokens(query))
