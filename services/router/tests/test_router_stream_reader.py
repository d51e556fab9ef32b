"""Reads wait for news, and can be told not to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis.asyncio
from tandem_common.redis_client import blocking_ms, connect
from tandem_router.kv_records import START
from tandem_router.stream_reader import StreamReader, entries_of


@pytest.fixture
async def reader(redis_url: str) -> AsyncIterator[StreamReader]:
    client = connect(redis_url, wait_s=30.0)
    yield StreamReader(client)
    await client.aclose()


@pytest.mark.parametrize("cursors", [{}, {b"s": START}])
async def test_an_interrupted_read_returns_nothing_at_once(
    reader: StreamReader, cursors: dict[bytes, object]
) -> None:
    for turns in (0, 1, 2, 5, 50):
        reading = asyncio.create_task(reader.read(cursors))  # type: ignore[arg-type]
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.sleep(0.0 if turns < 50 else 0.05)
        reader.interrupt()
        if turns == 0:
            reader.interrupt()
            await asyncio.sleep(0.01)
            reader.interrupt()
        async with asyncio.timeout(10):
            assert await reading == []


async def test_a_read_goes_on_after_an_interruption(
    reader: StreamReader, redis_client: redis.asyncio.Redis
) -> None:
    reading = asyncio.create_task(reader.read({b"s": START}))
    await asyncio.sleep(0.05)
    reader.interrupt()
    await reading
    reading = asyncio.create_task(reader.read({b"s": START}))
    await asyncio.sleep(0.02)
    await redis_client.xadd("s", {"a": "1"})
    async with asyncio.timeout(10):
        ((key, ((_, fields),)),) = await reading
    assert (key, fields) == (b"s", {b"a": b"1"})


async def test_who_is_cancelled_while_reading_is_cancelled_even_if_interrupted_too(
    reader: StreamReader,
) -> None:
    reading = asyncio.create_task(reader.read({b"s": START}))
    await asyncio.sleep(0.05)
    reader.interrupt()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_a_client_that_may_wait_for_longer_blocks_for_longer(redis_url: str) -> None:
    assert blocking_ms(connect(redis_url)) == 200
    assert blocking_ms(connect(redis_url, wait_s=1.0)) == 1200


def test_entries_are_the_same_parsed_or_not() -> None:
    assert entries_of([[b"1-0", [b"k", b"v", b"l", b"w"]]]) == [(b"1-0", {b"k": b"v", b"l": b"w"})]
    assert entries_of([(b"1-0", {b"k": b"v"})]) == [(b"1-0", {b"k": b"v"})]
