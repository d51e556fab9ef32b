from __future__ import annotations

import asyncio
from typing import Any

import pytest
from router_fakes import busy, decode_worker, prefill_worker, queued, view_of
from tandem.v1 import router_pb2 as pb
from tandem_common.errors import Overloaded, Unavailable
from tandem_router.admission import AdmissionRules, PredictionError
from tandem_router.desk import Desk, QueueRules
from tandem_router.dispatcher import Dispatched, Dispatcher
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
    """A dispatcher over a view that the test sets; what was started is noted, and books nothing."""

    def __init__(self, **queue_rules: Any) -> None:
        self.view: ClusterView = BEHIND
        self.started: list[str] = []
        self.num_waits = 0
        index = BlockIndex()
        self.dispatcher = Dispatcher(
            Desk(
                Predictive(),
                lambda: self.view,
                lambda message: query_from_proto(message, index, 0),
                self.note,
                shares=FairShares(),
                rules=AdmissionRules(),
                queue_rules=QueueRules(**queue_rules),
                error=PredictionError(quantile=0.9),
            )
        )

    def note(self, message: pb.RouteQuery, query: Query, decision: Decision) -> None:
        self.started.append(query.request_id)

    async def on_wait(self) -> None:
        self.num_waits += 1

    def route(self, request_id: str, **changes: Any) -> asyncio.Task[Dispatched]:
        message = pb.RouteQuery(
            request_id=request_id, model="tiny", **({"num_tokens": 1000, "max_tokens": 10} | changes)
        )
        return asyncio.create_task(self.dispatcher.route(message, self.on_wait))

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


async def test_a_request_starts_at_once_when_a_worker_can_take_it() -> None:
    world = World()
    world.view = IDLE
    started = (await world.route("r1")).started
    assert (started.waited_ms, world.num_waits, world.started) == (0.0, 0, ["r1"])


async def test_a_request_waits_until_a_worker_can_start_it() -> None:
    world = World()
    task = world.route("r1")
    await world.settle()
    world.dispatcher.pump()
    await world.settle()
    assert (world.num_waits, world.dispatcher.num_waiting, task.done()) == (1, 1, False)
    world.view = IDLE
    world.dispatcher.pump()
    started = (await task).started
    assert started.waited_ms > 0
    assert started.view is IDLE, "the choice is made when the request starts, not when it came"
    assert world.dispatcher.num_waiting == 0


async def test_the_waiting_start_in_order_of_deadline_and_class() -> None:
    world = World()
    tasks = [
        world.route("batch", request_class=2),
        world.route("later", ttft_deadline_ms=50_000),
        world.route("sooner", ttft_deadline_ms=40_000),
    ]
    await world.settle()
    assert world.dispatcher.num_waiting == 3
    world.view = IDLE
    world.dispatcher.pump()
    await asyncio.gather(*tasks)
    assert world.started == ["sooner", "later", "batch"]


async def test_many_waiting_start_although_one_turn_takes_a_few_only() -> None:
    world = World()
    tasks = [world.route(f"r{i}") for i in range(100)]
    await world.settle()
    world.view = IDLE
    world.dispatcher.pump()
    await asyncio.gather(*tasks)
    assert len(world.started) == 100


async def test_an_abandoned_request_leaves_the_queue() -> None:
    world = World()
    task = world.route("r1")
    await world.settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.dispatcher.num_waiting == 0
    world.view = IDLE
    world.dispatcher.pump()
    assert world.started == []


async def test_a_request_that_would_miss_its_deadline_is_refused_without_waiting() -> None:
    world = World()
    with pytest.raises(Overloaded) as refused:
        await world.route("r1", ttft_deadline_ms=100)
    assert refused.value.retry_after_ms is not None
    assert refused.value.retry_after_ms >= 1000
    assert world.num_waits == 0


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    world = World(max_depth=1)
    first = world.route("r1")
    await world.settle()
    with pytest.raises(Overloaded) as refused:
        await world.route("r2")
    assert refused.value.retry_after_ms
    first.cancel()


async def test_who_waited_too_long_is_told_so() -> None:
    world = World(max_age_s=0.0)
    task = world.route("r1")
    await world.settle()
    world.dispatcher.pump()
    with pytest.raises(Overloaded, match="too long"):
        await task


async def test_the_waiting_are_sent_elsewhere_when_the_router_stops() -> None:
    world = World()
    task = world.route("r1")
    await world.settle()
    world.dispatcher.stop()
    with pytest.raises(Unavailable, match="another"):
        await task
    assert world.dispatcher.num_waiting == 0


async def test_who_waits_is_started_although_no_beat_comes() -> None:
    world = World()
    task = world.route("r1")
    await world.settle()
    world.view = IDLE
    await asyncio.wait_for(task, 5.0)
    assert world.started == ["r1"]
