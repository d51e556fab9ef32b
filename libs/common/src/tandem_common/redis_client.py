"""Connections to the control plane."""

from __future__ import annotations

import asyncio
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from tandem_common.config import ConfigError

# The data plane never waits for Redis; background tasks give up after this and keep their last view.
TIMEOUT_S = 1.0


def connect(url: str) -> redis.asyncio.Redis:
    """A client (bytes in, bytes out) whose every call fails within a second or so; it connects when first used.

    Retrying is left to the callers' loops, which know their own rhythm. Raises ConfigError for a bad URL.
    """
    try:
        client = redis.asyncio.Redis.from_url(
            url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
        )
    except ValueError as error:
        raise ConfigError(
            f"redis_url cannot be used ({error}); write redis://HOST:PORT/0, rediss://... for TLS or unix://PATH"
        ) from None
    pool = client.connection_pool
    pool.connection_class = type("Connection", (_HeedsCancellation, pool.connection_class), {})
    return client


class _HeedsCancellation:
    """Mixed into redis-py's connection, so that cancelling a task which is just sending a command ends it.

    redis-py sends inside `asyncio.wait_for`, which before Python 3.12 drops a cancellation that arrives in the turn of
    the event loop in which the inner task finishes. The task's count of cancellations still tells.
    """

    async def send_packed_command(self: Any, *args: Any, **kwargs: Any) -> None:
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        await super().send_packed_command(*args, **kwargs)  # type: ignore[misc]
        if task and task.cancelling() > before:
            # Sent, and nobody will read the reply: the connection cannot be used again.
            await self.disconnect(nowait=True)
            raise asyncio.CancelledError
