"""Connections to the control plane."""

from __future__ import annotations

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
        return redis.asyncio.Redis.from_url(
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
