"""Connections to the control plane: one Redis, one that Sentinels watch over, or a Redis Cluster."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import redis.asyncio
from redis.asyncio.cluster import ClusterNode, ClusterPipeline, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, ResponseError

from tandem_common.redis_url import RedisKind, RedisUrl, parse_redis_url

# The data plane never waits for Redis; background tasks give up after this and keep their last view.
TIMEOUT_S = 1.0
_BLOCKING_MARGIN_S = 0.8


def connect(url: str, *, wait_s: float = 0.0) -> redis.asyncio.Redis:
    """A client (bytes in, bytes out) whose every call fails within a second or so; it connects when first used.

    One for blocking commands gives Redis `wait_s` more, see `blocking_ms`: a read that waits for longer wakes an idle
    service less often.
    For a cluster it is a client of another class, which answers the calls that Tandem makes in the same way; only
    commands over keys of several hash tags are refused, see `is_cluster`. Failures are RedisError or OSError.
    Retrying is left to the callers' loops, which know their own rhythm. Raises ConfigError for a bad URL.
    """
    place = parse_redis_url(url)
    timeouts = {**_TIMEOUTS, "socket_timeout": TIMEOUT_S + wait_s}
    match place.kind:
        case RedisKind.CLUSTER:
            return cast("redis.asyncio.Redis", _cluster(place, timeouts))
        case RedisKind.SENTINEL:
            client = _watched(place, timeouts)
        case RedisKind.SINGLE:
            client = redis.asyncio.Redis.from_url(place.url, **timeouts)
    pool = client.connection_pool
    pool.connection_class = _heedful(pool.connection_class)
    return client


def blocking_ms(client: redis.asyncio.Redis) -> int:
    """How long blocking commands of this client should wait: well below its time-out."""
    timeout_s: float
    if isinstance(client, RedisCluster):
        timeout_s = client.connection_kwargs["socket_timeout"]
    else:
        timeout_s = client.connection_pool.connection_kwargs["socket_timeout"]
    return round(1000 * (timeout_s - _BLOCKING_MARGIN_S))


def is_cluster(client: redis.asyncio.Redis) -> bool:
    """Whether keys of different hash tags live on different servers."""
    return isinstance(client, RedisCluster)


def is_of_wrong_type(*answers: object) -> bool:
    """Whether a key of a pipeline, run with `raise_on_error=False`, holds something else than was asked for.

    That spoils the key alone. Other errors (Redis is loading, a node of the cluster is away) concern everybody and are
    raised.
    """
    for answer in answers:
        if isinstance(answer, ResponseError) and str(answer).startswith("WRONGTYPE"):
            return True
        if isinstance(answer, Exception):
            raise answer
    return False


_TIMEOUTS: dict[str, Any] = {
    "socket_timeout": TIMEOUT_S,
    "socket_connect_timeout": TIMEOUT_S,
    "retry": Retry(NoBackoff(), 0),
    "health_check_interval": 0,
}


def _watched(place: RedisUrl, timeouts: dict[str, Any]) -> redis.asyncio.Redis:
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        list(place.nodes), sentinel_kwargs={**_TIMEOUTS, **place.sentinel_options}, **timeouts
    )
    client: redis.asyncio.Redis = sentinel.master_for(
        place.master, redis_class=_WatchedRedis, **{**place.options, **timeouts}
    )
    return client


def _cluster(place: RedisUrl, timeouts: dict[str, Any]) -> RedisCluster:
    client = _Cluster(
        startup_nodes=[ClusterNode(host, port) for host, port in place.nodes],
        # What lives on the other nodes can be used while one is away.
        require_full_coverage=False,
        # One more try after the client has asked anew which node has what: a node's role may have moved.
        **{**timeouts, "retry": Retry(NoBackoff(), 1), **place.options},
    )
    heedful = _heedful(client.connection_kwargs["connection_class"])
    client.connection_kwargs["connection_class"] = heedful
    for node in client.startup_nodes:
        node.connection_class = heedful
    return client


class _WatchedRedis(redis.asyncio.Redis):
    """Closes the connections to the Sentinels too."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        pool: Any = self.connection_pool
        await pool.sentinel_manager.aclose()


class _Cluster(RedisCluster):
    """Raises RedisError for a cluster that cannot be reached, and closes all connections, as other clients do."""

    async def aclose(self) -> None:
        await super().aclose()
        # After a failure the client takes itself for not initialized, and leaves open what it has.
        await self.nodes_manager.aclose()
        await self.nodes_manager.aclose("startup_nodes")

    async def initialize(self, *args: Any, **kwargs: Any) -> RedisCluster:
        try:
            return await super().initialize(*args, **kwargs)
        except RedisClusterException as error:
            raise RedisConnectionError(str(error)) from error

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().execute_command(*args, **kwargs)
        except RedisClusterException as error:
            raise RedisConnectionError(str(error)) from error

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> ClusterPipeline:
        return _ClusterPipeline(self, transaction)  # type: ignore[abstract] # not by its own stubs


class _ClusterPipeline(ClusterPipeline):
    """As `_Cluster`."""

    async def execute(self, *args: Any, **kwargs: Any) -> list[Any]:
        try:
            return await super().execute(*args, **kwargs)
        except RedisClusterException as error:
            raise RedisConnectionError(str(error)) from error


def _heedful(connection_class: type) -> Any:
    return type("Connection", (_HeedsCancellation, connection_class), {})


class _HeedsCancellation:
    """Mixed into redis-py's connection, so that cancelling a task which is just sending a command ends it.

    redis-py sends inside `asyncio.wait_for`, which before Python 3.12 drops a cancellation that arrives in the turn of
    the event loop in which the inner task finishes. The task's count of cancellations still tells.

    And a connection that another task closes meanwhile, as a cluster's client does when it asks anew which node has
    what, is a ConnectionError and not an AttributeError.
    """

    async def send_packed_command(self: Any, *args: Any, **kwargs: Any) -> None:
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        try:
            await super().send_packed_command(*args, **kwargs)  # type: ignore[misc]
        except AttributeError:
            if self.is_connected:
                raise
            raise RedisConnectionError("the connection was closed while it was used") from None
        if task and task.cancelling() > before:
            # Sent, and nobody will read the reply: the connection cannot be used again.
            await self.disconnect(nowait=True)
            raise asyncio.CancelledError
