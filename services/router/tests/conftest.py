from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis.asyncio
from tandem_common.redis_client import connect


@pytest.fixture
async def redis_client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    """A client of a private server."""
    client = connect(redis_url)
    yield client
    await client.aclose()
