from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.exceptions import RedisError
from tandem_common.keys import Keys
from tandem_common.redis_client import connect
from tandem_planner.lease import PlannerLease

KEYS = Keys("test")


@pytest.fixture
async def client(redis_server: Any) -> AsyncIterator[Any]:
    client = connect(redis_server.url)
    try:
        yield client
    finally:
        await client.aclose()


async def test_one_planner_holds_the_lease_and_the_other_stands_by(client: Any) -> None:
    one, other = PlannerLease(client, KEYS, 10.0), PlannerLease(client, KEYS, 10.0)
    assert await one.keep() == 1
    assert await other.keep() == 0
    assert (one.token, other.token) == (1, 0)
    assert await one.keep() == 1


async def test_a_released_lease_is_taken_at_once_under_a_greater_token(client: Any) -> None:
    one, other = PlannerLease(client, KEYS, 10.0), PlannerLease(client, KEYS, 10.0)
    await one.keep()
    await one.release()
    assert one.token == 0
    assert await other.keep() == 2
    assert await one.keep() == 0


async def test_releasing_does_not_take_it_from_another_holder(client: Any) -> None:
    one, other = PlannerLease(client, KEYS, 10.0), PlannerLease(client, KEYS, 10.0)
    await one.keep()
    await client.delete(KEYS.planner_lease())
    await other.keep()
    await one.release()
    assert await other.keep() == 2


async def test_a_holder_that_slept_too_long_stops_before_another_takes_over(client: Any) -> None:
    one, other = PlannerLease(client, KEYS, 0.5), PlannerLease(client, KEYS, 10.0)
    assert await one.keep() == 1
    async with asyncio.timeout(5.0):
        while not await other.keep():
            await asyncio.sleep(0.02)
    assert one.token == 0
    assert other.token == 2
    assert await one.keep() == 0


async def test_a_lease_whose_answer_was_lost_is_taken_anew_by_its_owner(client: Any) -> None:
    lease = PlannerLease(client, KEYS, 10.0)
    await lease.keep()
    lease._token = 0
    assert await lease.keep() == 2


async def test_tokens_rise_even_when_redis_forgot_them(client: Any) -> None:
    lease = PlannerLease(client, KEYS, 10.0)
    for _ in range(5):
        await lease.keep()
        await lease.release()
    await client.flushall()
    assert await lease.keep() == 6


async def test_without_redis_the_lease_runs_out_and_comes_back_with_it(
    redis_server: Any, client: Any
) -> None:
    lease = PlannerLease(client, KEYS, 1.0)
    task = asyncio.create_task(lease.run())
    try:
        async with asyncio.timeout(5.0):
            while not lease.token:
                await asyncio.sleep(0.02)
            first = lease.token
            redis_server.stop()
            while lease.token:
                await asyncio.sleep(0.02)
            redis_server.start()
            while not lease.token:
                await asyncio.sleep(0.02)
        assert lease.token > first
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert await client.get(KEYS.planner_lease()) is None


async def test_an_outage_raises_and_does_not_end_a_lease_early(redis_server: Any, client: Any) -> None:
    lease = PlannerLease(client, KEYS, 10.0)
    await lease.keep()
    redis_server.stop()
    with pytest.raises(RedisError):
        await lease.keep()
    assert lease.token == 1
