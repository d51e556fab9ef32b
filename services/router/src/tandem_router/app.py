"""A running router: its parts wired together, started and stopped."""

from __future__ import annotations

import asyncio
import secrets

from prometheus_client import REGISTRY, CollectorRegistry
from redis.exceptions import RedisError
from tandem.v1 import cluster_pb2, router_pb2, router_pb2_grpc
from tandem_common.keys import Keys
from tandem_common.lane import LaneServer
from tandem_common.logs import get_logger
from tandem_common.redis_client import connect
from tandem_common.registry import ClusterWatcher, ServicePublisher
from tandem_common.rpc import RpcServer
from tandem_common.service import Lifecycle

from tandem_router.booking_exchange import BookingExchange
from tandem_router.bookings import Bookings
from tandem_router.cluster import Cluster
from tandem_router.config import RouterConfig
from tandem_router.elsewhere import WaitingElsewhere
from tandem_router.fairness import FairShares
from tandem_router.feed import ClusterFeed
from tandem_router.index import BlockIndex
from tandem_router.kv_follower import KvFollower, Target
from tandem_router.metrics import RouterMetrics
from tandem_router.policies import Predictive
from tandem_router.servicer import RouterServicer
from tandem_router.stream_reader import StreamReader

_SERVICE_NAME = router_pb2.DESCRIPTOR.services_by_name["RouterService"].full_name
# A read of a stream without news ends after so long; what there is else to read interrupts it.
_READ_S = 1.0

_log = get_logger("router")


class RouterApp:
    """Made once, `run` once."""

    def __init__(
        self, config: RouterConfig, *, metrics_port: int, registry: CollectorRegistry = REGISTRY
    ) -> None:
        """`metrics_port` is only announced here; `registry` takes the metrics."""
        self._config = config
        self._metrics_port = metrics_port
        self._redis = connect(config.redis_url)
        self._readers = connect(config.redis_url, wait_s=_READ_S)
        self._keys = Keys(config.cluster)
        policy = config.make_policy()
        metrics = RouterMetrics(policy.name, registry)
        self.index = BlockIndex()
        self.cluster = Cluster(
            Bookings(max_age_s=config.booking_max_age_s, max_per_worker=config.max_bookings_per_worker),
            empty_grace_s=config.registry_grace_s,
        )
        self._watcher = ClusterWatcher(self._redis, self._keys, config.poll_interval_s)
        self._feed = ClusterFeed(
            self._watcher,
            self.cluster,
            self.index,
            metrics,
            observers=[policy.prepare] if isinstance(policy, Predictive) else [],
        )
        self._follower = KvFollower(
            self._redis,
            self._keys,
            self.index,
            metrics,
            self._index_targets,
            StreamReader(self._readers),
        )
        self._router_id = f"router-{secrets.token_hex(4)}"
        self.shares, elsewhere = FairShares(config.weights()), WaitingElsewhere()
        self._exchange = BookingExchange(
            self._redis,
            self._keys,
            self._router_id,
            self.cluster,
            self.shares,
            max_age_s=config.booking_max_age_s,
            elsewhere=elsewhere,
            reader=StreamReader(self._readers),
        )
        self._lanes = LaneServer(config.host)
        self._servicer = RouterServicer(
            policy,
            self.cluster,
            self.index,
            self._feed,
            self._follower,
            metrics,
            rules=config.servicer_rules(),
            shares=self.shares,
            exchange=self._exchange,
            elsewhere=elsewhere,
            lanes=self._lanes,
        )
        self._exchange.on_news = self._servicer.others_started
        self._feed.add_observer(self._servicer.view_changed)
        self._feed.add_observer(lambda _: self._follower.look())
        self._rpc = RpcServer([_SERVICE_NAME])
        router_pb2_grpc.add_RouterServiceServicer_to_server(self._servicer, self._rpc.server)

    async def run(self, lifecycle: Lifecycle) -> None:
        """Serve until told to stop; ready once the registry was read for the first time."""
        try:
            port = await self._rpc.start(self._config.host, self._config.port)
            async with asyncio.TaskGroup() as tasks:
                address = f"{self._config.reachable_host}:{port}"
                background = tasks.create_task(self._run_background(address, lifecycle))
                await lifecycle.stopping()
                # Leaves the registry, so that nobody starts a call that would be refused.
                background.cancel()
                self._servicer.stop()
        finally:
            await self._rpc.stop(self._config.drain_s)
            await self._lanes.close()
            await self._redis.aclose()
            await self._readers.aclose()

    async def _run_background(self, address: str, lifecycle: Lifecycle) -> None:
        await self._first_look()
        card = cluster_pb2.ServiceCard(
            kind="router",
            service_id=self._router_id,
            address=address,
            metrics_port=self._metrics_port,
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watcher.run())
            tasks.create_task(self._feed.run())
            tasks.create_task(self._follower.run())
            tasks.create_task(self._exchange.run())
            tasks.create_task(ServicePublisher(self._redis, self._keys, card).run())
            await self._rpc.set_serving(True)
            lifecycle.ready(address=address, metrics_port=self._metrics_port)

    async def _first_look(self) -> None:
        """Read the registry once, waiting for Redis as long as it takes."""
        warned = False
        while True:
            try:
                await self._watcher.refresh()
            except (RedisError, OSError) as error:
                if not warned:
                    _log.warning("redis does not answer; waiting for it before serving", error=str(error))
                warned = True
                await asyncio.sleep(self._config.poll_interval_s)
            else:
                self._feed.update()
                return

    def _index_targets(self) -> dict[str, Target]:
        return {
            worker_id: Target(record.card.epoch, record.card.num_blocks)
            for worker_id, record in self.cluster.registered.items()
        }
