"""The frontend put together: what it is made of, and how it starts and stops."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection
from datetime import UTC, datetime

import redis.asyncio
from tandem.v1 import cluster_pb2 as pb
from tandem.v1 import inference_pb2_grpc
from tandem_common.keys import Keys
from tandem_common.logs import get_logger
from tandem_common.redis_line import line_of
from tandem_common.registry import ClusterWatcher, ServicePublisher, ServiceWatcher
from tandem_common.rpc import RpcServer

from tandem_frontend.api_keys import ApiKeys
from tandem_frontend.config import FrontendConfig
from tandem_frontend.frontend_metrics import FrontendMetrics
from tandem_frontend.generation_run import Backend, RunLimits
from tandem_frontend.generator import Generator
from tandem_frontend.health import Canary, Health
from tandem_frontend.http_app import HttpApp
from tandem_frontend.http_connection import ConnectionLimits
from tandem_frontend.http_server import HttpServer
from tandem_frontend.inference_service import SERVICE_NAME, InferenceService
from tandem_frontend.info_routes import InfoRoutes
from tandem_frontend.loop_pressure import LoopPressure
from tandem_frontend.loop_probe import probe_loop
from tandem_frontend.models import LocalModel, ModelCatalog
from tandem_frontend.open_requests import OpenRequests
from tandem_frontend.openai_api import OpenAIApi
from tandem_frontend.preparation import Preparation
from tandem_frontend.routing import RouterClient
from tandem_frontend.sessions import SessionPool
from tandem_frontend.sse_stream import StreamLimits

_STOP_GRACE_S = 1.0
_HOUSEKEEPING_S = 0.5

_log = get_logger("frontend")


class Frontend:
    """One frontend process. `start`, then `run` until cancelled, then `drain` and `stop`."""

    def __init__(
        self,
        config: FrontendConfig,
        local: LocalModel,
        api_keys: ApiKeys,
        client: redis.asyncio.Redis,
        metrics: FrontendMetrics,
    ) -> None:
        self._config = config
        self._redis = client
        self._ticks = line_of(client).ticks
        self._keys = Keys(config.cluster)
        self._metrics = metrics
        self.frontend_id = f"frontend-{secrets.token_hex(8)}"
        self._watcher = ClusterWatcher(client, self._keys, beats=False)
        self._router_watcher = ServiceWatcher(client, self._keys, "router")
        self.catalog = ModelCatalog(self._watcher, local)
        self._router = RouterClient(self._router_addresses, self.catalog)
        self._pressure = LoopPressure()
        self._sessions = SessionPool(self.frontend_id, self._pressure)
        self._open = OpenRequests()
        self._preparation = Preparation(self.catalog, config.secret_bytes())
        backend = Backend(
            router=self._router,
            sessions=self._sessions,
            limits=RunLimits(
                first_token_timeout_s=config.first_token_timeout_s,
                token_timeout_s=config.token_timeout_s,
                request_timeout_s=config.request_timeout_s,
                max_migrations=config.max_migrations,
            ),
            itl_s=metrics.itl_s,
        )
        table = local.tokenizer.token_bytes
        generator = Generator(backend, table, metrics, self._open)
        self._canary = Canary(
            self._preparation,
            generator,
            self.catalog,
            metrics,
            interval_s=config.canary_interval_s,
            timeout_s=config.canary_timeout_s,
        )
        self.health = Health(self._watcher, self._router_addresses, self.catalog, self._canary, self._open)
        api = OpenAIApi(
            self._preparation,
            generator,
            table,
            metrics,
            StreamLimits(
                buffer_bytes=config.stream_buffer_bytes,
                buffer_age_s=config.stream_buffer_age_s,
                keepalive_s=config.stream_keepalive_s,
            ),
        )
        info = InfoRoutes(self.health, self.catalog, metrics, int(datetime.now(UTC).timestamp()))
        self.app = HttpApp(
            {
                **info.routes(),
                ("POST", "/v1/chat/completions"): api.chat,
                ("POST", "/v1/completions"): api.completion,
            },
            api_keys=api_keys,
            metrics=metrics,
        )
        self._http = HttpServer(
            self.app,
            ConnectionLimits(
                header_timeout_s=config.header_timeout_s,
                body_timeout_s=config.body_timeout_s,
                max_body_bytes=config.max_body_bytes,
                unread_timeout_s=config.stream_buffer_age_s,
            ),
            max_connections=config.max_connections,
        )
        self._rpc = RpcServer([SERVICE_NAME], share_port=config.shares_ports)
        service = InferenceService(
            self._preparation, generator, self.catalog, api_keys, metrics, config.stream_buffer_age_s
        )
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(service, self._rpc.server)
        self.http_port = 0
        self.port = 0

    async def start(self) -> None:
        """Listen on both ports; ConfigError when one is taken."""
        self.http_port = await self._http.start(
            self._config.host, self._config.http_port, shared=self._config.shares_ports
        )
        self.port = await self._rpc.start(self._config.host, self._config.port)

    async def run(self, metrics_port: int) -> None:
        """Watch the cluster, be in the registry, prove readiness; until cancelled."""
        host = self._config.reachable_host
        card = pb.ServiceCard(
            kind="frontend",
            service_id=self.frontend_id,
            address=f"{host}:{self.port}",
            http_address=f"{host}:{self.http_port}",
            metrics_port=metrics_port,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watcher.run())
            group.create_task(self._router_watcher.run())
            group.create_task(ServicePublisher(self._redis, self._keys, card).run())
            group.create_task(self._canary.run())
            group.create_task(probe_loop(self._metrics.loop_lag_s, self._pressure))
            group.create_task(self._keep_house())

    async def drain(self) -> None:
        """Admit nothing more and let open requests finish, up to the time-out. /live goes on saying 200."""
        await self._rpc.set_serving(False)
        num_left = await self._open.drain(self._config.drain_timeout_s)
        if num_left:
            _log.warning("ending requests that did not finish in time", num_requests=num_left)

    async def stop(self) -> None:
        """End everything."""
        await self._http.stop()
        await self._rpc.stop(_STOP_GRACE_S)
        await self._sessions.close()
        await self._router.close()
        self._preparation.close()

    def _router_addresses(self) -> Collection[str]:
        if self._config.routers:
            return self._config.routers
        return [card.address for card in self._router_watcher.services.values()]

    async def _keep_house(self) -> None:
        """Gauges, and what gRPC's health service says."""
        serving = False
        while True:
            report = self.health.report()
            if report.ready != serving:
                serving = report.ready
                _log.info("ready" if serving else "not ready", reason=report.reason)
                await self._rpc.set_serving(serving)
            self._metrics.ready.set(serving)
            self._metrics.open_requests.set(report.num_open_requests)
            self._metrics.sessions.set(self._sessions.num_sessions)
            self._metrics.registry_stale_s.set(report.registry_stale_ms / 1000)
            await self._ticks.rest(_HOUSEKEEPING_S)
