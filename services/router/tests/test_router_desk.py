from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

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


class SomeUnable(AdmissionRules):
    """Those of these names cannot start."""

    unable: ClassVar[set[str]] = set()

    def can_start(self, query: Query, decision: Decision, *, starved: bool = False) -> bool:
        """As the rules say otherwise."""
        return query.request_id not in self.unable and super().can_start(query, decision, starved=starved)


@pytest.fixture
def unable() -> Iterator[set[str]]:
    yield SomeUnable.unable
    SomeUnable.unable.clear()


def test_who_cannot_start_is_passed_on_its_workers_by_no_more_than_twice_its_own_tokens(
    unable: set[str],
) -> None:
    unable.add("large")
    world = World(rules=SomeUnable())
    world.arrive("large", num_tokens=4000)
    for number in range(12):
        world.arrive(f"small{number:02}", 10.0, num_tokens=1000)
    world.view = IDLE
    # It is charged 4,010 tokens, each of the others 1,010: eight of them are twice as much.
    assert world.pump(11.0) == [f"small{number:02} Started" for number in range(8)]
    assert world.pump(12.0) == []
    unable.clear()
    assert world.pump(13.0)[0] == "large Started"


@pytest.mark.parametrize(("worker", "num_started"), [("d1", 12), ("d0", 2)])
def test_who_waits_for_one_worker_holds_nobody_up_on_others(
    unable: set[str], worker: str, num_started: int
) -> None:
    world = World(rules=SomeUnable())
    unable.add("held")
    world.view = view_of(decode_worker("d0"), decode_worker("d1"))
    world.arrive("held", pinned_worker_ids=["d0"])
    for number in range(12):
        assert isinstance(world.arrive(f"r{number:02}", 10.0, pinned_worker_ids=[worker]), Ticket)
    assert world.pump(10.1) == [f"r{number:02} Started" for number in range(num_started)]


@pytest.mark.parametrize(("later_s", "first"), [(0.5, "short"), (20.0, "long")])
def test_a_short_prompt_goes_before_a_long_one_that_has_not_waited_for_long(
    later_s: float, first: str
) -> None:
    world = World()
    world.arrive("long", 0.0, num_tokens=8000)
    world.arrive("short", later_s, num_tokens=100)
    world.view = IDLE
    assert world.pump(later_s + 0.1)[0] == f"{first} Started"


def test_a_deadline_that_is_named_decides_and_otherwise_three_times_the_prompts_own_time(
    unable: set[str],
) -> None:
    world = World(rules=SomeUnable())
    world.view = IDLE
    unable.update(("named", "unnamed"))
    world.arrive("named", 1.0, num_tokens=8000, ttft_deadline_ms=50_000)
    world.arrive("unnamed", 1.0, num_tokens=8000)
    named, unnamed = (ticket.item for ticket in world.desk.waiting())
    assert named.turn_s == named.deadline_s == 51.0
    assert unnamed.turn_s == unnamed.due_s < unnamed.deadline_s == 61.0
