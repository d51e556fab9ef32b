"""Finding a router and asking it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from redis.exceptions import RedisError
from tandem.v1 import router_pb2, router_pb2_grpc
from tandem_common.config import ConfigError
from tandem_common.keys import Keys
from tandem_common.redis_client import connect
from tandem_common.registry import ServiceWatcher
from tandem_common.rpc import error_from_rpc, open_channel

from tandem_cli.run_file import RunRecord, run_files_dir, running_stacks

RPC_TIMEOUT_S = 5.0
_CONNECT_TIMEOUT_S = 3.0


@dataclass(frozen=True, kw_only=True)
class RouterPlace:
    """Where to look for a router: its address, or the Redis and cluster that it is registered in."""

    address: str = ""
    redis_url: str = field(default="", repr=False)
    cluster: str = "default"


def place_of_router(
    router: str | None, redis: str | None, cluster: str, stack: RunRecord | None
) -> RouterPlace:
    """What the flags say, else the stack on this machine; ConfigError when there is neither. Pure."""
    if router:
        return RouterPlace(address=router)
    if redis:
        return RouterPlace(redis_url=redis, cluster=cluster)
    if stack is None:
        raise ConfigError(
            "no stack runs on this machine; start one with `tandem up`, or pass --router HOST:PORT or --redis URL"
        )
    if stack.redis_url:
        return RouterPlace(redis_url=stack.redis_url, cluster=stack.cluster)
    return RouterPlace(address=stack.router_address)


def local_stack_record() -> RunRecord | None:
    """The latest stack that runs on this machine, if one does."""
    stacks = running_stacks(run_files_dir(os.environ))
    return stacks[0] if stacks else None


@asynccontextmanager
async def router_stub(place: RouterPlace) -> AsyncIterator[router_pb2_grpc.RouterServiceAsyncStub]:
    """A stub of a router that answers; ConfigError when there is none. Failed calls raise ConfigError as well."""
    address = place.address or (await _registered_routers(place))[0]
    async with _stub_at(address) as stub:
        yield stub


async def explain_request(place: RouterPlace, request_id: str) -> router_pb2.ExplainResponse:
    """What the router that routed a request says of it: each remembers its own, so all that are there are asked.

    ConfigError when none of them remembers it.
    """
    request = router_pb2.ExplainRequest(request_id=request_id)
    failures = []
    for address in [place.address] if place.address else await _registered_routers(place):
        try:
            async with _stub_at(address) as stub:
                return await stub.Explain(request, timeout=RPC_TIMEOUT_S)
        except ConfigError as error:
            failures.append(error)
    raise failures[0]


@asynccontextmanager
async def _stub_at(address: str) -> AsyncIterator[router_pb2_grpc.RouterServiceAsyncStub]:
    channel = open_channel(address)
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            await channel.channel_ready()
        yield router_pb2_grpc.RouterServiceStub(channel)
    except TimeoutError:
        raise ConfigError(f"no router answers at {address}; is the stack still running?") from None
    except grpc.aio.AioRpcError as error:
        raise ConfigError(f"the router at {address}: {error_from_rpc(error).message}") from None
    finally:
        await channel.close()


async def _registered_routers(place: RouterPlace) -> list[str]:
    """Addresses; at least one."""
    client: Any = connect(place.redis_url)
    try:
        watcher = ServiceWatcher(client, Keys(place.cluster), "router")
        await watcher.refresh()
    except (RedisError, OSError) as error:
        raise ConfigError(
            f"Redis does not answer ({error}); check --redis, or pass --router HOST:PORT"
        ) from None
    finally:
        await client.aclose()
    if watcher.services:
        return [card.address for card in watcher.services.values()]
    raise ConfigError(f"no router is registered in cluster {place.cluster!r}; is the stack still starting?")
