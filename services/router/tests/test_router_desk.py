from __future__ import annotations

from typing import Any

import pytest
from router_fakes import busy, decode_worker, prefill_worker, queued, view_of
from tandem.v1 import router_pb2 as pb
from tandem_common.errors import Overloaded
from tandem_router.admission import AdmissionRules, PredictionError
from tandem_router.desk import Desk, QueueRules, Started, Ticket
from tandem_router.fairness import FairShares
from tandem_router.index import BlockIndex
from tandem_router.policies import Predictive
from tandem_router.query import Decision, Query
from tandem_router.view import ClusterView
from tandem_router.wire import query_from_proto

IDLE = view_of(prefill_worker("p"), decode_worker("d"))
BEHIND = view_of(
    prefill_worker("p", load=queued(50_000, 10)),
    decode_worker("d", load=busy(40, num_prefilling=10, queued_prefill_tokens=50_000)),
)


class World:
    def __init__(self, rules: AdmissionRules | None = None, **queue_rules: Any) -> None:
        self.view: ClusterView = BEHIND
        self.booked: list[str] = []
        index = BlockIndex()
        self.desk = Desk(
            Predictive(),
            lambda: self.view,
            lambda message: query_from_proto(message, index, 0),
            lambda _, query, __: self.booked.append(query.request_id),
            shares=FairShares(),
            rules=rules or AdmissionRules(),
            queue_rules=QueueRules(**queue_rules),
            error=PredictionError(quantile=0.9),
        )

    def arrive(self, request_id: str, now_s: float = 0.0, **changes: Any) -> Started | Ticket:
        message = pb.RouteQuery(
            request_id=request_id, model="tiny", **({"num_tokens": 1000, "max_tokens": 10} | changes)
        )
        return self.desk.arrive(message, now_s)

    def pump(self, now_s: float) -> list[str]:
        names = [
            f"{ticket.message.request_id} {type(outcome).__name__}"
            for ticket, outcome in self.desk.pump(now_s)
        ]
        self.desk.check_integrity()
        return names


def test_time_is_what_the_caller_says() -> None:
    world = World()
    ticket = world.arrive("r1", 10.0)
    assert isinstance(ticket, Ticket)
    assert world.pump(11.0) == []
    world.view = IDLE
    ((_, outcome),) = world.desk.pump(12.5)
    assert isinstance(outcome, Started)
    assert outcome.waited_ms == 2500.0
    assert world.booked == ["r1"]
    assert world.desk.num_waiting == 0


def test_who_waits_for_too_long_is_given_up_and_not_booked() -> None:
    world = World(max_age_s=5.0)
    world.arrive("r1", 0.0)
    world.arrive("r2", 1.0)
    assert world.pump(5.5) == ["r1 Overloaded"]
    assert [ticket.message.request_id for ticket in world.desk.waiting()] == ["r2"]
    assert world.booked == []


def test_a_pump_may_be_left_off_and_begun_again() -> None:
    world = World()
    for number in range(3):
        world.arrive(f"r{number}")
    world.view = IDLE
    next(world.desk.pump(1.0))
    assert world.booked == ["r0"]
    assert world.desk.num_waiting == 2
    assert world.pump(1.0) == ["r1 Started", "r2 Started"]


def test_leaving_twice_is_fine_and_an_empty_line_is_forgotten() -> None:
    world = World()
    ticket = world.arrive("r1")
    assert isinstance(ticket, Ticket)
    world.desk.leave(ticket)
    world.desk.leave(ticket)
    world.desk.check_integrity()
    assert world.desk.waiting() == []


def test_a_refused_request_leaves_nothing_behind() -> None:
    world = World(max_depth=1)
    world.arrive("r1")
    with pytest.raises(Overloaded):
        world.arrive("r2")
    with pytest.raises(Overloaded):
        world.arrive("r3", ttft_deadline_ms=1)
    world.desk.check_integrity()
    assert world.desk.num_waiting == 1


def test_who_cannot_start_is_passed_by_those_who_can_but_by_no_more_than_twice_its_own_tokens() -> None:
    unable = {"large"}

    class Rules(AdmissionRules):
        def can_start(self, query: Query, decision: Decision, *, starved: bool = False) -> bool:
            return query.request_id not in unable and super().can_start(query, decision, starved=starved)

    world = World(rules=Rules())
    world.arrive("large", num_tokens=4000)
    for number in range(12):
        world.arrive(f"small{number:02}", num_tokens=1000)
    world.view = IDLE
    # It is charged 4,010 tokens, each of the others 1,010: eight of them are twice as much.
    assert world.pump(1.0) == [f"small{number:02} Started" for number in range(8)]
    assert world.pump(2.0) == []
    unable.clear()
    assert world.pump(3.0)[0] == "large Started"
