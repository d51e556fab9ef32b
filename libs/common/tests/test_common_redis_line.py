"""What is asked at once travels together, and nobody gets another's answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
from redis.exceptions import RedisError, ResponseError
from redis_server import RedisServer
from tandem_common.redis_client import connect
from tandem_common.redis_line import RedisLine, line_of
from tandem_common.ticks import Ticks


@pytest.fixture
async def redis_client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    client = connect(redis_url)
    yield client
    await client.aclose()


class Counting:
    """A client whose connections count what they send."""

    def __init__(self, url: str) -> None:
        self.client = connect(url)
        self.num_sent = 0
        counting = self

        class Connection(self.client.connection_pool.connection_class):  # type: ignore[misc,name-defined]
            async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
                counting.num_sent += 1
                await super().send_packed_command(*args, **kwargs)

        self.client.connection_pool.connection_class = Connection
        self.line = line_of(self.client)


async def test_what_is_asked_in_one_turn_is_one_round_trip_and_each_gets_its_own_answers(
    redis_url: str,
) -> None:
    counting = Counting(redis_url)
    line = counting.line
    await line.ask(("SET", "a", b"1"), ("SET", "b", b"2"))
    before = counting.num_sent
    answers = await asyncio.gather(
        line.ask(("GET", "a")), line.ask(("MGET", "b", "none"), ("GET", "a")), line.ask()
    )
    assert answers == [[b"1"], [[b"2", None], b"1"], []]
    assert counting.num_sent == before + 1
    assert line_of(counting.client) is line
    await counting.client.aclose()


async def test_a_command_that_is_wrong_fails_alone(redis_client: redis.asyncio.Redis) -> None:
    line = RedisLine(redis_client)
    await line.ask(("RPUSH", "list", b"x"))
    wrong, right = await asyncio.gather(line.ask(("GET", "list")), line.ask(("LLEN", "list")))
    assert isinstance(wrong[0], ResponseError)
    assert right == [1]


async def test_whoever_is_cancelled_leaves_the_answers_of_others_in_place(
    redis_client: redis.asyncio.Redis,
) -> None:
    line = RedisLine(redis_client)
    await line.ask(("SET", "a", b"1"))
    for turns in range(200):
        gone = asyncio.create_task(line.ask(("GET", "gone")))
        stays = asyncio.create_task(line.ask(("GET", "a")))
        for _ in range(turns % 9):
            await asyncio.sleep(0)
        gone.cancel()
        assert await stays == [b"1"]


async def test_a_redis_that_comes_back_is_asked_again(redis_server: RedisServer) -> None:
    client = connect(redis_server.url)
    line = RedisLine(client)
    assert await line.ask(("PING",)) == [b"PONG"]
    redis_server.stop()
    with pytest.raises((RedisError, OSError)):
        await line.ask(("PING",))
    redis_server.start()
    assert await line.ask(("PING",)) == [b"PONG"]
    await client.aclose()


async def test_a_redis_that_was_restarted_in_a_pause_is_not_noticed(redis_server: RedisServer) -> None:
    client = connect(redis_server.url)
    line = RedisLine(client)
    assert await line.ask(("PING",)) == [b"PONG"]
    redis_server.stop()
    redis_server.start()
    await asyncio.sleep(0.05)  # the end of the old connection is seen
    assert await line.ask(("PING",)) == [b"PONG"]
    await client.aclose()


async def test_a_redis_that_says_nothing_fails_what_was_asked_and_no_more(
    redis_client: redis.asyncio.Redis,
) -> None:
    line = RedisLine(redis_client)
    await line.ask(("PING",))
    await line.ask(("CLIENT", "PAUSE", 1500, "ALL"))
    with pytest.raises((RedisError, OSError)):
        await line.ask(("GET", "late"))
    async with asyncio.timeout(10):
        while True:
            try:
                assert await line.ask(("ECHO", b"mine")) == [b"mine"]
                break
            except (RedisError, OSError):
                await asyncio.sleep(0.05)


async def test_those_who_rest_for_the_same_moment_wake_in_one_turn() -> None:
    ticks, woken, turns = Ticks(), [], 0
    waker = asyncio.Event()

    async def rest(interval_s: float) -> None:
        await ticks.rest(interval_s)
        woken.append(turns)

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counter = asyncio.create_task(count_turns())
    tasks = []
    for _ in range(5):
        tasks.append(asyncio.create_task(rest(0.2)))
        await asyncio.sleep(0.003)
    ticks.call(0.2, waker.set)
    await asyncio.gather(*tasks)
    counter.cancel()
    assert max(woken) - min(woken) <= 1
    await waker.wait()


async def test_a_rest_takes_half_an_interval_at_least_and_one_and_a_half_at_most() -> None:
    ticks = Ticks()
    loop = asyncio.get_running_loop()
    for pause_s in (0.0, 0.01, 0.03, 0.05):
        await asyncio.sleep(pause_s)
        began_s = loop.time()
        called: list[float] = []
        ticks.call(0.06, lambda: called.append(loop.time()))  # noqa: B023 - called before the next turn of the loop
        await ticks.rest(0.06)
        assert called[0] - began_s > 0.028


async def test_a_callback_is_called_once_per_tick_and_a_cancelled_rest_harms_nobody() -> None:
    ticks, calls = Ticks(), []

    def count() -> None:
        calls.append(1)

    ticks.call(0.05, count)
    ticks.call(0.05, count)
    gone = asyncio.create_task(ticks.rest(0.05))
    await asyncio.sleep(0)
    gone.cancel()
    await ticks.rest(0.05)
    await ticks.rest(0.05)
    assert calls == [1]
