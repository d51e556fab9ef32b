"""The control plane on every set-up of Redis that `redis_url` can name: workers, routers and planner meet."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import redis.asyncio
from prometheus_client import CollectorRegistry
from redis.exceptions import RedisError
from redis_server import RedisServer
from redis_setups import Node, behind_tls, redis_cluster, watched_pair
from router_fakes import make_beat, make_card
from tandem.v1 import cluster_pb2 as pb
from tandem_common.keys import Keys
from tandem_common.redis_client import connect, is_cluster
from tandem_common.registry import ClusterWatcher, ServicePublisher, ServiceWatcher, WorkerPublisher
from tandem_planner.lease import PlannerLease
from tandem_router.booking_exchange import BookingExchange
from tandem_router.bookings import BookedLoad, Booking, Bookings
from tandem_router.cluster import Cluster
from tandem_router.fairness import FairShares
from tandem_router.index import BlockIndex
from tandem_router.kv_follower import KvFollower, Target
from tandem_router.metrics import RouterMetrics
from tandem_worker.kv_publisher import KvPublisher

KEYS = Keys("test")
BLOCKS = [bytes([number]) * 16 for number in range(1, 9)]
NUM_WORKERS = 6  # enough for every node of a cluster to hold some of them
WORKER_IDS = [f"w{i}" for i in range(NUM_WORKERS)]


@contextlib.asynccontextmanager
async def client_of(url: str) -> AsyncIterator[redis.asyncio.Redis]:
    client = connect(url)
    try:
        yield client
    finally:
        await client.aclose()


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


class ControlPlane:
    """What of all services talks to Redis, each with a client of its own, as if they were processes."""

    def __init__(self, url: str) -> None:
        self._clients = [connect(url) for _ in range(4)]
        worker, router, other, planner = self._clients
        self.worker = WorkerPublisher(worker, KEYS, heartbeat_s=1.0)
        self.publishers = {
            worker_id: KvPublisher(worker, KEYS, worker_id, 1, check_interval_s=0.05, snapshot_every=3)
            for worker_id in WORKER_IDS
        }
        self.watcher = ClusterWatcher(router, KEYS, interval_s=0.05)
        self.index = BlockIndex()
        self.follower = KvFollower(
            router,
            KEYS,
            self.index,
            RouterMetrics("predictive", CollectorRegistry()),
            lambda: dict.fromkeys(WORKER_IDS, Target(1, 100)),
        )
        self.shares = FairShares()
        self.clusters = [
            Cluster(Bookings(max_age_s=30, max_per_worker=99), empty_grace_s=3) for _ in range(2)
        ]
        self.exchanges = [
            BookingExchange(client, KEYS, name, cluster, self.shares, max_age_s=10)
            for client, name, cluster in zip((router, other), ("one", "other"), self.clusters, strict=True)
        ]
        self.service = ServicePublisher(
            other, KEYS, pb.ServiceCard(kind="router", service_id="r", address="h:1"), heartbeat_s=0.2
        )
        self.services = ServiceWatcher(planner, KEYS, "router", interval_s=0.05)
        self.lease = PlannerLease(planner, KEYS, life_s=2.0)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        loops = [
            *(publisher.run() for publisher in self.publishers.values()),
            *(exchange.run() for exchange in self.exchanges),
            *(part.run() for part in (self.watcher, self.follower, self.service, self.services, self.lease)),
        ]
        tasks = [asyncio.create_task(loop) for loop in loops]
        try:
            yield
            assert not any(task.done() for task in tasks), "a loop ended"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for client in self._clients:
                await client.aclose()

    async def register(self) -> None:
        for worker_id in WORKER_IDS:
            await self.worker.publish(make_card(worker_id), make_beat(worker_id))

    def _knows(self, expected: dict[str, int]) -> bool:
        return self.index.match(BLOCKS) == expected

    @staticmethod
    async def persistently(act: Callable[[], Awaitable[None]]) -> None:
        """As a worker does it: again until it works."""
        async with asyncio.timeout(20):
            while True:
                try:
                    return await act()
                except (RedisError, OSError):
                    await asyncio.sleep(0.1)

    def book(self, request_id: str) -> None:
        load = BookedLoad(num_sequences=1)
        self.exchanges[0].share(
            request_id,
            "tiny",
            "",
            0,
            [Booking(worker_id=w, epoch=1, load=load, time_s=0.0) for w in ("w1", "w2")],
        )

    async def check_that_all_meet(self) -> None:
        """Register, publish blocks, share a booking, hold the lease."""
        await self.persistently(self.register)
        assert await self.worker.next_epoch("w0") < await self.worker.next_epoch("w0")
        await until(lambda: self.watcher.workers.keys() == set(WORKER_IDS))
        for cluster in self.clusters:
            cluster.observe(self.watcher.workers, 0.0)
        for count in range(len(BLOCKS)):  # one entry each, with snapshots in between
            for publisher in self.publishers.values():
                publisher.record((), BLOCKS[count : count + 1])
            expected = dict.fromkeys(WORKER_IDS, count + 1)
            await until(partial(self._knows, expected))
        self.book("first")
        await until(lambda: self.clusters[1].bookings.has("first"))
        await until(lambda: self.services.services.keys() == {"r"})
        await until(lambda: self.lease.token > 0)


async def test_everything_works_on_a_redis_cluster(tmp_path: Path) -> None:
    with redis_cluster(tmp_path) as nodes:
        url = f"redis+cluster://127.0.0.1:1,127.0.0.1:{nodes[1].port}"  # one startup node is enough
        plane = ControlPlane(url)
        async with plane.running(), client_of(url) as client:
            assert is_cluster(client)
            await plane.check_that_all_meet()
            assert all(node.client.dbsize() for node in nodes), "the keys are spread"
            # A router that starts late finds what was there before.
            late = BlockIndex()
            metrics = RouterMetrics("predictive", CollectorRegistry())
            targets = dict.fromkeys(WORKER_IDS, Target(1, 100))
            follower = KvFollower(client, KEYS, late, metrics, lambda: targets)
            async with asyncio.timeout(20):
                while late.match(BLOCKS) != dict.fromkeys(WORKER_IDS, len(BLOCKS)):
                    await follower.step()


async def test_the_last_view_is_kept_while_a_node_of_the_cluster_is_away(tmp_path: Path) -> None:
    with redis_cluster(tmp_path) as nodes:
        plane = ControlPlane(f"redis+cluster://127.0.0.1:{nodes[0].port}")
        async with plane.running():
            await plane.check_that_all_meet()
            nodes[2].kill()
            await asyncio.sleep(1.0)
            assert plane.watcher.workers.keys() == set(WORKER_IDS)
            assert plane.index.match(BLOCKS) == dict.fromkeys(WORKER_IDS, len(BLOCKS))
            await until(lambda: plane.watcher.stale_ms > 500)


async def test_sentinels_lead_to_the_new_master_when_the_old_one_dies(tmp_path: Path) -> None:
    with watched_pair(tmp_path) as (master, replica, sentinel):
        plane = ControlPlane(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/main/0")
        async with plane.running():
            await plane.check_that_all_meet()
            master.kill()
            await until(lambda: _is_master(replica))

            async def register() -> None:
                while True:
                    with contextlib.suppress(RedisError, OSError):
                        await plane.register()
                    await asyncio.sleep(0.1)

            registering = asyncio.create_task(register())
            try:
                await until(
                    lambda: plane.watcher.stale_ms < 200 and len(plane.watcher.workers) == NUM_WORKERS
                )
                for publisher in plane.publishers.values():
                    publisher.record(BLOCKS[7:], ())
                await until(lambda: plane.index.match(BLOCKS) == dict.fromkeys(WORKER_IDS, 7))
                await until(lambda: plane.lease.token > 0)

                def booked_again() -> bool:
                    plane.book("second")
                    return plane.clusters[1].bookings.has("second")

                await until(booked_again)
            finally:
                registering.cancel()


# What docs/operations.md tells operators to allow.
ACL = (
    *("~tandem:*", "+@read", "+@write", "+@transaction", "+@scripting", "+@connection", "-@dangerous"),
    *("+cluster|slots", "+cluster|shards", "+command"),
)


async def test_a_user_that_may_touch_only_the_keys_of_tandem_is_enough(redis_server: RedisServer) -> None:
    async with client_of(redis_server.url) as admin:
        await admin.execute_command("ACL", "SETUSER", "tandem", "on", ">hunter2", *ACL)
        await admin.set("other", b"x")
        url = redis_server.url.replace("unix://", "unix://tandem:hunter2@")
        plane = ControlPlane(url)
        async with plane.running(), client_of(url) as client:
            await plane.check_that_all_meet()
            with pytest.raises(RedisError):
                await client.get("other")
            with pytest.raises(RedisError):
                await client.flushall()
        async with client_of(redis_server.url.replace("unix://", "unix://tandem:wrong@")) as stranger:
            with pytest.raises(RedisError):
                await stranger.ping()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
async def test_redis_is_reached_over_tls_and_the_certificate_is_checked(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    socket_path = redis_server.url.removeprefix("unix://")
    async with behind_tls(tmp_path, socket_path) as (port, certificate):
        plane = ControlPlane(f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}")
        async with plane.running():
            await plane.check_that_all_meet()
        for url in (
            f"rediss://localhost:{port}/0",
            f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}",
        ):
            async with client_of(url) as mistrustful:
                with pytest.raises(RedisError):
                    await mistrustful.ping()


def test_a_router_process_starts_on_a_cluster_and_never_logs_the_password(tmp_path: Path) -> None:
    with redis_cluster(tmp_path) as nodes:
        for node in nodes:
            node.client.execute_command("ACL", "SETUSER", "tandem", "on", ">hunter2", *ACL)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
        environ["TANDEM_REDIS_URL"] = f"redis+cluster://tandem:hunter2@127.0.0.1:{nodes[0].port}"
        router = subprocess.Popen(
            [sys.executable, "-m", "tandem_router"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
        )
        try:
            assert router.stdout is not None
            ready = router.stdout.readline()
            assert b'"ready"' in ready
        finally:
            router.terminate()
            out, err = router.communicate(timeout=20)
        assert router.returncode == 0
        assert b"hunter2" not in ready + out + err


def _is_master(node: Node) -> bool:
    return str(node.client.info("replication")["role"]) == "master"
