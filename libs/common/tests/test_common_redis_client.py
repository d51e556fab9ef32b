from __future__ import annotations

import asyncio

import pytest
from tandem_common.config import ConfigError
from tandem_common.redis_client import connect


async def test_a_cancelled_task_ends_whatever_it_is_doing_with_redis(redis_url: str) -> None:
    client = connect(redis_url)

    async def poll() -> None:
        while True:
            for _ in range(20):
                await client.get("key")
            await asyncio.sleep(0)

    try:
        for turns in range(400):
            task = asyncio.create_task(poll())
            for _ in range(turns % 60):
                await asyncio.sleep(0)
            await asyncio.sleep((turns % 7) * 1e-4)
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=2.0)
            if not done:
                task.cancel()
            assert done, f"a cancellation was lost after {turns} turns"
        assert await client.ping()
    finally:
        await client.aclose()


async def test_bytes_go_in_and_come_out(redis_url: str) -> None:
    client = connect(redis_url)
    await client.set("key", b"\xff\x00")
    assert await client.get("key") == b"\xff\x00"
    await client.aclose()


def test_a_url_that_cannot_be_used_names_the_fix() -> None:
    with pytest.raises(ConfigError, match="redis_url"):
        connect("http://example.org")
