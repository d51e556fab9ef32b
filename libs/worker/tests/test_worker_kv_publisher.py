import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio
from tandem.v1 import cluster_pb2 as pb
from tandem_common.hashing import unpack_hashes
from tandem_common.keys import KV_ENTRY_FIELD, Keys
from tandem_common.redis_client import connect
from tandem_worker.kv_publisher import KvPublisher
from worker_harness import RedisServer

KEYS = Keys("test")
HASHES = [bytes([number]) * 16 for number in range(100)]


@asynccontextmanager
async def publishing(
    url: str, snapshot_every: int = 1024
) -> AsyncIterator[tuple[KvPublisher, redis.asyncio.Redis]]:
    client = connect(url)
    publisher = KvPublisher(client, KEYS, "w", 5, check_interval_s=0.05, snapshot_every=snapshot_every)
    task = asyncio.create_task(publisher.run())
    try:
        yield publisher, client
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.aclose()


async def entries(client: redis.asyncio.Redis) -> list[pb.KvEvents]:
    return [
        pb.KvEvents.FromString(fields[KV_ENTRY_FIELD])
        for _, fields in await client.xrange(KEYS.kv_stream("w"))
    ]


async def follow(client: redis.asyncio.Redis) -> set[bytes] | None:
    """What a router knows that has just come: the snapshot, and the entries after it."""
    record = await client.get(KEYS.kv_snapshot("w"))
    if record is None:
        return None
    snapshot = pb.KvSnapshot.FromString(record)
    assert snapshot.epoch == 5
    held = set(unpack_hashes(snapshot.stored))
    for _, fields in await client.xrange(KEYS.kv_stream("w"), min=f"({snapshot.stream_id}"):
        event = pb.KvEvents.FromString(fields[KV_ENTRY_FIELD])
        held = set() if event.cleared else held - set(unpack_hashes(event.removed))
        held |= set(unpack_hashes(event.stored))
    return held


async def until_followed(client: redis.asyncio.Redis, expected: set[bytes]) -> None:
    for _ in range(300):
        if await follow(client) == expected:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("a follower does not get to what is held")


async def test_a_step_is_one_entry(redis_url: str) -> None:
    async with publishing(redis_url) as (publisher, client):
        await until_followed(client, set())
        for step in range(5):
            publisher.record([], HASHES[2 * step : 2 * step + 2])
            await until_followed(client, set(HASHES[: 2 * step + 2]))
        published = await entries(client)
        assert len(published) == 6
        assert published[0].cleared
        assert [event.epoch for event in published] == [5] * 6
        assert unpack_hashes(published[2].stored) == HASHES[2:4]


async def test_snapshots_are_renewed_before_entries_are_trimmed(redis_url: str) -> None:
    async with publishing(redis_url, snapshot_every=3) as (publisher, client):
        for step in range(10):
            publisher.record([], [HASHES[step]])
            await until_followed(client, set(HASHES[: step + 1]))
        snapshot = pb.KvSnapshot.FromString(await client.get(KEYS.kv_snapshot("w")) or b"")
        assert len(unpack_hashes(snapshot.stored)) >= 7


async def test_an_emptied_redis_is_told_everything_again(redis_url: str) -> None:
    async with publishing(redis_url) as (publisher, client):
        publisher.record([], HASHES[:9])
        await until_followed(client, set(HASHES[:9]))
        await client.flushall()
        await until_followed(client, set(HASHES[:9]))
        await client.flushall()
        publisher.record(HASHES[:1], HASHES[20:22])
        await until_followed(client, set(HASHES[1:9]) | set(HASHES[20:22]))


async def test_changes_gather_while_redis_is_away(redis_server: RedisServer) -> None:
    async with publishing(redis_server.url) as (publisher, client):
        publisher.record([], HASHES[:3])
        await until_followed(client, set(HASHES[:3]))
        redis_server.stop()
        publisher.record([HASHES[0]], [])
        await asyncio.sleep(0.1)
        publisher.record([], HASHES[50:60])
        redis_server.start()
        await until_followed(client, set(HASHES[1:3]) | set(HASHES[50:60]))


async def test_what_is_no_stream_is_reported_and_mended_when_it_goes(redis_url: str) -> None:
    other = connect(redis_url)
    await other.set(KEYS.kv_stream("w"), b"poison")
    async with publishing(redis_url) as (publisher, client):
        publisher.record([], HASHES[:2])
        await asyncio.sleep(0.1)
        await client.delete(KEYS.kv_stream("w"))
        await until_followed(client, set(HASHES[:2]))
    await other.aclose()
