"""A decision is explained by whichever router took it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from tandem.v1 import cluster_pb2, router_pb2, router_pb2_grpc
from tandem_cli.router_access import RouterPlace, explain_request
from tandem_common.config import ConfigError
from tandem_common.keys import Keys
from tandem_common.redis_client import connect
from tandem_common.registry import ServicePublisher


class Router(router_pb2_grpc.RouterServiceServicer):
    """Remembers one request."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id

    async def Explain(self, request, context):  # noqa: N802
        if request.request_id != self.request_id:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no decision for this request is remembered")
        return router_pb2.ExplainResponse(policy=f"of {self.request_id}")


@asynccontextmanager
async def registered_routers(redis_url: str, *request_ids: str) -> AsyncIterator[list[str]]:
    client = connect(redis_url)
    servers, tasks, addresses = [], [], []
    try:
        for request_id in request_ids:
            server = grpc.aio.server()
            router_pb2_grpc.add_RouterServiceServicer_to_server(Router(request_id), server)
            addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
            await server.start()
            servers.append(server)
            card = cluster_pb2.ServiceCard(kind="router", service_id=request_id, address=addresses[-1])
            tasks.append(asyncio.create_task(ServicePublisher(client, Keys("default"), card).run()))
        async with asyncio.timeout(10):
            while await client.scard(Keys("default").services("router")) < len(request_ids):
                await asyncio.sleep(0.01)
        yield addresses
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in servers:
            await server.stop(0)
        await client.aclose()


async def test_all_routers_are_asked_for_the_one_that_remembers(redis_url: str) -> None:
    async with registered_routers(redis_url, "r1", "r2", "r3") as addresses:
        place = RouterPlace(redis_url=redis_url)
        for request_id in ("r1", "r2", "r3"):
            assert (await explain_request(place, request_id)).policy == f"of {request_id}"
        with pytest.raises(ConfigError, match="no decision for this request"):
            await explain_request(place, "r4")
        with pytest.raises(ConfigError, match="no decision for this request"):
            await explain_request(RouterPlace(address=addresses[0]), "r2")
