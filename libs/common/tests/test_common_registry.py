import asyncio
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
from redis.exceptions import RedisError
from redis_server import RedisServer
from tandem.v1 import cluster_pb2 as pb
from tandem_common.keys import Keys
from tandem_common.redis_client import connect
from tandem_common.registry import (
    MIN_TTL_S,
    ClusterWatcher,
    ServicePublisher,
    ServiceWatcher,
    WorkerPublisher,
)

KEYS = Keys("test")


def card(worker_id: str, epoch: int = 1) -> pb.WorkerCard:
    return pb.WorkerCard(worker_id=worker_id, epoch=epoch, address="127.0.0.1:1", model="m")


def beat(worker_id: str, epoch: int = 1) -> pb.WorkerBeat:
    return pb.WorkerBeat(worker_id=worker_id, epoch=epoch, num_running=3)


async def test_a_published_worker_is_seen_and_gone_three_heartbeats_or_three_seconds_later(
    redis_url: str,
) -> None:
    client = connect(redis_url)
    publisher, watcher = WorkerPublisher(client, KEYS, heartbeat_s=0.05), ClusterWatcher(client, KEYS)
    await publisher.publish(card("w"), beat("w"))
    await watcher.refresh()
    assert watcher.workers["w"].card == card("w")
    assert watcher.workers["w"].beat == beat("w")
    assert 2900 < await client.pttl(KEYS.card("w")) <= 3000
    await WorkerPublisher(client, KEYS, heartbeat_s=2.0).publish(card("w"), beat("w"))
    assert 5900 < await client.pttl(KEYS.card("w")) <= 6000
    await client.pexpire(KEYS.card("w"), 1)
    await asyncio.sleep(0.05)
    await watcher.refresh()
    assert not watcher.workers
    await client.aclose()


async def test_a_beat_of_another_incarnation_is_ignored(redis_url: str) -> None:
    client = connect(redis_url)
    await WorkerPublisher(client, KEYS, 1.0).publish(card("w", epoch=2), beat("w", epoch=1))
    watcher = ClusterWatcher(client, KEYS)
    await watcher.refresh()
    assert watcher.workers["w"].beat is None
    await client.aclose()


async def test_poisoned_records_spoil_themselves_only(redis_url: str) -> None:
    client = connect(redis_url)
    await WorkerPublisher(client, KEYS, 1.0).publish(card("good"), beat("good"))
    for name in ("garbage", "huge", "list", "other", "missing"):
        await client.sadd(KEYS.workers(), name)
    await client.sadd(KEYS.workers(), b"\xff\xfe")
    await client.set(KEYS.card("garbage"), b"\xff\xff\xff")
    await client.set(KEYS.card("huge"), b"\0" * (2 << 20))
    await client.rpush(KEYS.card("list"), b"x")
    await client.set(KEYS.card("other"), card("good").SerializeToString())
    watcher = ClusterWatcher(client, KEYS)
    await watcher.refresh()
    assert set(watcher.workers) == {"good"}
    await client.aclose()


async def test_epochs_grow_at_every_start_even_with_an_emptied_redis(redis_server: RedisServer) -> None:
    client = connect(redis_server.url)
    publisher = WorkerPublisher(client, KEYS, 1.0)
    epochs = [await publisher.next_epoch("w"), await publisher.next_epoch("w")]
    await asyncio.sleep(0.05)
    await client.flushall()
    epochs += [await publisher.next_epoch("w")]
    assert epochs == sorted(set(epochs))
    await client.aclose()


async def test_the_last_view_survives_an_outage_and_says_its_age(redis_server: RedisServer) -> None:
    client = connect(redis_server.url)
    publisher, watcher = WorkerPublisher(client, KEYS, 5.0), ClusterWatcher(client, KEYS, interval_s=0.02)
    await publisher.publish(card("w"), beat("w"))
    task = asyncio.create_task(watcher.run())
    async with asyncio.timeout(5):
        await watcher.changed()
        redis_server.stop()
        while watcher.stale_ms < 200:
            await asyncio.sleep(0.02)
        assert set(watcher.workers) == {"w"}
        redis_server.start()
        while watcher.stale_ms > 100:
            await asyncio.sleep(0.02)
        assert set(watcher.workers) == {"w"}  # Redis came back empty
        await publisher.publish(card("w", epoch=2), beat("w", epoch=2))
        while watcher.workers["w"].card.epoch == 1:
            await asyncio.sleep(0.02)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await client.aclose()


async def test_a_removed_worker_is_gone_at_once(redis_url: str) -> None:
    client = connect(redis_url)
    publisher, watcher = WorkerPublisher(client, KEYS, 5.0), ClusterWatcher(client, KEYS)
    await publisher.publish(card("w"), beat("w"))
    await publisher.remove("w")
    await watcher.refresh()
    assert not watcher.workers
    await client.aclose()


async def test_a_service_is_found_by_kind_and_leaves_with_its_publisher(redis_url: str) -> None:
    client = connect(redis_url)
    own = pb.ServiceCard(kind="router", service_id="r1", address="127.0.0.1:5")
    watcher, other = ServiceWatcher(client, KEYS, "router"), ServiceWatcher(client, KEYS, "planner")
    task = asyncio.create_task(ServicePublisher(client, KEYS, own, heartbeat_s=0.05).run())
    async with asyncio.timeout(5):
        while not watcher.services:
            await watcher.refresh()
    await other.refresh()
    assert (dict(watcher.services), dict(other.services)) == ({"r1": own}, {})
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await watcher.refresh()
    assert not watcher.services
    await client.aclose()


async def test_a_redis_that_is_away_fails_calls_instead_of_holding_them(redis_server: RedisServer) -> None:
    redis_server.stop()
    client = connect(redis_server.url)
    with suppress(RedisError):
        async with asyncio.timeout(3):
            await ClusterWatcher(client, KEYS).refresh()
        raise AssertionError("no error")
    await client.aclose()


async def test_a_poll_that_finds_the_same_bytes_changes_nothing_and_asks_once(redis_url: str) -> None:
    client = connect(redis_url)
    publisher, watcher = WorkerPublisher(client, KEYS, 5.0), ClusterWatcher(client, KEYS)
    await publisher.publish(card("w"), beat("w"))
    await watcher.refresh()
    view, its_card = watcher.workers, watcher.workers["w"].card
    before = (await client.info("stats"))["total_commands_processed"]
    await watcher.refresh()
    assert (await client.info("stats"))["total_commands_processed"] - before <= 3  # with this one
    assert watcher.workers is view
    await publisher.publish(card("w"), pb.WorkerBeat(worker_id="w", epoch=1, num_running=4))
    await watcher.refresh()
    assert watcher.workers is not view
    assert watcher.workers["w"].card is its_card
    assert watcher.workers["w"].beat.num_running == 4  # type: ignore[union-attr]
    await client.aclose()


async def test_who_looks_at_cards_only_sees_no_beats_and_no_change_in_them(redis_url: str) -> None:
    client = connect(redis_url)
    publisher, watcher = WorkerPublisher(client, KEYS, 5.0), ClusterWatcher(client, KEYS, beats=False)
    await publisher.publish(card("w"), beat("w"))
    await publisher.publish(card("v"), beat("v"))
    await watcher.refresh()
    assert watcher.workers["w"].beat is None
    view = watcher.workers
    await publisher.publish(card("w"), pb.WorkerBeat(worker_id="w", epoch=1, num_running=9))
    await watcher.refresh()
    assert watcher.workers is view
    await client.delete(KEYS.card("w"))
    await watcher.refresh()
    assert set(watcher.workers) == {"v"}
    await client.aclose()


async def test_who_is_lost_with_redis_memory_counts_until_its_card_would_have_expired(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(redis_url)
    publisher, watcher = WorkerPublisher(client, KEYS, 1.0), ClusterWatcher(client, KEYS)
    for name in ("a", "b", "c"):
        await publisher.publish(card(name), beat(name))
    await watcher.refresh()
    await client.flushall()
    for _ in range(2):
        await watcher.refresh()
        assert set(watcher.workers) == {"a", "b", "c"}
    await publisher.publish(card("a", epoch=2), beat("a", epoch=2))  # one comes back, another incarnation
    await publisher.publish(card("b"), beat("b"))
    await watcher.refresh()
    assert {name: seen.card.epoch for name, seen in watcher.workers.items()} == {"a": 2, "b": 1, "c": 1}
    await publisher.remove("b")  # and says goodbye
    await watcher.refresh()
    assert set(watcher.workers) == {"a", "c"}
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + MIN_TTL_S)
    monkeypatch.setattr("tandem_common.registry.time", clock)
    await watcher.refresh()
    assert set(watcher.workers) == {"a"}
    await client.aclose()


async def test_a_service_outlives_redis_memory_too(redis_url: str) -> None:
    client = connect(redis_url)
    service = pb.ServiceCard(service_id="r", kind="router", address="127.0.0.1:1")
    running = asyncio.create_task(ServicePublisher(client, KEYS, service, heartbeat_s=60).run())
    watcher = ServiceWatcher(client, KEYS, "router")
    while not watcher.services:
        await watcher.refresh()
        await asyncio.sleep(0.01)
    await client.flushall()
    await watcher.refresh()
    assert set(watcher.services) == {"r"}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await client.aclose()
