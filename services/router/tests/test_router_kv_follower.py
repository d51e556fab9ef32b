from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest
import redis.asyncio
from prometheus_client import CollectorRegistry
from redis_server import RedisServer
from tandem.v1 import cluster_pb2 as pb
from tandem_common.keys import KV_ENTRY_FIELD, Keys
from tandem_common.redis_client import connect
from tandem_router.index import BlockIndex
from tandem_router.kv_follower import KvFollower, Target
from tandem_router.metrics import RouterMetrics

KEYS = Keys("test")
BLOCKS = [bytes([i]) * 16 for i in range(1, 21)]


class World:
    """A follower on a real Redis, and what a worker would write there."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.redis = client
        self.index = BlockIndex()
        self.registry = CollectorRegistry()
        self.targets: dict[str, Target] = {}
        self.follower = KvFollower(
            client, KEYS, self.index, RouterMetrics("predictive", self.registry), lambda: self.targets
        )

    async def write(
        self,
        worker_id: str,
        *,
        stored: list[bytes] | None = None,
        removed: list[bytes] | None = None,
        epoch: int = 1,
        cleared: bool = False,
        entry_id: str = "*",
    ) -> str:
        message = pb.KvEvents(
            epoch=epoch, stored=b"".join(stored or []), removed=b"".join(removed or []), cleared=cleared
        )
        written = await self.redis.xadd(
            KEYS.kv_stream(worker_id), {KV_ENTRY_FIELD: message.SerializeToString()}, id=entry_id
        )
        return written.decode()

    async def snapshot(self, worker_id: str, stored: list[bytes], stream_id: str, epoch: int = 1) -> None:
        message = pb.KvSnapshot(epoch=epoch, stream_id=stream_id, stored=b"".join(stored))
        await self.redis.set(KEYS.kv_snapshot(worker_id), message.SerializeToString())

    async def until(self, condition: Callable[[], bool]) -> None:
        """Step until it holds; the follower's own rhythm is what a real router has."""
        async with asyncio.timeout(10):
            while not condition():
                await self.follower.step()
                self.index.check_integrity()

    async def until_matched(self, expected: dict[str, int]) -> None:
        await self.until(lambda: self.index.match(BLOCKS) == expected)

    def count(self, name: str, **labels: str) -> float:
        value = self.registry.get_sample_value(f"tandem_router_kv_{name}_total", labels)
        assert value is not None
        return value


@pytest.fixture
async def world(redis_client: redis.asyncio.Redis) -> World:
    world = World(redis_client)
    world.targets = {"a": Target(1, 100)}
    return world


async def test_a_new_workers_stream_is_followed_from_its_beginning(world: World) -> None:
    await world.write("a", stored=BLOCKS[:3], cleared=True)
    await world.until_matched({"a": 3})
    assert world.follower.ready("a")
    await world.write("a", stored=BLOCKS[3:5])
    await world.write("a", removed=BLOCKS[4:5])
    await world.until_matched({"a": 4})
    assert world.count("events_applied") == 3


async def test_a_snapshot_is_loaded_and_only_what_came_after_it_is_applied(world: World) -> None:
    await world.write("a", stored=BLOCKS[:5])
    last = await world.write("a", removed=BLOCKS[4:5])
    await world.snapshot("a", BLOCKS[:4], last)
    await world.write("a", stored=BLOCKS[4:6])
    await world.until_matched({"a": 6})
    assert world.count("events_applied") == 1


async def test_many_workers_are_followed_at_once(world: World) -> None:
    world.targets = {name: Target(1, 100) for name in "abc"}
    for n, name in enumerate("abc", start=1):
        await world.write(name, stored=BLOCKS[:n])
    await world.until_matched({"a": 1, "b": 2, "c": 3})


async def test_events_told_twice_or_after_the_snapshot_that_holds_them_change_nothing(world: World) -> None:
    await world.write("a", stored=BLOCKS[:3], cleared=True)
    await world.write("a", stored=BLOCKS[3:6])
    await world.until_matched({"a": 6})
    await world.write("a", stored=BLOCKS[3:6])
    last = await world.write("a", removed=BLOCKS[5:6])
    await world.write("a", removed=BLOCKS[5:6])
    await world.until_matched({"a": 5})
    assert world.index.num_blocks("a") == 5
    # A snapshot may hold already what the entries after it tell.
    await world.write("a", stored=BLOCKS[5:8])
    await world.snapshot("a", BLOCKS[:8], last)
    late = World(world.redis)
    late.targets = world.targets
    await late.until_matched({"a": 8})
    assert late.index.num_blocks("a") == 8


async def test_a_cleared_cache_is_forgotten(world: World) -> None:
    await world.write("a", stored=BLOCKS[:5])
    await world.until_matched({"a": 5})
    await world.write("a", cleared=True, stored=BLOCKS[:2])
    await world.until_matched({"a": 2})


async def test_entries_that_were_trimmed_unread_are_made_up_by_the_snapshot(world: World) -> None:
    await world.write("a", stored=BLOCKS[:2])
    await world.until_matched({"a": 2})
    for i in range(2, 9):
        last = await world.write("a", stored=[BLOCKS[i]])
    await world.snapshot("a", BLOCKS[:9], last)
    await world.write("a", stored=[BLOCKS[9]])
    await world.redis.xtrim(KEYS.kv_stream("a"), maxlen=1, approximate=False)
    await world.until_matched({"a": 10})
    assert world.count("snapshot_loads") == 2


async def test_trimming_what_was_read_already_loads_nothing(world: World) -> None:
    first = await world.write("a", stored=BLOCKS[:2])
    await world.snapshot("a", BLOCKS[:2], first)
    await world.until_matched({"a": 2})
    last = await world.write("a", stored=[BLOCKS[2]])
    await world.until_matched({"a": 3})
    await world.snapshot("a", BLOCKS[:3], last)
    await world.write("a", stored=[BLOCKS[3]])
    await world.redis.xtrim(KEYS.kv_stream("a"), maxlen=1, approximate=False)
    await world.until_matched({"a": 4})
    assert world.count("snapshot_loads") == 1


async def test_a_restarted_workers_old_blocks_are_forgotten(world: World) -> None:
    await world.write("a", stored=BLOCKS[:5])
    await world.until_matched({"a": 5})
    # The new incarnation has written, and the registry does not show it yet: nothing of it is believed.
    await world.write("a", stored=BLOCKS[:1], cleared=True, epoch=2)
    await world.until(lambda: world.count("records_skipped", reason="stale_epoch") == 1)
    assert world.index.match(BLOCKS) == {"a": 5}

    world.targets = {"a": Target(2, 100)}
    await world.until_matched({"a": 1})
    # A late write of the dead one.
    await world.write("a", stored=BLOCKS[1:], epoch=1)
    await world.write("a", stored=BLOCKS[1:2], epoch=2)
    await world.until_matched({"a": 2})


async def test_a_snapshot_of_an_earlier_incarnation_is_not_loaded(world: World) -> None:
    await world.snapshot("a", BLOCKS, "1-1", epoch=1)
    world.targets = {"a": Target(2, 100)}
    await world.write("a", stored=BLOCKS[:1], epoch=2)
    await world.until_matched({"a": 1})


async def test_a_worker_that_left_is_forgotten(world: World) -> None:
    world.targets["b"] = Target(1, 100)
    await world.write("a", stored=BLOCKS[:5])
    await world.write("b", stored=BLOCKS[:1])
    await world.until_matched({"a": 5, "b": 1})
    del world.targets["a"]
    await world.until_matched({"b": 1})
    assert not world.follower.ready("a")


async def test_an_emptied_redis_keeps_the_index_until_the_worker_tells_anew(world: World) -> None:
    await world.write("a", stored=BLOCKS[:5], entry_id="100-0")
    await world.until_matched({"a": 5})
    await world.redis.flushall()
    await world.until(lambda: world.count("snapshot_loads") == 2)
    assert world.index.match(BLOCKS) == {"a": 5}
    # The new Redis may count from below the old cursor.
    last = await world.write("a", cleared=True, stored=BLOCKS[:7], entry_id="3-0")
    await world.snapshot("a", BLOCKS[:7], last)
    await world.until_matched({"a": 7})
    await world.write("a", stored=BLOCKS[7:8], entry_id="4-0")
    await world.until_matched({"a": 8})


async def test_malformed_entries_are_skipped_and_counted(world: World) -> None:
    await world.write("a", stored=BLOCKS[:1])
    await world.redis.xadd(KEYS.kv_stream("a"), {b"junk": b"junk"})
    await world.redis.xadd(KEYS.kv_stream("a"), {KV_ENTRY_FIELD: b"\xff\xff"})
    await world.redis.xadd(
        KEYS.kv_stream("a"), {KV_ENTRY_FIELD: pb.KvEvents(epoch=1, stored=b"short").SerializeToString()}
    )
    await world.write("a", stored=BLOCKS[1:2])
    await world.until_matched({"a": 2})
    assert world.count("records_skipped", reason="malformed") == 3


async def test_a_malformed_snapshot_leaves_the_stream(world: World) -> None:
    await world.redis.set(KEYS.kv_snapshot("a"), b"\xff\xff")
    await world.write("a", stored=BLOCKS[:2])
    await world.until_matched({"a": 2})
    assert world.count("records_skipped", reason="malformed") >= 1


@pytest.mark.parametrize("poisoned_key", [KEYS.kv_stream("a"), KEYS.kv_snapshot("a")])
async def test_a_poisoned_key_spoils_only_its_own_worker_and_only_while_it_is_there(
    world: World, poisoned_key: str
) -> None:
    world.targets["b"] = Target(1, 100)
    await world.redis.lpush(poisoned_key, b"not what it should be")
    await world.write("b", stored=BLOCKS[:2])
    await world.until_matched({"b": 2})
    await world.write("b", stored=BLOCKS[2:3])
    await world.until_matched({"b": 3})
    assert not world.follower.ready("a")

    await world.redis.delete(poisoned_key)
    await world.write("a", stored=BLOCKS[:4])
    await world.until_matched({"a": 4, "b": 3})


async def test_a_key_that_is_poisoned_later_spoils_only_its_own_worker(world: World) -> None:
    world.targets["b"] = Target(1, 100)
    await world.write("a", stored=BLOCKS[:1])
    await world.write("b", stored=BLOCKS[:2])
    await world.until_matched({"a": 1, "b": 2})
    await world.redis.set(KEYS.kv_stream("a"), b"not a stream")
    await world.write("b", stored=BLOCKS[2:3])
    await world.until_matched({"a": 1, "b": 3})
    assert not world.follower.ready("a")


async def test_a_snapshot_that_is_poisoned_later_does_not_stop_the_stream(world: World) -> None:
    await world.write("a", stored=BLOCKS[:1])
    await world.until_matched({"a": 1})
    await world.redis.lpush(KEYS.kv_snapshot("a"), b"not a snapshot")
    await world.write("a", stored=BLOCKS[1:2])
    await world.redis.xtrim(KEYS.kv_stream("a"), maxlen=1, approximate=False)
    await world.until_matched({"a": 2})


async def test_more_blocks_than_the_worker_has_mean_that_something_was_missed(world: World) -> None:
    world.targets = {"a": Target(1, 4)}
    await world.write("a", stored=BLOCKS[:3])
    await world.until_matched({"a": 3})
    # A removal got lost on the way; the snapshot knows of it.
    last = await world.write("a", stored=BLOCKS[10:12])
    await world.snapshot("a", [*BLOCKS[:2], *BLOCKS[10:12]], last)
    await world.until_matched({"a": 2})
    assert world.index.num_blocks("a") == 4


async def test_while_redis_is_away_the_index_stays_and_the_follower_goes_on(
    redis_server: RedisServer,
) -> None:
    client = connect(redis_server.url)
    world = World(client)
    world.targets = {"a": Target(1, 100)}
    await world.write("a", stored=BLOCKS[:2])
    task = asyncio.create_task(world.follower.run())
    try:
        async with asyncio.timeout(10):
            while world.index.match(BLOCKS) != {"a": 2}:
                await asyncio.sleep(0.02)
            redis_server.stop()
            await asyncio.sleep(0.5)
            assert world.index.match(BLOCKS) == {"a": 2}
            assert not task.done()
            redis_server.start()
            await world.write("a", cleared=True, stored=BLOCKS[:3])
            while world.index.match(BLOCKS) != {"a": 3}:
                await asyncio.sleep(0.02)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await client.aclose()
