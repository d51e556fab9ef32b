"""`python -m tandem_planner`: the planner as a process."""

from __future__ import annotations

import asyncio
import secrets

from tandem.v1 import cluster_pb2, planner_pb2, planner_pb2_grpc
from tandem_common.keys import Keys
from tandem_common.metrics import start_metrics_server
from tandem_common.redis_client import connect
from tandem_common.registry import ClusterWatcher, ServicePublisher
from tandem_common.rpc import RpcServer
from tandem_common.service import Lifecycle, run_service

from tandem_planner.config import PlannerConfig
from tandem_planner.lease import PlannerLease
from tandem_planner.loop import PlanLoop
from tandem_planner.metrics import Metrics
from tandem_planner.servicer import PlannerServicer

_GRACE_S = 1.0


async def serve(config: PlannerConfig, lifecycle: Lifecycle) -> None:
    """Run the planner until it is told to stop."""
    metrics_port = start_metrics_server(config.host, config.metrics_port)
    client, keys = connect(config.redis_url), Keys(config.cluster)
    watcher = ClusterWatcher(client, keys, config.observe_interval_s)
    lease = PlannerLease(client, keys, config.lease_s)
    loop = PlanLoop(config, client=client, watcher=watcher, lease=lease, metrics=Metrics())
    rpc = RpcServer([planner_pb2.DESCRIPTOR.services_by_name["PlannerService"].full_name])
    planner_pb2_grpc.add_PlannerServiceServicer_to_server(PlannerServicer(loop, lease), rpc.server)
    try:
        port = await rpc.start(config.host, config.port)
        card = cluster_pb2.ServiceCard(
            kind="planner",
            service_id=f"planner-{secrets.token_hex(4)}",
            address=f"{config.reachable_host}:{port}",
            metrics_port=metrics_port,
        )
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(watcher.run()),
                group.create_task(lease.run()),
                group.create_task(loop.watch_traffic()),
                group.create_task(loop.keep_planning()),
                group.create_task(ServicePublisher(client, keys, card).run()),
            ]
            await rpc.set_serving(True)
            lifecycle.ready(address=card.address, metrics_port=metrics_port)
            await lifecycle.stopping()
            for task in tasks:
                task.cancel()
    finally:
        loop.advisor.close()
        await rpc.stop(_GRACE_S)
        await client.aclose()


def main() -> None:
    """Entry point of `tandem-planner`."""
    run_service(PlannerConfig, "planner", serve)


if __name__ == "__main__":
    main()
