"""RouterClient against routers that answer, wait, or say nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from tandem.v1 import router_pb2 as pb
from tandem.v1 import router_pb2_grpc
from tandem_common.errors import Overloaded, Unavailable
from tandem_frontend.routing import RouterClient


class FakeCatalog:
    def decode_workers(self, model: str) -> list[Any]:
        return []


class FakeRouter(router_pb2_grpc.RouterServiceServicer):
    """Answers after `delay_s`; `says` whether it tells that the request waits."""

    def __init__(self, *, delay_s: float = 0.0, says: bool = True, refuse: bool = False) -> None:
        self.delay_s = delay_s
        self.says = says
        self.refuse = refuse
        self.requests: list[pb.RouteRequest] = []
        self.left = asyncio.Event()

    async def Route(self, request: pb.RouteRequest, context: Any) -> pb.RouteResponse:  # noqa: N802
        self.requests.append(request)
        if self.refuse:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much")
        try:
            if self.delay_s:
                if self.says:
                    await context.send_initial_metadata(())
                await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.left.set()
            raise
        return pb.RouteResponse(decode=pb.WorkerRef(worker_id="d"), predicted_ttft_ms=50)


@contextlib.asynccontextmanager
async def serving(*routers: FakeRouter) -> AsyncIterator[RouterClient]:
    servers, addresses = [], []
    for router in routers:
        server = grpc.aio.server()
        router_pb2_grpc.add_RouterServiceServicer_to_server(router, server)
        addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        servers.append(server)
    client = RouterClient(lambda: addresses, FakeCatalog())  # type: ignore[arg-type]
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
        assert len(router.requests) == 1


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
        while not router.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(router.left.wait(), 5)


async def test_a_refusal_is_passed_on() -> None:
    async with serving(FakeRouter(refuse=True)) as client:
        with pytest.raises(Overloaded, match="too much"):
            await client.route(QUERY)


async def test_the_next_request_tells_how_a_prediction_turned_out() -> None:
    router = FakeRouter()
    async with serving(router) as client:
        route = await client.route(QUERY)
        client.observe(route, 0.2)
        client.note_served(pb.RouteQuery(tenant="acme", max_tokens=50), 7)
        await client.route(QUERY)
        await client.route(QUERY)
    served = [(s.tenant, s.max_tokens, s.num_new_tokens) for r in router.requests for s in r.served]
    assert served == [("acme", 50, 7)]
    told = [[(o.predicted_ttft_ms, o.observed_ttft_ms) for o in r.observations] for r in router.requests]
    assert told == [[], [(50.0, 200.0)], []]
