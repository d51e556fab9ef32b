"""Several routers over one Redis act as one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from zlib import crc32

import redis.asyncio
from router_fakes import make_beat, make_card, make_query, registry_of
from tandem.v1 import cluster_pb2 as pb
from tandem_common.generation import RequestClass
from tandem_common.keys import Keys
from tandem_router.booking_exchange import BookingExchange
from tandem_router.bookings import Bookings
from tandem_router.cluster import Cluster
from tandem_router.elsewhere import Line, WaitingElsewhere
from tandem_router.fairness import FairShares
from tandem_router.policies import Predictive
from tandem_router.query import ROUTE_LIMITS

KEYS = Keys("exchange")
NUM_WORKERS = 8


class OneRouter:
    """What of a router decides and shares."""

    def __init__(self, client: redis.asyncio.Redis, name: str) -> None:
        self.cluster = Cluster(Bookings(max_age_s=10, max_per_worker=4096), empty_grace_s=3)
        self.shares = FairShares({"gold": 4.0})
        self.elsewhere = WaitingElsewhere()
        self.num_news = 0
        self.exchange = BookingExchange(
            client,
            KEYS,
            name,
            self.cluster,
            self.shares,
            max_age_s=10,
            elsewhere=self.elsewhere,
            on_news=self.count_news,
        )
        self.policy = Predictive()
        cards = [make_card(f"w{i}", pb.ROLE_BOTH, max_sequences=1000) for i in range(NUM_WORKERS)]
        beats = [make_beat(f"w{i}") for i in range(NUM_WORKERS)]
        self.cluster.observe(registry_of(*cards, beats=beats), time.monotonic())

    def count_news(self) -> None:
        self.num_news += 1

    def route(self, request_id: str, tie_break: int, **changes: object) -> str:
        query = make_query(1000, request_id=request_id, tie_break=tie_break, **changes)
        decision = self.policy.choose(query, self.cluster.view, ROUTE_LIMITS)
        bookings = self.cluster.book(query, decision, time.monotonic())
        self.exchange.share(request_id, query.model, query.tenant, query.num_tokens, bookings)
        return decision.chosen.computing.facts.worker_id


@contextlib.asynccontextmanager
async def routers(
    client: redis.asyncio.Redis, count: int, name: str = "router"
) -> AsyncIterator[Sequence[OneRouter]]:
    made = [OneRouter(client, f"{name}-{i}") for i in range(count)]
    tasks = [asyncio.create_task(router.exchange.run()) for router in made]
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: object, timeout_s: float = 5.0) -> None:
    assert callable(condition)
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def test_four_routers_spread_a_burst_as_one_would(redis_client: redis.asyncio.Redis) -> None:
    async with routers(redis_client, 4) as four:
        loads: Counter[str] = Counter()
        for i in range(200):
            loads[four[i % 4].route(f"r{i}", crc32(f"r{i}".encode()))] += 1
            if i % 20 == 19:
                await asyncio.sleep(0.01)  # a burst within a tenth of a second
        assert max(loads.values()) / (200 / NUM_WORKERS) <= 1.2
        # In the end all know the same load.
        await until(lambda: all(len(router.cluster.bookings) >= 200 for router in four))
        totals = [[router.cluster.bookings.total(f"w{i}") for i in range(NUM_WORKERS)] for router in four]
        assert all(total == totals[0] for total in totals)
        for router in four:
            router.cluster.bookings.check_integrity()


async def test_a_burst_that_no_router_hears_of_in_time_is_still_spread(
    redis_client: redis.asyncio.Redis,
) -> None:
    async with routers(redis_client, 4) as four:
        loads = Counter(four[i % 4].route(f"r{i}", crc32(f"r{i}".encode())) for i in range(200))
        assert max(loads.values()) / (200 / NUM_WORKERS) <= 1.2


async def test_a_request_routed_again_by_another_router_is_booked_once(
    redis_client: redis.asyncio.Redis,
) -> None:
    async with routers(redis_client, 2) as (one, other):
        first = one.route("r1", 0)
        await until(lambda: other.cluster.bookings.has("r1"))
        second = other.route("r1", 0, excluded_worker_ids=frozenset({first}))
        assert second != first
        await until(lambda: one.cluster.bookings.count(second) == 1)
        assert one.cluster.bookings.count(first) == 0


async def test_a_router_that_starts_learns_what_was_booked_before(redis_client: redis.asyncio.Redis) -> None:
    async with routers(redis_client, 1) as (one,):
        worker = one.route("r1", 0, tenant="gold")
        async with asyncio.timeout(5):
            while not await redis_client.exists(KEYS.bookings()):
                await asyncio.sleep(0.005)
        async with routers(redis_client, 1, "late") as (late,):
            await until(lambda: late.cluster.bookings.has("r1"))
            assert late.cluster.bookings.count(worker) == 1
            assert late.shares.counter("gold") == 250


async def test_what_was_heard_before_an_interruption_is_not_booked_or_charged_again(
    redis_client: redis.asyncio.Redis,
) -> None:
    async with routers(redis_client, 2) as (one, other):
        one.route("r1", 0, tenant="gold")
        await until(lambda: other.shares.counter("gold") == 250)
        for connection in await redis_client.client_list():
            with contextlib.suppress(redis.exceptions.RedisError):
                await redis_client.client_kill_filter(_id=connection["id"], skipme=True)
        await asyncio.sleep(0.7)
        one.route("r2", 0, tenant="gold")
        await until(lambda: other.cluster.bookings.has("r2"))
        assert other.shares.counter("gold") == 500


async def test_who_waits_is_told_to_others_and_so_is_that_nobody_does(
    redis_client: redis.asyncio.Redis,
) -> None:
    line, batch = ("tiny", RequestClass.INTERACTIVE), ("tiny", RequestClass.BATCH)

    def waiting_at(router: OneRouter, which: Line = line) -> set[str]:
        return router.elsewhere.tenants(which, time.monotonic())

    async with routers(redis_client, 2) as (one, other):
        one.exchange.tell_waiting({line: ["gold", "plain"], batch: ["bulk"]})
        await until(lambda: waiting_at(other) == {"gold", "plain"})
        assert waiting_at(other, batch) == {"bulk"}
        assert waiting_at(one) == set()
        one.exchange.tell_waiting({})
        await until(lambda: waiting_at(other) == set())
        one.route("r1", 0, tenant="gold")
        await until(lambda: other.shares.counter("gold") == 250)
        assert other.num_news >= 3
        one.exchange.tell_correction("gold", -300)
        one.exchange.tell_correction("gold", -100)
        await until(lambda: other.shares.counter("gold") == 150)


async def test_records_of_others_that_make_no_sense_change_nothing(redis_client: redis.asyncio.Redis) -> None:
    async with routers(redis_client, 1) as (one,):
        await redis_client.xadd(KEYS.bookings(), {b"bookings": b"\xff\xff"})
        await redis_client.xadd(KEYS.bookings(), {b"other": b""})
        load = pb.BookedLoad(worker_id="w1", epoch=99, num_sequences=5)
        unknown = pb.BookedLoad(worker_id="nobody", epoch=1)
        good = pb.BookedLoad(worker_id="w2", epoch=1, num_sequences=1)
        entry = pb.SharedBookings(
            router_id="x",
            bookings=[
                pb.SharedBooking(request_id="r", model="tiny", loads=[load, unknown]),
                pb.SharedBooking(request_id="s", model="tiny", loads=[good]),
            ],
        )
        await redis_client.xadd(KEYS.bookings(), {b"bookings": entry.SerializeToString()})
        await until(lambda: one.cluster.bookings.has("s"))
        assert len(one.cluster.bookings) == 1
