"""RouterClient against routers that answer, wait, or say nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest
from tandem.v1 import cluster_pb2, router_pb2_grpc
from tandem.v1 import router_pb2 as pb
from tandem_common.errors import Overloaded, Unavailable
from tandem_frontend.routing import RouterClient


class FakeCatalog:
    def __init__(self, *cards: cluster_pb2.WorkerCard) -> None:
        self.cards = cards

    def decode_workers(self, model: str) -> list[cluster_pb2.WorkerCard]:
        return list(self.cards)


class FakeRouter(router_pb2_grpc.RouterServiceServicer):
    """Answers after `delay_s`; `says` whether it tells that the request waits."""

    def __init__(self, *, delay_s: float = 0.0, says: bool = True, refuse: bool = False) -> None:
        self.delay_s = delay_s
        self.says = says
        self.refuse = refuse
        self.refusal = (grpc.StatusCode.RESOURCE_EXHAUSTED, "too much")
        self.messages: list[pb.RouteStreamRequest] = []
        self.left = asyncio.Event()
        self.ends_after: int | None = None  # calls
        self._writing = asyncio.Lock()  # gRPC takes one write at a time

    @property
    def num_calls(self) -> int:
        return sum(len(message.calls) for message in self.messages)

    async def RouteStream(  # noqa: N802
        self, requests: AsyncIterator[pb.RouteStreamRequest], context: Any
    ) -> None:
        answering = set()
        async for request in requests:
            self.messages.append(request)
            if request.cancelled_call_ids:
                self.left.set()
            if self.ends_after is not None and self.num_calls > self.ends_after:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "scripted end")
            for call in request.calls:
                answering.add(asyncio.create_task(self._answer(call.call_id, context)))

    async def _answer(self, call_id: int, context: Any) -> None:
        answer = pb.RouteAnswer(call_id=call_id)
        if self.refuse:
            answer.failure.code, answer.failure.message = self.refusal[0].value[0], self.refusal[1]
            answer.failure.retry_after_ms = 1500
        else:
            answer.route.decode.worker_id = "d"
            answer.route.predicted_ttft_ms = 50
        if self.delay_s:
            if self.says:
                waiting = pb.RouteAnswer(call_id=call_id, waiting=pb.RouteWaiting())
                await self._write(waiting, context)
            await asyncio.sleep(self.delay_s)
        await self._write(answer, context)

    async def _write(self, answer: pb.RouteAnswer, context: Any) -> None:
        async with self._writing:
            await context.write(pb.RouteStreamResponse(answers=[answer]))


@contextlib.asynccontextmanager
async def serving(
    *routers: FakeRouter, cards: Sequence[cluster_pb2.WorkerCard] = ()
) -> AsyncIterator[RouterClient]:
    servers, addresses = [], []
    for router in routers:
        server = grpc.aio.server()
        router_pb2_grpc.add_RouterServiceServicer_to_server(router, server)
        addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        servers.append(server)
    client = RouterClient(lambda: addresses, FakeCatalog(*cards))  # type: ignore[arg-type]
    try:
        yield client
    finally:
        await client.close()
        await asyncio.gather(*(server.stop(None) for server in servers))


QUERY = pb.RouteQuery(request_id="r1", model="m", num_tokens=1, max_tokens=1)


async def test_a_router_that_lets_a_request_wait_is_waited_for() -> None:
    router = FakeRouter(delay_s=1.3)
    async with serving(router) as client:
        assert (await client.route(QUERY)).decode.worker_id == "d"
        assert router.num_calls == 1


async def test_a_router_that_says_nothing_is_left() -> None:
    router = FakeRouter(delay_s=5, says=False)
    async with serving(router) as client:
        with pytest.raises(Unavailable):
            await client.route(QUERY)
        await asyncio.wait_for(router.left.wait(), 5)


async def test_giving_up_leaves_the_routers_queue() -> None:
    router = FakeRouter(delay_s=5)
    async with serving(router) as client:
        task = asyncio.create_task(client.route(QUERY))
        while not router.num_calls:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(router.left.wait(), 5)


async def test_a_refusal_is_passed_on() -> None:
    async with serving(FakeRouter(refuse=True)) as client:
        with pytest.raises(Overloaded, match="too much") as caught:
            await client.route(QUERY)
    assert caught.value.retry_after_ms == 1500


async def test_the_next_request_tells_how_a_prediction_turned_out() -> None:
    router = FakeRouter()
    async with serving(router) as client:
        route = await client.route(QUERY)
        client.observe(route, 0.2)
        client.note_served(pb.RouteQuery(tenant="acme", max_tokens=50), 7)
        await client.route(QUERY)
        await client.route(QUERY)
    served = [(s.tenant, s.max_tokens, s.num_new_tokens) for r in router.messages for s in r.served]
    assert served == [("acme", 50, 7)]
    told = [[(o.predicted_ttft_ms, o.observed_ttft_ms) for o in m.observations] for m in router.messages]
    assert told == [[], [(50.0, 200.0)], []]


async def test_requests_of_one_moment_travel_together() -> None:
    router = FakeRouter()
    async with serving(router) as client:
        await client.route(QUERY)  # the stream is open
        routes = await asyncio.gather(*(client.route(QUERY) for _ in range(20)))
    assert [route.decode.worker_id for route in routes] == ["d"] * 20
    assert [len(message.calls) for message in router.messages] == [1, 20]


async def test_a_stream_that_breaks_sends_its_calls_to_another_router_and_is_opened_again() -> None:
    routers = [FakeRouter(), FakeRouter()]
    async with serving(*routers) as client:
        for router in routers:
            router.ends_after = 0
        routers[1].ends_after = None
        routes = await asyncio.gather(*(client.route(QUERY) for _ in range(4)))
        assert [route.decode.worker_id for route in routes] == ["d"] * 4
        routers[0].ends_after = None
        routers[1].ends_after = 0
        routes = await asyncio.gather(*(client.route(QUERY) for _ in range(4)))
        assert [route.decode.worker_id for route in routes] == ["d"] * 4


async def test_waiting_requests_hold_up_no_others() -> None:
    router = FakeRouter(delay_s=0.3)
    async with serving(router) as client:
        first = asyncio.create_task(client.route(QUERY))
        while not router.num_calls:
            await asyncio.sleep(0.01)
        router.delay_s = 0
        await client.route(QUERY)
        assert not first.done()
        assert (await first).decode.worker_id == "d"


CARDS = [
    cluster_pb2.WorkerCard(worker_id="cheap", labels={"region": "us"}, price_per_million_tokens=0.1),
    cluster_pb2.WorkerCard(
        worker_id="near", labels={"region": "eu", "zone": "a"}, price_per_million_tokens=2
    ),
]


@pytest.mark.parametrize(
    ("wishes", "allowed"),
    [
        ({}, {"cheap", "near"}),
        ({"pinned_worker_ids": ["near", "some-prefill-worker"]}, {"near"}),
        ({"excluded_worker_ids": ["near"]}, {"cheap"}),
        ({"required_labels": {"region": "eu"}}, {"near"}),
        ({"max_price_per_million_tokens": 0.1}, {"cheap"}),
        ({"pinned_worker_ids": ["other"]}, set()),
        ({"required_labels": {"region": "eu", "zone": "b"}}, set()),
        ({"required_labels": {"region": "eu"}, "max_price_per_million_tokens": 1}, set()),
        ({"max_price_per_million_tokens": 0}, set()),
    ],
)
@pytest.mark.parametrize(
    "routers", [[], [FakeRouter(refuse=True)]], ids=["no router", "a router that refuses"]
)
async def test_what_a_request_requires_holds_without_a_router_too(
    routers: list[FakeRouter], wishes: dict[str, Any], allowed: set[str]
) -> None:
    for router in routers:
        router.refusal = (grpc.StatusCode.UNAVAILABLE, "2 dearer than the request allows")
    query = pb.RouteQuery(request_id="r1", model="m", num_tokens=1, max_tokens=1, **wishes)
    async with serving(*routers, cards=CARDS) as client:
        if allowed:
            assert {(await client.route(query)).decode.worker_id for _ in range(4)} == allowed
        else:
            # What the router said of it tells the client why.
            with pytest.raises(Unavailable, match="2 dearer than" if routers else "ask for less"):
                await client.route(query)
