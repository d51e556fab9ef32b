"""Tenants are served by their weights through several routers, whichever their requests come through.

On virtual time: what routers tell each other arrives a few milliseconds later. `test_router_exchange` shows that it
arrives, through a real Redis.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence

import pytest
from router_fakes import make_beat, make_card, registry_of
from tandem.v1 import cluster_pb2 as pb
from tandem.v1 import router_pb2
from tandem_common.generation import RequestClass
from tandem_common.speed import PrefillSpeed
from tandem_router.admission import AdmissionRules, PredictionError
from tandem_router.bookings import Bookings
from tandem_router.cluster import Cluster
from tandem_router.desk import Desk, QueueRules, Started, charged_tokens
from tandem_router.elsewhere import WaitingElsewhere
from tandem_router.fairness import FairShares
from tandem_router.index import BlockIndex
from tandem_router.policies import Predictive
from tandem_router.query import Decision, Query
from tandem_router.wire import query_from_proto

NUM_WORKERS = 4
TOKENS = 999  # and one to generate
TOKENS_PER_S = 50_000.0  # of one worker
SPEED = PrefillSpeed(a_ms=0.0, b_ms=1000 / TOKENS_PER_S, c_ms=0.0, num_samples=99)
TICK_S = 0.005
NEWS_S = 0.004
INTERACTIVE = ("tiny", RequestClass.INTERACTIVE)


class Fleet:
    """Workers that compute one prompt after another."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[tuple[str, float]]] = {f"w{i}": deque() for i in range(NUM_WORKERS)}
        self._accepted: dict[str, deque[str]] = {name: deque(maxlen=64) for name in self._queues}
        self._num_beats = 0
        self.served: Counter[str] = Counter()  # prompts by tenant

    def submit(self, worker_id: str, request_id: str, tenant: str) -> None:
        self._queues[worker_id].append((tenant, float(TOKENS)))
        self._accepted[worker_id].append(request_id)

    def compute(self) -> None:
        for queue in self._queues.values():
            tokens = TICK_S * TOKENS_PER_S
            while queue and tokens > 0:
                tenant, left = queue.popleft()
                if left > tokens:
                    queue.appendleft((tenant, left - tokens))
                else:
                    self.served[tenant] += 1
                tokens -= left

    def beats(self) -> list[pb.WorkerBeat]:
        self._num_beats += 1
        return [
            make_beat(
                name,
                sequence=self._num_beats,
                num_waiting=len(queue),
                queued_prefill_tokens=round(sum(left for _, left in queue)),
                accepted_request_ids=self._accepted[name],
                prefill_speed=SPEED.to_proto(),
            )
            for name, queue in self._queues.items()
        ]


class OneRouter:
    """What of a router decides; `tell` takes what the others are to do when they hear of it."""

    def __init__(self, name: str, fleet: Fleet, tell: Callable[[Callable[[OneRouter], None]], None]) -> None:
        self.name = name
        self.now_s = 0.0
        self._fleet = fleet
        self._tell = tell
        self.cluster = Cluster(Bookings(max_age_s=10, max_per_worker=4096), empty_grace_s=3)
        self.shares = FairShares({"gold": 4.0})
        self.elsewhere = WaitingElsewhere()
        index = BlockIndex()
        self.desk = Desk(
            Predictive(),
            lambda: self.cluster.view,
            lambda message: query_from_proto(message, index, 0),
            self._book,
            shares=self.shares,
            rules=AdmissionRules(max_worker_queue_ms=200.0),
            queue_rules=QueueRules(),
            error=PredictionError(quantile=0.9),
            elsewhere=self.elsewhere,
        )
        self._cards = [
            make_card(f"w{i}", pb.ROLE_BOTH, max_sequences=10_000, num_blocks=10**6, max_step_tokens=4096)
            for i in range(NUM_WORKERS)
        ]
        self._num_made = 0
        self.waiting: Counter[str] = Counter()
        self.cluster.observe(registry_of(*self._cards, beats=fleet.beats()), 0.0)

    def _book(self, _: router_pb2.RouteQuery, query: Query, decision: Decision) -> None:
        bookings = self.cluster.book(query, decision, self.now_s)
        charged = charged_tokens(query)

        def heard(other: OneRouter) -> None:
            other.cluster.book_shared(query.model, [(query.request_id, bookings)])
            other.shares.charge(query.tenant, charged)
            other.pump()

        self._tell(heard)
        self._fleet.submit(decision.chosen.computing.facts.worker_id, query.request_id, query.tenant)
        self.waiting[query.tenant] -= 1

    def pump(self) -> None:
        for _, outcome in self.desk.pump(self.now_s):
            assert isinstance(outcome, Started)

    def arrive(self, tenant: str) -> None:
        self._num_made += 1
        self.waiting[tenant] += 1
        message = router_pb2.RouteQuery(
            request_id=f"{self.name}-{self._num_made}",
            model="tiny",
            num_tokens=TOKENS,
            max_tokens=1,
            tenant=tenant,
        )
        self.desk.arrive(message, self.now_s)

    def look(self, beats: Sequence[pb.WorkerBeat]) -> None:
        self.cluster.observe(registry_of(*self._cards, beats=beats), self.now_s)
        self.pump()
        name, waiting = (
            self.name,
            {line: list(tenants) for line, tenants in self.desk.waiting_tenants().items()},
        )
        self._tell(lambda other: other.elsewhere.note(name, waiting, other.now_s))


class Cloud:
    """Four routers over one fleet."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self._now_s = 0.0
        self._news: list[tuple[float, int, int, Callable[[OneRouter], None]]] = []
        self._order = itertools.count()
        self.routers = [OneRouter(f"r{i}", self.fleet, self._teller(i)) for i in range(4)]

    def _teller(self, source: int) -> Callable[[Callable[[OneRouter], None]], None]:
        def tell(news: Callable[[OneRouter], None]) -> None:
            for i in range(4):
                if i != source:
                    heapq.heappush(self._news, (self._now_s + NEWS_S, next(self._order), i, news))

        return tell

    def serve(self, duration_s: float, tenants: Sequence[Collection[str]]) -> Counter[str]:
        """Prompts served in so much time, when these tenants always have some that wait at each router."""
        before = self.fleet.served.copy()
        for tick in range(round(duration_s / TICK_S)):
            self._now_s += TICK_S
            for router in self.routers:
                router.now_s = self._now_s
            self.fleet.compute()
            while self._news and self._news[0][0] <= self._now_s:
                _, _, i, news = heapq.heappop(self._news)
                news(self.routers[i])
            for number, router in enumerate(self.routers):
                if tick % 10 == 2 * number:  # each looks at the registry when it does
                    router.look(self.fleet.beats())
                for tenant in tenants[number]:
                    while router.waiting[tenant] < 6:
                        router.arrive(tenant)
        return self.fleet.served - before


@pytest.mark.parametrize(
    "tenants",
    [
        [("gold", "plain")] * 4,
        # Each tenant through routers of its own, and through one that both use.
        [("gold",), ("gold", "plain"), ("plain",), ("plain",)],
        [("gold",), ("plain",), ("plain",), ("plain",)],
    ],
    ids=["everybody everywhere", "partly apart", "apart"],
)
def test_saturating_tenants_are_served_by_their_weights(tenants: Sequence[Collection[str]]) -> None:
    cloud = Cloud()
    cloud.serve(1.0, tenants)
    served = cloud.serve(8.0, tenants)
    assert served["gold"] / served["plain"] == pytest.approx(4.0, rel=0.05)
    # Nobody was held while workers stood idle.
    assert served.total() * TOKENS >= 0.97 * 8.0 * NUM_WORKERS * TOKENS_PER_S
    for router in cloud.routers:
        router.desk.check_integrity()


def test_a_tenant_alone_is_not_held_for_those_who_left() -> None:
    cloud = Cloud()
    cloud.serve(1.0, [("gold",), ("plain",), (), ()])
    for router in cloud.routers:
        for ticket in router.desk.waiting():
            if ticket.item.tenant == "gold":
                router.desk.leave(ticket)
    assert cloud.serve(1.0, [(), ("plain",), (), ()])["plain"] * TOKENS >= 0.9 * NUM_WORKERS * TOKENS_PER_S


def test_nobody_is_held_for_ever_for_those_who_cannot_start() -> None:
    cloud = Cloud()
    one = cloud.routers[1]
    one.shares.charge("plain", 10**6)
    for _ in range(14):
        one.elsewhere.note("stuck", {INTERACTIVE: ["gold"]}, one.now_s)
        served = cloud.serve(0.5, [(), ("plain",), (), ()])
    assert served["plain"] * TOKENS >= 0.5 * 0.5 * NUM_WORKERS * TOKENS_PER_S
    # As soon as these are served again, others give way.
    one.shares.charge("gold", 1)
    one.elsewhere.note("stuck", {INTERACTIVE: ["gold"]}, one.now_s)
    cloud.serve(0.3, [(), ("plain",), (), ()])
    assert cloud.serve(0.5, [(), ("plain",), (), ()])["plain"] == 0


def test_who_waits_for_workers_of_its_own_choice_holds_nobody() -> None:
    cloud = Cloud()
    one = cloud.routers[0]
    cloud.serve(1.0, [("plain",), (), (), ()])
    assert one.desk.waiting_tenants() == {INTERACTIVE: {"plain"}}
    message = router_pb2.RouteQuery(
        request_id="pinned", model="tiny", num_tokens=9, max_tokens=1, tenant="gold", pinned_worker_ids=["w0"]
    )
    one.desk.arrive(message, one.now_s)
    assert one.desk.num_waiting == 7
    assert one.desk.waiting_tenants() == {INTERACTIVE: {"plain"}}


def test_what_was_told_is_forgotten_when_it_is_not_told_again() -> None:
    elsewhere = WaitingElsewhere(ttl_s=1.0)
    elsewhere.note("r1", {INTERACTIVE: ["a"]}, 0.0)
    elsewhere.note("r2", {INTERACTIVE: ["b", "c"]}, 0.5)
    assert elsewhere.tenants(INTERACTIVE, 0.9) == {"a", "b", "c"}
    assert elsewhere.tenants(("tiny", RequestClass.BATCH), 0.9) == set()
    assert elsewhere.tenants(INTERACTIVE, 1.2) == {"b", "c"}
    elsewhere.note("r2", {}, 1.2)
    assert elsewhere.tenants(INTERACTIVE, 1.2) == set()
