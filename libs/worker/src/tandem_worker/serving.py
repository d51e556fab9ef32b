"""The time in which a worker is there for others: from listening to the last goodbye."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import redis.asyncio
from redis.exceptions import RedisError
from tandem.v1 import cluster_pb2, worker_pb2_grpc
from tandem_common.config import ConfigError
from tandem_common.errors import TandemError, Unavailable
from tandem_common.keys import Keys
from tandem_common.logs import get_logger
from tandem_common.metrics import start_metrics_server
from tandem_common.registry import WorkerPublisher
from tandem_common.rpc import RpcServer
from tandem_common.service import Lifecycle
from tandem_engine.api import StepOutput

from tandem_worker.assembly import make_receivers
from tandem_worker.card import Endpoints
from tandem_worker.crew import Crew
from tandem_worker.drain import drain
from tandem_worker.kv_publisher import KvPublisher
from tandem_worker.registration import Fenced, Registration
from tandem_worker.roles import RoleService
from tandem_worker.transports import Receiver, shm
from tandem_worker.worker import Worker
from tandem_worker.worker_service import SERVICE_NAME, WorkerService

_log = get_logger("serving")

_JANITOR_INTERVAL_S = 5.0
# Calls that are left when all requests have ended may say goodbye for so long.
_GOODBYE_S = 0.5


class Serving:
    """Listens, registers, serves until told to stop, and leaves. `run` may be called once."""

    def __init__(
        self,
        worker: Worker,
        roles: Sequence[type[RoleService]],
        client: redis.asyncio.Redis,
        publisher: WorkerPublisher,
    ) -> None:
        config = worker.config
        self._worker = worker
        self._roles = [role(worker) for role in roles]
        self._publisher = publisher
        self._server = RpcServer([SERVICE_NAME, *(role.service_name for role in roles)])
        self._kv_events = KvPublisher(
            client,
            Keys(config.cluster),
            worker.worker_id,
            worker.epoch,
            check_interval_s=config.heartbeat_s,
        )

    async def run(self, lifecycle: Lifecycle, stopping: asyncio.Task[None]) -> None:
        """Serve until `stopping` is done, then drain. Raises EngineDied, Fenced or ConfigError."""
        worker = self._worker
        receivers = _listen(worker)
        async with Crew() as crew:
            for receiver in receivers:
                crew.start("kv-receiver", receiver.serve())
            endpoints, registration = await self._start_server(receivers)
            crew.start("dispatcher", worker.dispatcher.run(self._observe))
            crew.start("watcher", worker.watcher.run())
            crew.start("leases", worker.leases.reap())
            crew.start("janitor", _drop_unused_connections(worker))
            crew.start("kv-events", self._kv_events.run())
            crew.start("registration", registration.run())
            await registration.published()
            await self._server.set_serving(True)
            lifecycle.ready(
                worker_id=worker.worker_id,
                role=worker.config.role,
                address=endpoints.address,
                metrics_port=endpoints.metrics_port,
                max_context_tokens=worker.engine.info.max_context_tokens,
            )
            failing = asyncio.create_task(crew.failure(), name="failing")
            try:
                await asyncio.wait([stopping, failing], return_when=asyncio.FIRST_COMPLETED)
                if not failing.done():
                    await self._leave(registration, failing)
                if failing.done():
                    await self._fail(registration, failing.exception())
                    failing.result()
            finally:
                failing.cancel()
                await worker.connections.close()
                await self._server.stop(0)

    async def _start_server(self, receivers: Sequence[Receiver]) -> tuple[Endpoints, Registration]:
        """Answer gRPC; health says NOT_SERVING still."""
        config = self._worker.config
        metrics_port = start_metrics_server(config.host, config.metrics_port)
        # The registration needs the port, and the servicer the registration: the port comes last.
        endpoints = Endpoints(metrics_port=metrics_port, kv=[_endpoint(receiver) for receiver in receivers])
        registration = Registration(
            self._worker, self._publisher, endpoints, on_renewal=self._kv_events.renew
        )
        for role in self._roles:
            role.add_to(self._server.server)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(
            WorkerService(self._worker, registration, self._roles), self._server.server
        )
        port = await self._server.start(config.host, config.port)
        endpoints.address = f"{config.reachable_host}:{port}"
        return endpoints, registration

    async def _leave(self, registration: Registration, failing: asyncio.Task[None]) -> None:
        """Drain, unless the worker fails meanwhile."""
        await self._server.set_serving(False)
        leaving = asyncio.create_task(self._drain(registration), name="leaving")
        await asyncio.wait([leaving, failing], return_when=asyncio.FIRST_COMPLETED)
        if not leaving.done():
            leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)

    async def _drain(self, registration: Registration) -> None:
        worker = self._worker
        await drain(worker.gate, worker.dispatcher, registration, worker.config.drain_timeout_s)
        await self._say_goodbye(registration, Unavailable("the worker has stopped"))

    async def _fail(self, registration: Registration, error: BaseException | None) -> None:
        """Let everyone go elsewhere at once."""
        _log.error("the worker cannot go on", error=str(error) or type(error).__name__)
        await self._server.set_serving(False)
        reason = Unavailable("the worker has failed; the request can go on elsewhere")
        self._worker.gate.begin_drain()
        self._worker.dispatcher.fail_all(reason)
        if isinstance(error, Fenced):
            registration.abandon()  # the records are another's now
        await self._say_goodbye(registration, reason)

    async def _say_goodbye(self, registration: Registration, reason: TandemError) -> None:
        for role in self._roles:
            await role.end(reason)
        if not registration.abandoned:
            with contextlib.suppress(RedisError, OSError):
                await registration.remove()
                await self._kv_events.remove()
        await self._server.stop(_GOODBYE_S)

    def _observe(self, step: StepOutput) -> None:
        """Learn from a step, and tell what it changed."""
        if step.removed_hashes or step.stored_hashes:
            self._kv_events.record(step.removed_hashes, step.stored_hashes)
        if step.cost is not None:
            self._worker.steps.add(step.cost)


def _listen(worker: Worker) -> list[Receiver]:
    try:
        return make_receivers(worker)
    except OSError as error:
        raise ConfigError(
            f"cannot listen for blocks on kv_port = {worker.config.kv_port} ({error.strerror}); "
            "choose another, or 0 for any"
        ) from None


def _endpoint(receiver: Receiver) -> cluster_pb2.KvEndpoint:
    if receiver.kind == "shm":
        return cluster_pb2.KvEndpoint(
            kind=cluster_pb2.TRANSPORT_KIND_SHM, address=receiver.address, host_id=shm.host_id()
        )
    return cluster_pb2.KvEndpoint(kind=cluster_pb2.TRANSPORT_KIND_TCP, address=receiver.address)


async def _drop_unused_connections(worker: Worker) -> None:
    while True:
        await asyncio.sleep(_JANITOR_INTERVAL_S)
        alive = {(seen.card.worker_id, seen.card.epoch) for seen in worker.watcher.workers.values()}
        await worker.connections.drop_unused(alive)
