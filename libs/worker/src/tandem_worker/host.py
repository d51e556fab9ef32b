"""The process around an engine: load it, find Redis, serve, and free everything at the end."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Callable
from dataclasses import replace

from redis.exceptions import RedisError
from tandem_common import redis_client
from tandem_common.config import ConfigError
from tandem_common.keys import Keys
from tandem_common.logs import get_logger
from tandem_common.model_source import model_revision, resolve_model
from tandem_common.registry import WorkerPublisher
from tandem_common.service import Lifecycle
from tandem_engine.api import Engine, ModelError
from tandem_engine.config import EngineConfig
from tandem_engine.factory import create_engine

from tandem_worker.assembly import make_worker
from tandem_worker.config import WorkerConfig
from tandem_worker.roles import installed_roles
from tandem_worker.serving import Serving

_log = get_logger("host")

_REDIS_RETRY_S = 0.5
# The engine's thread and the event loop give way to each other after this long; Python's default is 5 ms, which a token
# would wait while the engine is busy with steps that take less.
_SWITCH_INTERVAL_S = 0.001


async def serve_worker(config: WorkerConfig, lifecycle: Lifecycle) -> None:
    """Run one worker until `lifecycle` says stop, then drain it.

    Raises ConfigError for a configuration or model that cannot be used, EngineDied or Fenced when the
    worker cannot go on.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    await WorkerHost(config).serve(lifecycle)


class WorkerHost:
    """One worker, from start to end. `serve` may be called once."""

    def __init__(
        self, config: WorkerConfig, make_engine: Callable[[EngineConfig], Engine] = create_engine
    ) -> None:
        """Raises ConfigError for a model that is not there."""
        self._make_engine = make_engine
        path = resolve_model(config.model) if config.model else None
        # Without a model's files (the simulated engine), the name stands for the content.
        self._revision = model_revision(path) if path else config.model_name
        if path is not None:
            config = replace(config, model=str(path), served_model_name=config.model_name)
        self._config = config
        self._worker_id = config.worker_id or f"{config.role}-{secrets.token_hex(4)}"
        self._roles = installed_roles()

    async def serve(self, lifecycle: Lifecycle) -> None:
        """See `serve_worker`."""
        config = self._config
        engine = self._make_engine(config)
        client = redis_client.connect(config.redis_url)
        stopping = asyncio.create_task(lifecycle.stopping(), name="stopping")
        try:
            try:
                await engine.start()
            except ModelError as error:
                raise ConfigError(str(error)) from error
            publisher = WorkerPublisher(client, Keys(config.cluster), config.heartbeat_s)
            epoch = await self._next_epoch(publisher, stopping)
            if stopping.done():
                return
            worker = make_worker(
                config,
                engine,
                client,
                worker_id=self._worker_id,
                epoch=epoch,
                revision=self._revision,
                duties=[role.duty for role in self._roles],
            )
            await Serving(worker, self._roles, client, publisher).run(lifecycle, stopping)
        finally:
            stopping.cancel()
            await engine.stop()
            await client.aclose()

    async def _next_epoch(self, publisher: WorkerPublisher, stopping: asyncio.Task[None]) -> int:
        """Wait for Redis: a worker that cannot be found need not start. 0 when told to stop meanwhile."""
        waiting = False
        while not stopping.done():
            try:
                return await publisher.next_epoch(self._worker_id)
            except (RedisError, OSError) as error:
                if not waiting:
                    _log.warning("waiting for redis", error=type(error).__name__)
                waiting = True
                await asyncio.wait([stopping], timeout=_REDIS_RETRY_S)
        return 0
